// Package catalog owns the appliance's database: clients with their certificates and enrolment tokens, tasks, pools,
// savesets, runs with their notices and per-stage times, users, sessions and API tokens, the audit log. It is the only
// package that knows SQLite.
//
// It does not own the truth about savesets: manifests and states in the store are that, and PutSaveset takes in what
// they say. Nor does it decide anything: levels, EOL and the life of runs are package jobs', passwords and roles the
// assembly's.
//
// # Durability
//
// The database is in WAL mode with synchronous=FULL: a change that was reported done survives a power cut. Migrations
// are embedded and numbered; before each one the database is copied beside itself (catalog-before-v<N>-<time>.db). A
// database written by a newer program is refused by name and left untouched.
//
// # Concurrency
//
// All methods of Catalog are safe for concurrent use. One connection writes, several read; a write never waits for a
// reader.
//
// # Errors
//
// Every method returns a *Error whose Kind tells what happened. A full disk is KindNoSpace; the catalog stays usable and
// the next write works as soon as there is space. A reserve of its own lets restores, logins and the audit log go on for a
// while on a full disk; backups cannot draw on it.
package catalog
