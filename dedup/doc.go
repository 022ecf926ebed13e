// Package dedup is the store: it takes chunks and recipe nodes from runs, keeps each once, and reads savesets back.
//
// It owns the order in which things become durable, who may rely on what, and the small objects of a store (domain,
// epoch, manifest, state: FORMAT.md). It builds on packages that own the formats: digest and chunk (identity), frame
// (compression), recipe (nodes), container and blob (bytes at rest), keys, and index. It does not know agents, the
// wire, tasks or retention: who may read or delete what is decided above it.
//
// # A run
//
// Begin, then Lane and PutFrame for data, PutNodes for recipes, then Commit or Abort. Everything that arrives is
// decompressed within its limits and every digest is recomputed before a byte is stored. Frames are stored as they
// came; nodes, which come in small frames, are packed into full ones. A lane fills one container at a time in the spool;
// a full one is sealed by a goroutine of its own while the lane goes on.
//
// # Durability
//
// In this order: container sealed and synced in the spool → put into the blob store → live, and pinned by its run → in
// the index, synced → (all containers of the run) manifest durable → Commit returns. A container of nodes is put only
// when every data container that its nodes refer to has gone all that way. So, whenever the machine dies:
//
//   - a saveset whose Commit returned is whole;
//   - a manifest that is there is of a saveset that is whole;
//   - a node in the blob store has everything below it there;
//   - containers of a run that broke stay, and the next run finds their chunks; spool files are cleared at Open.
//
// A failed write or sync abandons the container and fails the run; the store goes on. Writes are refused with NoSpace
// before they would touch the reserve; states may use it, for a deletion is what makes space.
//
// # Index
//
// The index is a hint. A location counts only when its container is live and the row there has the whole digest. At
// Open, containers without a mark in the index are entered (it was behind); an index that marks containers which are
// gone (it is ahead), or is damaged, foreign or lost, is made anew from the containers' directories.
//
// The copy of a chunk that the index names is the canonical one: the only one that GC keeps.
//
// # Pins, leases and GC
//
// A run leases its parents and pins every container that it wrote or was told "have" from; a view leases its saveset.
// Pin and condemn stand under one lock: of pin(c) and condemn(c) one fails. "Have" is an answer to one run and ends with
// it. GC itself is not here yet. These are its rules, and what is here obeys them already:
//
//  1. Roots are the savesets that are not deleted, those that are leased, and every node that the index names in a node
//     container that a run has pinned: a run that was told "have" for a node relies on all below it.
//  2. Condemn before anything else. What is condemned is stored again by the runs that need it, and their copy takes the
//     entry in the index over. Where a run's new container keeps another's entry, the run pins that one.
//  3. Entries of dead nodes leave the index, synced, before any container that holds what is below them is condemned.
//     Have therefore asks the index for nodes, and never the locality cache.
//  4. Entries of data chunks leave the index only with their container: a dead chunk in a live container may be had.
//  5. Index entries (compare-and-delete) go before the container, its mark before both, and the locality cache forgets it.
//  6. A container of a broken run is left alone for three days from its creation.
//
// # What may run beside what
//
//	            run    view   SetState  delete  GC mark  GC sweep  check  reindex  Close
//	run         yes    yes    yes       1       yes      2         yes    no       3
//	view        yes    yes    yes       1       yes      4         yes    no       5
//	SetState    yes    yes    6         6       yes      yes       yes    no       5
//	delete      1      1      6         6       7        7         yes    no       5
//	GC mark     yes    yes    yes       7       no       no        yes    no       stops
//	GC sweep    2      4      yes       7       no       no        8      no       stops
//	check       yes    yes    yes       yes     yes      8         yes    no       stops
//	reindex     no     no     no        no      no       no        no     no       no
//
// 1: refused (InUse) while the saveset is leased. 2: by pin and condemn. 3: the run is aborted. 4: containers may go
// under a reader; it looks the chunk up once more. 5: Close wins; later calls are refused (Closed). 6: one at a time for
// each saveset. 7: a deletion counts from the next mark on. 8: check skips a container that went away. Reindex is part of
// Open: nothing runs beside it. Two processes: never; the spool's lock, the blob store's lock and the epoch keep the
// second one out, and a writer whose epoch was taken over writes no manifest.
//
// # Memory
//
// Budgets bound the index, the directories of the locality cache, and decoded frames of data and of nodes. Beside them
// a lane holds up to 8 MiB (its largest chunk) and one container's rows, and as many frames as processors (twice) are
// being decoded at a time.
package dedup
