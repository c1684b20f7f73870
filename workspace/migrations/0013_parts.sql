-- Sequences of the parts of split batches, as the landed empty batches in their places name them, until the parts have landed too.
CREATE TABLE parts (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    lane         TEXT NOT NULL,
    epoch        TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    PRIMARY KEY (organization, agent, lane, epoch, seq)
) STRICT;
