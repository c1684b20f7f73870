-- Starts of the machines that use an agent's key, `machine/boot`, in the order in which they were seen first, and since when
-- nothing is taken of one any more.
CREATE TABLE starts (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    start        TEXT NOT NULL,
    first        INTEGER NOT NULL,
    refused      INTEGER,
    PRIMARY KEY (organization, agent, start)
) STRICT;

-- What one start of a machine seals in one epoch of a queue: when the first batch came, when the last that was not late, and
-- when the first was sealed, by its own clock, and as far as that is not ahead of ours.
CREATE TABLE incarnations (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    epoch        TEXT NOT NULL,
    start        TEXT NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    sealed       INTEGER NOT NULL,
    sealed_here  INTEGER NOT NULL,
    refused      INTEGER,
    PRIMARY KEY (organization, agent, epoch, start)
) STRICT;

-- The agent that a machine was before it was given another key.
ALTER TABLE agents ADD COLUMN replaces TEXT;
CREATE INDEX agents_replaces ON agents (replaces) WHERE replaces IS NOT NULL;
