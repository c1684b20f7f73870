-- The tier that a batch was observed under, and records that it leaves out of the tables; they are stored, as landed, all the
-- same.
ALTER TABLE landed ADD COLUMN store TEXT NOT NULL DEFAULT 'all';
ALTER TABLE stored ADD COLUMN left_out INTEGER NOT NULL DEFAULT 0;
