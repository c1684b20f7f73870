-- A machine and one of its boots, which the glossary calls a boot.
ALTER TABLE starts RENAME TO boots;
ALTER TABLE boots RENAME COLUMN start TO machine_boot;
ALTER TABLE incarnations RENAME COLUMN start TO machine_boot;
