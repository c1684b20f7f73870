-- Answered queries of each organization, for the metrics of `serve`: queries run in their own processes.

CREATE TABLE query_times (
    organization TEXT PRIMARY KEY NOT NULL REFERENCES organizations (id),
    queries      INTEGER NOT NULL,
    seconds      REAL NOT NULL
) STRICT;
