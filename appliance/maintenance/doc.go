// Package maintenance keeps a store in good health: it runs garbage collection, checks, repairs and counts as jobs, one at
// a time, by hand and once a day, keeps the catalog's damage list level with the store's, and says what state a store is
// in.
//
// It does not own how any of it is done (dedup), who may start what (api/server), nor what is deleted: the purge of
// savesets comes in as a function.
//
// # Jobs
//
// A job has the states of a run:
//
//	from     to         when
//	-        queued     Start, or the daily maintenance
//	queued   active     the job before it has ended
//	queued   cancelled  Cancel, Stop
//	active   success    it did what it should
//	active   warning    likewise, and there is damage
//	active   error      it failed, or the store is not open
//	active   cancelled  Cancel, Stop
//	queued   error      found at start: the appliance was killed
//	active   error      found at start: likewise
//
// Nothing is lost with a job that ends early: the engine keeps its own cursors, and the next job of the kind goes on
// there. Of each kind one job may wait at a time.
//
// # The daily maintenance
//
// It starts at NEWDAY, once on each date of the server's time zone, whatever clocks do, and does purge, garbage
// collection, a share of the check, and the count, one after the other; one that fails says why and does not keep the
// others from their turn. How far the day is stands in the catalog, so that an appliance that was stopped or killed goes
// on with the step it was at; after three such tries it waits for the next day. A store that is not open is waited for.
// This is the timer that NEWDAY needs until the scheduler has events of its own.
//
// # Damage
//
// INVARIANT: after a job has ended, the catalog's damage list is the store's, and says whom it harms. Damage that runs,
// mounts and restores find reaches the catalog within a minute; whom it harms follows as soon as the savesets have been
// searched, which takes at most a tenth of the time.
package maintenance
