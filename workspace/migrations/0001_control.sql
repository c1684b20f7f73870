-- Control data. Times are nanoseconds UTC; ids are text as in the wire.

CREATE TABLE settings (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE organizations (
    id              TEXT PRIMARY KEY NOT NULL,
    name            TEXT NOT NULL UNIQUE,
    tier            TEXT NOT NULL CHECK (tier IN ('free', 'standard')),
    policy_revision INTEGER NOT NULL DEFAULT 1,
    created         INTEGER NOT NULL
) STRICT;

-- Only the SHA-256 of a token is kept.
CREATE TABLE tokens (
    digest       TEXT PRIMARY KEY NOT NULL,
    organization TEXT NOT NULL REFERENCES organizations (id),
    created      INTEGER NOT NULL,
    expires      INTEGER NOT NULL,
    uses_left    INTEGER NOT NULL
) STRICT;

CREATE TABLE agents (
    organization    TEXT NOT NULL REFERENCES organizations (id),
    id              TEXT NOT NULL,
    hostname        TEXT NOT NULL,
    machine         TEXT,
    version         TEXT NOT NULL,
    policy_revision INTEGER NOT NULL,
    enrolled        INTEGER NOT NULL,
    last_seen       INTEGER,
    revoked         INTEGER,
    PRIMARY KEY (organization, id)
) STRICT;

-- A landed batch until it is materialised: state 0 landed, 1 materialised, 2 undecodable.
CREATE TABLE landed (
    key          TEXT PRIMARY KEY NOT NULL,
    organization TEXT NOT NULL,
    day          TEXT NOT NULL,
    landed       INTEGER NOT NULL,
    bytes        INTEGER NOT NULL,
    state        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX landed_pending ON landed (organization, landed) WHERE state = 0;

-- Up to which version a table holds every batch with state 1.
CREATE TABLE table_versions (
    organization TEXT NOT NULL,
    name         TEXT NOT NULL,
    version      INTEGER NOT NULL,
    PRIMARY KEY (organization, name)
) STRICT;

CREATE TABLE leases (
    name    TEXT PRIMARY KEY NOT NULL,
    holder  TEXT NOT NULL,
    expires INTEGER NOT NULL
) STRICT;

CREATE TABLE audit_log (
    time   INTEGER NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
