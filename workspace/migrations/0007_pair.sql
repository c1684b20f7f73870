-- Tokens that another workspace joins as the pair of this one with; only the SHA-256 is kept, and one use.
CREATE TABLE pair_tokens (
    digest  TEXT PRIMARY KEY NOT NULL,
    expires INTEGER NOT NULL
) STRICT;
