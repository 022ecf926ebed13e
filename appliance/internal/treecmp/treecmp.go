//go:build linux

// Package treecmp compares two file trees as strictly as Linux lets a program look: names, types, modes, owners,
// nanosecond modification times, device numbers, symlink targets, extended attributes (POSIX ACLs and capabilities among
// them), inode flags, hard-link groups, contents, the maps of data and holes, and allocated space.
//
// It walks by directory descriptors, so that paths beyond 4,096 bytes are nothing special, and reports every difference
// as path and aspect. It does not compare what no restore can give back: inode numbers, ctime, atime, birth time, the
// sizes and link counts of directories.
package treecmp

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Aspect is one thing in which two entries may differ. Aspects are bits, so that a set of them is an Aspect, too.
type Aspect uint32

// What Compare looks at.
const (
	Missing    Aspect = 1 << iota // stands in the first tree only
	Extra                         // stands in the second tree only
	Type                          // file, directory, symlink, device, fifo, socket
	Mode                          // permission bits with setuid, setgid and sticky
	Owner                         // uid and gid
	MTime                         // modification time to the nanosecond
	Rdev                          // device number of a device node
	Target                        // target of a symlink
	Xattr                         // names and values of extended attributes, ACLs and capabilities included
	Flags                         // inode flags that chattr sets: immutable, append-only, nodump, noatime, sync
	Links                         // which paths are one file
	Size                          // length of a file
	Content                       // bytes of a file
	Holes                         // map of data and holes at block granularity
	Blocks                        // allocated space, 5 % and two blocks apart at most
	Unreadable                    // an entry could not be looked at in one of the trees; never left out
)

var aspectNames = []string{"missing", "extra", "type", "mode", "owner", "mtime", "rdev", "target", "xattr", "flags",
	"links", "size", "content", "holes", "blocks", "unreadable"}

// String lists the names of the aspects in the set.
func (a Aspect) String() string {
	var names []string
	for i, name := range aspectNames {
		if a&(1<<i) != 0 {
			names = append(names, name)
			a &^= 1 << i
		}
	}
	if a != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(a)))
	}
	return strings.Join(names, "+")
}

// Difference is one finding. Path is relative to the roots; the roots themselves are ".".
type Difference struct {
	Path   string
	What   Aspect
	Detail string // for people: what the first tree has, then the second
}

// String shows the path quoted, since names may hold any byte.
func (d Difference) String() string { return fmt.Sprintf("%q: %v: %s", d.Path, d.What, d.Detail) }

// Options say what to leave out. The zero value compares everything.
type Options struct {
	Ignore     Aspect                 // aspects that are not compared
	SkipXattr  func(name string) bool // true: leave this attribute out on both sides
	Exclude    func(path string) bool // true: leave this path, and all below it, out on both sides
	SkipRoot   bool                   // compare what stands in the roots, not their own metadata
	OneFS      bool                   // do not enter other file systems mounted below the roots
	Workers    int                    // entries compared at the same time; 0 = twice the processors
	MaxReports int                    // differences that are kept; 0 = 1000; the count goes on
}

// Result is the outcome of a comparison that ran to its end.
type Result struct {
	Differences []Difference // sorted by path, at most Options.MaxReports
	Count       int          // how many there were
	Entries     int64        // entries of the first tree that were compared
	Bytes       int64        // content bytes compared, holes not counted
}

// Equal reports whether nothing differs.
func (r Result) Equal() bool { return r.Count == 0 }

// String lists the differences, one a line.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d differences in %d entries", r.Count, r.Entries)
	for _, d := range r.Differences {
		b.WriteString("\n\t" + d.String())
	}
	return b.String()
}

// Compare compares the trees below the directories a and b. The error tells only that the comparison itself could not be
// done (a root that is no directory, a cancelled context); an entry that cannot be read is an Unreadable difference.
// Neither tree may change meanwhile. Needs root where the trees hold what others may not read.
func Compare(ctx context.Context, a, b string, o Options) (Result, error) {
	if o.Workers <= 0 {
		o.Workers = 2 * runtime.GOMAXPROCS(0)
	}
	if o.MaxReports <= 0 {
		o.MaxReports = 1000
	}
	c := newComparison(ctx, o)
	if err := c.run(a, b); err != nil {
		return Result{}, fmt.Errorf("compare %s with %s: %w", a, b, err)
	}
	slices.SortFunc(c.diffs, func(x, y Difference) int {
		return cmp.Or(cmp.Compare(x.Path, y.Path), cmp.Compare(x.What, y.What))
	})
	return Result{Differences: c.diffs, Count: c.count, Entries: c.entries.Load(), Bytes: c.bytes.Load()}, nil
}

// TB is the part of testing.TB that Check needs.
type TB interface {
	Helper()
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Check fails the test with every difference between the trees.
func Check(t TB, a, b string, o Options) {
	t.Helper()
	res, err := Compare(t.Context(), a, b, o)
	if err != nil {
		t.Fatalf("%v", err)
		return
	}
	if !res.Equal() {
		t.Errorf("trees %s and %s: %v", a, b, res)
	}
}
