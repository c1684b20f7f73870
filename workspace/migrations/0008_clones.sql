-- Starts of the machines that use an agent's key, in the order in which they were seen first. Ids are hashes.
CREATE TABLE boots (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    boot         TEXT NOT NULL,
    machine      TEXT NOT NULL,
    first        INTEGER NOT NULL,
    PRIMARY KEY (organization, agent, boot)
) STRICT;

-- Epochs of an agent's queue, and the start of the machine that sealed in them: when the first batch came, when that was
-- sealed, the lowest sequence that came, and since when nothing is taken of it any more.
CREATE TABLE incarnations (
    organization TEXT NOT NULL,
    agent        TEXT NOT NULL,
    lane         TEXT NOT NULL,
    epoch        TEXT NOT NULL,
    boot         TEXT NOT NULL,
    first        INTEGER NOT NULL,
    first_sealed INTEGER NOT NULL,
    first_seq    INTEGER NOT NULL,
    refused      INTEGER,
    PRIMARY KEY (organization, agent, lane, epoch, boot)
) STRICT;
