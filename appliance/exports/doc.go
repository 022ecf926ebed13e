// Package exports owns the block devices that the appliance serves: disks of savesets, read only or under an overlay that
// takes what is written.
//
// It owns which exports there are, who may see them, their leases on savesets, and their overlays' folders; it is what an
// nbd.Server asks. It does not own the protocol (nbd), the bytes of overlays (nbd/overlay) or of savesets (dedup), listeners,
// nor who may make an export (api/server).
//
// # Where an export is
//
// An export is a folder <dir>/<id> with the file export.json (FORMAT.md), written last, and durable before Create returns.
// With an overlay it has the overlay's files, too. The folders are the truth: they are found again at the start, whatever
// became of the catalog. A folder without export.json is what a creation or a drop left that was cut short: it is removed.
//
//	INVARIANT E1: while an export exists and the store is open, its saveset is leased. Load and Attach come before anybody
//	else may delete savesets.
//	INVARIANT E2: while connections are open an export is neither committed nor, unless somebody insists, dropped. While it
//	is committed it takes no connections.
//
// # States
//
//	ready       connections are taken
//	locked      the store is not open
//	sealed      the saveset is of an encrypted task, whose key is not here
//	committing  its overlay becomes a saveset
//	broken      the saveset is gone, or the overlay cannot be opened: it can only be dropped
//
// # Who sees what
//
// A peer with a client's certificate sees the exports that name the client. A peer on the appliance itself (unix socket,
// loopback) without a certificate sees all. Anybody else sees those that name "*". What a peer may not see does not exist for
// it.
package exports
