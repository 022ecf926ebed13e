-- +goose Up
-- Maintenance of the store: its jobs. What they were asked, how far they are and what they brought is JSON of the
-- package maintenance; the catalog does not read it. `trigger` is manual, daily or watermark.
CREATE TABLE maintenance (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    trigger    TEXT NOT NULL,
    user       TEXT NOT NULL,
    options    TEXT NOT NULL DEFAULT '{}',
    queued_at  INTEGER NOT NULL,
    started_at INTEGER,
    ended_at   INTEGER,
    reason     TEXT NOT NULL DEFAULT '',
    hint       TEXT NOT NULL DEFAULT '',
    progress   TEXT NOT NULL DEFAULT '{}',
    report     TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX maintenance_kind ON maintenance (kind, id);
CREATE INDEX maintenance_state ON maintenance (state);

-- The damage list, a copy of the store's own, with whom it harms: it can be made again from there. container is empty
-- where the damage lies in a small object, or nobody knows the place; frame is -1 where no frame is meant.
CREATE TABLE damage (
    n         INTEGER PRIMARY KEY,
    container TEXT NOT NULL,
    kind      TEXT NOT NULL,
    frame     INTEGER NOT NULL,
    object    TEXT NOT NULL,
    saveset   TEXT NOT NULL,
    digests   TEXT NOT NULL,
    reason    TEXT NOT NULL,
    found_at  INTEGER NOT NULL
) STRICT;

-- more is the number of paths beyond those that are kept; object is the saveset's own object that is damaged.
CREATE TABLE damage_savesets (
    saveset TEXT PRIMARY KEY,
    object  TEXT NOT NULL,
    more    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE damage_paths (
    saveset TEXT NOT NULL REFERENCES damage_savesets (saveset) ON DELETE CASCADE,
    n       INTEGER NOT NULL,
    path    BLOB NOT NULL,
    PRIMARY KEY (saveset, n)
) STRICT, WITHOUT ROWID;

-- What savesets and clients take, as the last count found; bytes of chunks before compression, and as stored.
CREATE TABLE saveset_usage (
    saveset       TEXT PRIMARY KEY,
    counted_at    INTEGER NOT NULL,
    unique_bytes  INTEGER NOT NULL,
    unique_stored INTEGER NOT NULL,
    shared_bytes  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE client_usage (
    client        TEXT PRIMARY KEY,
    counted_at    INTEGER NOT NULL,
    savesets      INTEGER NOT NULL,
    bytes_logical INTEGER NOT NULL,
    unique_bytes  INTEGER NOT NULL,
    unique_stored INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
