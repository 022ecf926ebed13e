// Package backup carries out backup orders: it reads a client's trees, or a command's output, sends the chunks that the
// appliance lacks and builds the recipe.
//
// # The way of a file
//
//	scan.Scanner ──▶ planner ──▶ readers ──▶ senders ──▶ lanes
//	                    │           │
//	                    └──▶ builder (in order) ──▶ nodes
//
// The planner goes through the tree in order beside the parent's, and puts what it meets into batches: an entry that is
// taken over from the parent is complete at once, others are captured by a reader. Readers take a batch (a MiB of small
// files, or one large file), read, hash, and ask which chunks are missing; senders wait for the answers, compress the
// missing ones in frames and put them on a lane. The builder takes the batches in the planner's order, waits until each
// is captured, and feeds the tree and the side stream. A directory in which nothing changed keeps its parent's digest
// without being built.
//
// A file that the task names as a disk image is stored by package disk, as what a machine sees of it.
//
// Nothing is done per file that can be done per batch: there are no goroutines or channels for single files.
//
// INVARIANT: a chunk is asked for before the node that refers to it is put; uplink then keeps their order on the wire.
package backup
