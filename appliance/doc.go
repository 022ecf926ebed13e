// Package appliance assembles cofferd: it opens the data directory, the catalog, the store and the authority, starts the
// listeners for agents and for the REST API, keeps the mount of all savesets, and stops it all in order.
//
// It also is the brain behind the REST API (backend): it implements server.Backend over catalog, jobs, ingest and dedup,
// and turns their errors into those of the API in one place (errors.go).
//
// It does not own what it joins: how runs live (jobs), how bytes come in (ingest) and lie (dedup), how the API is spoken
// (api/server), how files are shown (fusefs).
//
// # Start and stop
//
// Start: data directory and its lock, catalog, authority, store, taking in of manifests, end of runs that a killed
// appliance left behind, stale mount cleared, first superuser, listeners (who gets a connection finds an appliance that
// is ready), service. A store that does not open, for a wrong key or damage, does not keep the appliance from starting: the API is
// up and says why; backups and restores are refused.
//
// Stop: no new runs, all runs cancelled and waited for, mount detached, API and agents' connections closed, store,
// catalog, data directory. All within 30 seconds.
package appliance
