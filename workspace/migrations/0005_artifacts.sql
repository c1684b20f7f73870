-- Files that were asked for, and where their pieces lie. State: requested, sending, complete, refused.
CREATE TABLE artifacts (
    id           TEXT PRIMARY KEY NOT NULL,
    organization TEXT NOT NULL REFERENCES organizations (id),
    agent        TEXT NOT NULL,
    path         TEXT NOT NULL,
    document     TEXT NOT NULL,
    signature    TEXT NOT NULL,
    requested    INTEGER NOT NULL,
    expires      INTEGER NOT NULL,
    offered      INTEGER,
    who          TEXT NOT NULL,
    reason       TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'requested',
    detail       TEXT,
    whole        TEXT
) STRICT;
CREATE INDEX artifacts_open ON artifacts (organization, agent) WHERE state IN ('requested', 'sending');

-- A piece that comes twice, after a crash of the agent, is one.
CREATE TABLE artifact_pieces (
    artifact TEXT NOT NULL REFERENCES artifacts (id),
    start    INTEGER NOT NULL,
    length   INTEGER NOT NULL,
    key      TEXT NOT NULL,
    PRIMARY KEY (artifact, start)
) STRICT;
