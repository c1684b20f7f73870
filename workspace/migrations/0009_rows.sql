-- Rows that a table had at that version; a table that has fewer is damaged. 0 where an older release did not say.
ALTER TABLE table_versions ADD COLUMN rows INTEGER NOT NULL DEFAULT 0;
