-- Starts of the machines that use an agent's key, `machine/boot`, in the order in which they were seen first: since when
-- nothing is taken of one any more, and which agent it became then.
CREATE TABLE starts (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    start        TEXT NOT NULL,
    first        INTEGER NOT NULL,
    refused      INTEGER,
    became       TEXT,
    PRIMARY KEY (organization, agent, start)
) STRICT;

-- What one start of a machine has sealed in one epoch of a queue: its lowest sequence, and when the first of it was sealed, by
-- its own clock as far as that is not ahead of ours.
CREATE TABLE incarnations (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    lane         TEXT NOT NULL,
    epoch        TEXT NOT NULL,
    start        TEXT NOT NULL,
    first        INTEGER NOT NULL,
    min_seq      INTEGER NOT NULL,
    min_sealed   INTEGER NOT NULL,
    refused      INTEGER,
    PRIMARY KEY (organization, agent, lane, epoch, start)
) STRICT;

-- The agent that a machine was before it was given another key.
ALTER TABLE agents ADD COLUMN replaces TEXT;
