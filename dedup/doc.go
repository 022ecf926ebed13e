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
// # What reading trusts
//
// A record of a container is authentic, or is not read: AES-GCM or keyed BLAKE3, bound to container, number and lengths. So is
// the directory that says which digest lies where in it. What was stored as a digest's bytes had that digest. Therefore views
// compute the digests of nodes, but not those of data again; check does (Deep), in its turn, and so do who moves chunks to
// other frames (collection, heal), and agents that restore. What this leaves to check alone is a byte that the
// appliance's own memory changed between verification and sealing. The commit of an overlay trusts the same: where a block
// was written in the middle of a chunk, the rest of it is taken over as it is read, and gets a new digest with it.
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
// Open, containers without a mark in the index are entered (it was behind); an index that is ahead, damaged, foreign or lost is
// made anew from the containers' directories. Ahead is one that was kept while an earlier state of the store was put back: it
// knows containers which are gone, or has given entries up for tombstones that the store does not have. Where the store has no
// tombstones at all they may have been lost, too, and the nodes count as those of a store whose tombstones are damaged.
//
//	INVARIANT I1: a mark goes only with its container. Before locations of a container's rows may go elsewhere the mark says so,
//	or says that the container is to be entered again.
//	An entry in a container that cannot be pinned just then, because its entries are being taken over, stays until that is done.
//	INVARIANT I2: before entries are given up for a tombstone, the index notes the number of the tombstones.
//
// The copy of a chunk that the index names is the canonical one: the only one that GC keeps.
//
// # Pins and leases
//
// A run leases its parents and pins every container that it wrote or was told "have" from; a view leases its saveset.
// Pin and condemn stand under one lock: of pin(c) and condemn(c) one fails. "Have" is an answer to one run and ends with
// it. What is condemned is stored again by the runs that need it, and their copy takes the entry in the index over; where
// a run's new container keeps another's entry, the run pins that one. What lies below its parents a run refers to without
// having it: PutNodes and Commit wait until what is condemned of that was moved, or is reprieved.
//
// # Rewriting
//
// Data that changes a little from run to run comes to lie in many containers. Each run counts in how many a reader finds
// each 64 MiB (Manifest.Switches). A run that may rewrite is told "missing" for up to 5 % of what it has, where the last
// 64 MiB lie in more than 16 containers, in those that give least: where they lie in fewer there is little to gain. It is told
// so first, where it names a saveset that it is likely to be like (RunOptions.Previous), for the frames of which that one has
// least, and less than half: who reads it decodes them all, for little. Its
// copy takes the entry in the index over: only while no other run pins the old container, and none can until it is done
// (takeOver). What lies there then is garbage. A collection that marked the old copy keeps the new one, for its container is
// young.
//
// # Garbage collection
//
// A collection marks, takes dead nodes out, then sweeps. It keeps one bit per slot of each canonical copy. Its roots are
// the savesets that are not deleted. What no saveset reaches, deleted ones included, is of a run that broke; while the
// container is younger than three days it counts as live, and a node among it is a root. That is not said of a data
// container in which an earlier collection found all reached, since the store was opened: that one may have taken the
// nodes out and ended before the chunks. Condemning comes before any decision, and every decision is made on marks that
// are brought up to date after it:
//
//	INVARIANT G1 (final marks): once a container is condemned no run can come to rely on it. Whoever relied on it before
//	has given its pin back, and a run gives its pins back only after its manifest is known or after it wrote its last node
//	container. So marks from all savesets and all nodes of containers that came since the last look, or were on their way into
//	the index, are final for it. A run whose node container or manifest may or may not be there, because its writing failed,
//	keeps its pins until the store closes.
//	INVARIANT G2 (nodes first): dead nodes leave the index all together, when every node container that holds one is
//	condemned. One that cannot be condemned is pinned: each node that the index names in it is a root. Have asks the index
//	for nodes, and never the locality cache; what it found in a container that was condemned at some time it looks up
//	again when it has the pin.
//	INVARIANT G3 (no return): before anything below a dead node goes, the tombstones name it durably, in every container
//	that has a copy of it. They are replaced as a whole, for a parent must not stay without its child. Who enters a
//	container into the index again leaves out what they name, and removes it if it is there still. A container that cannot
//	be read is named as a whole. While it is in doubt whether they were written, nobody has what they would name.
//	INVARIANT G4 (data last): an entry of a data chunk leaves the index only with its container. A dead chunk in a live
//	container may be had.
//	INVARIANT G5 (copy before delete): live chunks of a condemned container are durable in another and have the entry in
//	the index, synced, before the container is deleted. In this order: mark gone → new container put → index → asked again
//	whether all lies elsewhere → entries of dead rows gone (compare-and-delete), synced → nobody finds the container →
//	blob deleted.
//	INVARIANT G6 (deleted savesets last): a deleted saveset's manifest goes only when a collection has taken out all that
//	only it reached; its states go after it.
//	INVARIANT G7 (only what is known): marks are set where the index says and held against the containers' rows before
//	anything is decided on them. Only containers that were there when the mark began are judged, because chunks may have
//	moved into others since. While a manifest, a node that a saveset needs, or a container that a run relies on cannot be
//	read, nothing is removed. No copy goes of a chunk that a saveset needs and that the index does not have, or has in a damaged
//	place.
//	INVARIANT G8 (gone for good): no collection begins while a container or a manifest that is gone may come back in a crash,
//	because its removal could not be synced.
//
// A crash at any point leaves copies twice or garbage, never a gap, and the next collection starts with a new mark.
//
// Containers are copied forward that are sparse, under an old key, or small while there are eight of about their size; in
// the order of the newest saveset that has the chunks. One with remains in it is not, so that a copy holds none: it is as
// old as the oldest container that it is made of. Beside open runs a collection takes 30 % of a processor. On a full
// disk it deletes what is empty, for which the reserve may be used, and copies nothing.
//
// # Domains
//
// A store has one primary domain, and one for each encrypted task. A container is of one domain, and so is a saveset.
//
//	INVARIANT D1 (one domain): a run writes into one domain, and Have, PutNodes and Commit know only what lies in containers
//	of that domain. What a run is told says nothing about another domain.
//	INVARIANT D2 (all sealed or none): the nodes of a run are all sealed by the run's key, or all open; the primary domain
//	has open ones only. A sealed node is taken by its clear part: its children are there, its body is the task's affair.
//
// # Keys
//
// All that is new is under the current store key. A new one is in the keyring, durably, before it seals anything; small
// objects are sealed again under it by Reseal, containers by GC, which copies those of old keys forward. An object is
// sealed again beside itself and only then leaves its old place: there is no moment without a whole form of it, and every
// reader takes either. An old key stays until it is destroyed, which is refused while a container or object names it, or
// one may still come: from a run that began under it, or from GC or healing.
//
// Where encryption was switched on, the plain key from before, which everybody knows, opens objects only until they have
// been sealed again, and containers only until none is left. What a plain container says is believed because of digests
// that authentic nodes and manifests name.
//
// # Damage
//
// A damaged frame's chunks and nodes are on the damage list, objects of the store; so are containers that cannot be read,
// references that lead nowhere, and small objects that do not open. Check finds them, and readers do. What is on the list,
// and every node above it, is not had by any run: runs store it again, and that heals. Reading goes on around it. A digest
// leaves the list when a copy of it that was read back is named by the index, or when nothing refers to it any more; the
// place stays bad.
//
//	INVARIANT D1: a place gets onto the list only after the index has durably lost the mark of its container, as in Condemn:
//	only then may others take its chunks over.
//	INVARIANT D2: while the nodes above damage are not known, no node is had.
//	INVARIANT D3: a run is held to the list as it was when the run began: what it was told then stays good, and what it says
//	later may rely on it. A saveset that is committed so is harmed like others, and the list names it.
//	INVARIANT D4: a container that is damaged as a whole goes only when all that is missed and can be read of it is stored
//	anew, and every node of the savesets can be read: below one that cannot, nobody knows what is missed.
//
// Domains, manifests and states, without which nothing could be read, or all could be deleted, have a second copy: 4 KiB for
// each, and a Put for each commit and change of state. It is written after its object is durable, and goes before it; so it
// never says what the object does not. It is read where the object does not open, and that is damage: healing puts the object
// back from the copy, or makes the copy anew. Checks make copies that are missing. A copy whose object is gone altogether
// is not taken for a loss: a program that does not know copies may have removed the object.
//
// Where the copy does not open either, a state may have been a deletion, a lock or a term. Its saveset stays (State.Doubt names
// the object) and nothing about it changes until the state is dismissed, which locks it. Such a manifest stops collections.
//
// # What may run beside what
//
//	            run    view   SetState  delete  GC mark  GC sweep  check  heal   keys   reindex  Close
//	run         yes    yes    yes       1       yes      2         yes    yes    9      no       3
//	view        yes    yes    yes       1       yes      4         yes    yes    yes    no       5
//	SetState    yes    yes    6         6       yes      yes       yes    yes    yes    no       5
//	delete      1      1      6         6       7        7         yes    yes    yes    no       5
//	GC mark     yes    yes    yes       7       no       no        8      10     yes    no       stops
//	GC sweep    2      4      yes       7       no       no        8      10     9      no       stops
//	check       yes    yes    yes       yes     8        8         no     10     yes    no       stops
//	heal        yes    yes    yes       yes     10       10        10     no     9      no       stops
//	keys        9      yes    yes       yes     yes      9         yes    9      no     no       5
//	reindex     no     no     no        no      no       no        no     no     no     no       no
//
// 1: refused (InUse) while the saveset is leased. 2: by pin and condemn. 3: the run is aborted. 4: containers may go
// under a reader; it looks the chunk up once more. 5: Close wins; later calls are refused (Closed). 6: one at a time for
// each saveset. 7: a deletion counts from the next mark on. 8: check skips a container that went away, and leaves one for
// later that proves to be readable after all. 9: a container is written under the key that was the newest when it was
// opened; a key is destroyed only when no container names it. 10: one at a time: they share one lock (Kind InUse names who
// holds it). Reindex is part of Open: nothing runs beside it. Mounts, exports and migration read through views, and count as
// such. Two processes: never; the spool's lock, the blob store's lock and the epoch keep the second one out, and a writer
// whose epoch was taken over writes no manifest.
//
// # Memory
//
// Budgets bound the index, the directories of the locality cache, and decoded frames of data and of nodes. Beside them
// a lane holds up to 8 MiB (its largest chunk), two pieces of its container (of 1.25 MiB, or of the largest frame that came)
// and its rows, and as many frames as processors (twice) are being decoded at a time. A collection has two bits a chunk,
// directories as many as the locality cache, the nodes that it still has to enter, and while it copies 40 bytes for each of
// up to a million chunks (CollectReport.Memory); Usage has four bytes a chunk.
package dedup
