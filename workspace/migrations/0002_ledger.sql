-- The workspace's half of the ledger: what landed, tiled by sequences and by source positions. Maps are JSON.

-- Sequences that landed, without holes: `before` and `after` are the records shipped, by collector, when the first of
-- them began and the last of them ended, as their headers say.
CREATE TABLE sequences (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    lane         TEXT NOT NULL,
    epoch        TEXT NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    since        INTEGER NOT NULL,
    until        INTEGER NOT NULL,
    before       TEXT NOT NULL,
    after        TEXT NOT NULL,
    PRIMARY KEY (organization, agent, lane, epoch, first)
) STRICT;

-- The newest header of an epoch: its counters, the lowest sequence that the agent still held, and what it set aside.
CREATE TABLE epochs (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    lane         TEXT NOT NULL,
    epoch        TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    lowest_held  INTEGER NOT NULL,
    counters     TEXT NOT NULL,
    set_aside    TEXT NOT NULL,
    PRIMARY KEY (organization, agent, lane, epoch)
) STRICT;

-- Positions of a source that are stored, without holes: half-open, in the source's own unit.
CREATE TABLE positions (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    collector    TEXT NOT NULL,
    source       TEXT NOT NULL,
    start        INTEGER NOT NULL,
    reached      INTEGER NOT NULL,
    records      INTEGER NOT NULL,
    since        INTEGER NOT NULL,
    until        INTEGER NOT NULL,
    lane         TEXT NOT NULL,
    first_epoch  TEXT NOT NULL,
    first_seq    INTEGER NOT NULL,
    last_epoch   TEXT NOT NULL,
    last_seq     INTEGER NOT NULL,
    PRIMARY KEY (organization, agent, collector, source, start)
) STRICT;

-- Records stored and, of those, records whose positions were stored before.
CREATE TABLE stored (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    collector    TEXT NOT NULL,
    records      INTEGER NOT NULL,
    repeated     INTEGER NOT NULL,
    PRIMARY KEY (organization, agent, collector)
) STRICT;
