package backup

import (
	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/scan"
	"coffer/dedup/recipe"
)

// op is what an item means to the builder.
type op uint8

const (
	opEntry op = iota // an entry that is no directory
	opEnter           // a directory; what follows is in it, up to its opLeave
	opLeave
)

// item is one step through the tree.
type item struct {
	op   op
	dir  *scan.Dir    // where the entry lies; of opEnter the directory itself
	stat *fsmeta.Stat // as the scanner saw it
	name string       // in the directory; e.Name may be another where a disk image is kept
	e    recipe.Entry // complete when the batch is done; the content of a directory is its parent run's, if any
	side recipe.SideRow
	// below sums up a directory of the parent run that e.Content names.
	below recipe.Totals

	capture bool // a reader fills in attributes, flags and content
	same    bool // e is what the parent has: for a directory, but for what is in it
	drained bool // opLeave: the parent's directory has no entry that is not here
	failed  bool // the entry is left out of the saveset
	image   bool // it is kept as a disk image
	// old is the parent's image of a disk; nil without one.
	old   *recipe.Entry
	link  *link
	first bool // the first of link's names: the others take what it has
}

// batch is a number of consecutive items.
type batch struct {
	items []item
	bytes int
	reads int           // items to capture
	done  chan struct{} // closed when all items are complete; nil when they were from the start
}

// link is a file with several names.
type link struct {
	group uint64
	left  uint64 // names not met yet
	// What the first name has; written and read by the builder.
	e      recipe.Entry
	side   recipe.SideRow
	failed bool
}

// inode tells files apart while a run lasts.
type inode struct{ dev, ino uint64 }
