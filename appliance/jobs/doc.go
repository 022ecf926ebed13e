// Package jobs owns the life of runs: it takes immediate starts of backups and restores, decides levels, queues, orders
// the agent to work, follows the run, makes the saveset with its EOL, records how the run ended, and tells watchers.
//
// It does not own: how bytes arrive (ingest), where they lie (dedup), what the records look like (catalog), nor who may
// start what (api/server).
//
// # States
//
//	from     to         when
//	-        queued     StartBackup, StartRestore
//	queued   active     no other run of the task is active
//	queued   cancelled  Cancel, Stop
//	active   success    committed (backup) or done (restore), no warning
//	active   warning    likewise, with warnings
//	active   error      refused, failed, agent lost, store or catalog full
//	active   cancelled  Cancel, Stop
//	queued   error      found at start: the appliance was killed
//	active   error      found at start: likewise, unless its saveset is in the store, which makes it success or warning
//
// One run per task is active at a time; later ones wait in the order of their start. Restores do not wait.
//
// INVARIANT: a run is success or warning only when its saveset's manifest is durable in the store and its row in the
// catalog; a run that ends otherwise leaves no saveset that is not deleted.
//
// # A full or broken catalog
//
// A run whose start cannot be recorded does not start. A run whose end cannot be recorded keeps its state in memory and
// is recorded as soon as the catalog takes writes again; if the appliance is stopped before, the next start makes it an
// error.
package jobs
