// Package fusefs shows a read-only tree of immutable files as a Linux file system.
//
// It has two halves. The model (Node, Dir, File, Symlink, Xattrs, Seeker, Flagged) is what a tree implements; it knows
// nothing of FUSE and is tested unmounted. The server answers the kernel's requests from a model: raw go-fuse operations,
// a table of the inodes that the kernel holds, and one place that maps errors to errno.
//
// What the kernel is told: entries and attributes of ordinary nodes stay valid for a day, file contents and directory
// listings stay in its cache, opening and closing costs no message. Only volatile directories, where names come and go,
// are asked again after a second. The mount is read-only, nosuid, nodev, noexec, and for root alone unless asked
// otherwise.
//
// A model's error becomes an errno, and a log line where it is not an ordinary answer. Every request runs under a
// context that ends at Options.Timeout, some time after the caller was interrupted, and at Unmount: a model that honours
// its context never hangs a caller.
//
// It does not know savesets: fusefs/savesettree does.
package fusefs
