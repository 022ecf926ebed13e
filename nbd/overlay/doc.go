// Package overlay is a disk that can be written, over one that cannot: copy on write in blocks of 4 KiB.
//
// An overlay is a directory with two files (FORMAT.md): data, a sparse file in which a block lies at the disk's own offset,
// and map, a log that says of each block whether it is the base's, in data, or zeros. The package owns these files and the
// order in which they become durable. It does not know where the base comes from, who may write, or when an overlay ends.
//
// # What survives
//
// A write is in both files before it is acknowledged, so the death of the process loses nothing. After a loss of power:
//
//   - what was acknowledged before the last Flush (or forced unit access) is there;
//   - a block that was not in data at that Flush is as it was then, or as one of the later writes made it: its record has
//     the CRC of what it says is in data, and counts only if that is what lies there;
//   - a block that was in data is written in place: after a loss of power each of its bytes is an old or a later one, as on
//     any disk whose cache was not flushed;
//   - Unclean tells that the overlay had been written and was not closed, so that nobody goes on with a machine that thinks
//     its writes are there.
//
// # Order
//
// A block is written to data, then its record to the map, then its state changes, then the write is acknowledged. Flush
// syncs data, appends a commit record to the map, and syncs the map.
//
//	INVARIANT O1: the records up to the number that a commit record names describe bytes that were synced before it was
//	written.
//	INVARIANT O2: who changes blocks holds their stripes, from before it looks at their states until these have changed;
//	records and states change together, under one lock.
//	INVARIANT O3: after a failed sync nothing is acknowledged any more, because the system may have dropped what it could
//	not write. Reads go on.
package overlay
