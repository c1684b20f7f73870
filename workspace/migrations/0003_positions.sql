-- What an agent is given back when its queue was lost, and what became of an epoch that ended.

-- The newest cursor of each source, in the collector's own format; NULL where the source is gone.
CREATE TABLE cursors (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    collector    TEXT NOT NULL,
    source       TEXT NOT NULL,
    cursor       BLOB,
    epoch        TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    sealed       INTEGER NOT NULL,
    PRIMARY KEY (organization, agent, collector, source)
) STRICT;

-- `predecessor` of the newest header of the epoch behind it, as JSON, and the sequence of that header.
ALTER TABLE epochs ADD COLUMN ended TEXT;
ALTER TABLE epochs ADD COLUMN ended_seq INTEGER NOT NULL DEFAULT 0;
