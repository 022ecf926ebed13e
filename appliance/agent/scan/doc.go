// Package scan walks a client's file systems for a backup: it lists directories ahead of its caller with several
// workers, looks at every entry once, sorts by the bytes of the names, and applies the rules of what belongs to the
// sources: excludes, one file system, never into the kernel's own file systems.
//
// The tree it shows is that of a saveset: it starts at "/" and holds the sources at their absolute paths, with the
// directories that lead there (and nothing else in them). Where a source is named through symlinks, the links are shown
// where they are and what they lead to where it is, so that the path still leads there after a restore.
//
// It does not read content, attributes or flags, and it does not compare with earlier runs.
package scan
