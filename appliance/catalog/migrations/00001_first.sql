-- +goose Up
-- Times are microseconds since 1970 in UTC; NULL means never. Lists are JSON arrays. Paths are bytes.

CREATE TABLE pools (
    name           TEXT PRIMARY KEY,
    retention_days INTEGER NOT NULL CHECK (retention_days >= 0),
    created_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE clients (
    name          TEXT PRIMARY KEY,
    created_at    INTEGER NOT NULL,
    enrolled_at   INTEGER,
    last_seen     INTEGER,
    revoked_at    INTEGER,
    hostname      TEXT NOT NULL DEFAULT '',
    os            TEXT NOT NULL DEFAULT '',
    arch          TEXT NOT NULL DEFAULT '',
    agent_version TEXT NOT NULL DEFAULT '',
    address       TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE certificates (
    serial      TEXT PRIMARY KEY,
    client      TEXT NOT NULL REFERENCES clients (name),
    fingerprint TEXT NOT NULL,
    issued_at   INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    revoked_at  INTEGER
) STRICT;
CREATE INDEX certificates_client ON certificates (client, issued_at);

CREATE TABLE enrolment_tokens (
    hash       TEXT PRIMARY KEY,
    client     TEXT NOT NULL REFERENCES clients (name),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER
) STRICT;
CREATE INDEX enrolment_tokens_client ON enrolment_tokens (client);

CREATE TABLE tasks (
    name       TEXT PRIMARY KEY,
    client     TEXT NOT NULL REFERENCES clients (name),
    type       TEXT NOT NULL,
    pool       TEXT NOT NULL REFERENCES pools (name),
    options    TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Rows of savesets are a copy of what manifests and states in the store say: they can be made again from there, so that
-- they name client and task by text, whether these still exist or not.
CREATE TABLE savesets (
    id              TEXT PRIMARY KEY,
    client          TEXT NOT NULL,
    task            TEXT NOT NULL,
    task_type       TEXT NOT NULL,
    pool            TEXT NOT NULL,
    run             TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('success', 'warning')),
    level_requested TEXT NOT NULL,
    level           TEXT NOT NULL,
    level_reason    TEXT NOT NULL,
    parent          TEXT NOT NULL,
    started_at      INTEGER NOT NULL,
    ended_at        INTEGER NOT NULL,
    committed_at    INTEGER NOT NULL,
    entries         INTEGER NOT NULL,
    bytes_logical   INTEGER NOT NULL,
    bytes_new       INTEGER NOT NULL,
    bytes_stored    INTEGER NOT NULL,
    warnings        INTEGER NOT NULL,
    sources         TEXT NOT NULL,
    stream_name     TEXT NOT NULL,
    source_key      TEXT NOT NULL,
    source_id       TEXT NOT NULL,
    state_number    INTEGER NOT NULL,
    eol             INTEGER,
    eol_cause       TEXT NOT NULL,
    locked          INTEGER NOT NULL,
    immutable_until INTEGER,
    deleted_at      INTEGER
) STRICT;
CREATE INDEX savesets_task ON savesets (client, task, committed_at);
CREATE INDEX savesets_time ON savesets (committed_at);
CREATE INDEX savesets_run ON savesets (run);

CREATE TABLE runs (
    id              TEXT PRIMARY KEY,
    kind            TEXT NOT NULL CHECK (kind IN ('backup', 'restore')),
    state           TEXT NOT NULL,
    client          TEXT NOT NULL,
    task            TEXT NOT NULL,
    user            TEXT NOT NULL,
    level_requested TEXT NOT NULL DEFAULT '',
    level           TEXT NOT NULL DEFAULT '',
    level_reason    TEXT NOT NULL DEFAULT '',
    parent          TEXT NOT NULL DEFAULT '',
    saveset         TEXT NOT NULL DEFAULT '',
    request         TEXT NOT NULL DEFAULT '',
    queued_at       INTEGER NOT NULL,
    started_at      INTEGER,
    ended_at        INTEGER,
    reason          TEXT NOT NULL DEFAULT '',
    hint            TEXT NOT NULL DEFAULT '',
    warnings        INTEGER NOT NULL DEFAULT 0,
    counters        TEXT NOT NULL DEFAULT '{}',
    source_us       INTEGER NOT NULL DEFAULT 0,
    hashing_us      INTEGER NOT NULL DEFAULT 0,
    compress_us     INTEGER NOT NULL DEFAULT 0,
    network_us      INTEGER NOT NULL DEFAULT 0,
    store_us        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_state ON runs (state);
CREATE INDEX runs_task ON runs (task, id);

CREATE TABLE notices (
    run      TEXT NOT NULL REFERENCES runs (id),
    seq      INTEGER NOT NULL,
    time     INTEGER NOT NULL,
    severity TEXT NOT NULL,
    code     TEXT NOT NULL,
    path     BLOB NOT NULL,
    message  TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE users (
    name        TEXT PRIMARY KEY,
    role        TEXT NOT NULL,
    clients     TEXT NOT NULL,
    password    TEXT NOT NULL,
    must_change INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    last_login  INTEGER
) STRICT;

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    hash       TEXT NOT NULL UNIQUE,
    user       TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    session    INTEGER NOT NULL,
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    last_used  INTEGER
) STRICT;
CREATE INDEX tokens_user ON tokens (user);

CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    time   INTEGER NOT NULL,
    user   TEXT NOT NULL,
    remote TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    ok     INTEGER NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
