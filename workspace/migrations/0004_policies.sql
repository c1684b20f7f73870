-- Every revision of every organization's policy, as it was signed, with who, when and why.
CREATE TABLE policies (
    organization TEXT NOT NULL REFERENCES organizations (id),
    revision     INTEGER NOT NULL,
    collect      INTEGER NOT NULL,
    document     TEXT NOT NULL,
    signature    TEXT NOT NULL,
    issued       INTEGER NOT NULL,
    who          TEXT NOT NULL,
    reason       TEXT NOT NULL,
    PRIMARY KEY (organization, revision)
) STRICT;

-- What an organization is to look at; one row for what happens again.
CREATE TABLE alerts (
    organization TEXT NOT NULL REFERENCES organizations (id),
    agent        TEXT NOT NULL,
    kind         TEXT NOT NULL,
    detail       TEXT NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    times        INTEGER NOT NULL,
    PRIMARY KEY (organization, agent, kind, detail)
) STRICT;

ALTER TABLE audit_log ADD COLUMN who TEXT NOT NULL DEFAULT '';
