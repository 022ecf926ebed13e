package dedup

// Progress of long work.
type Progress struct {
	// Phase is a word: "mark", "sweep", "objects", "pages", "reseal".
	Phase string
	// Done and Total count in Unit ("containers", "savesets", "bytes", "chunks", "objects"). Total is 0 while unknown.
	Done, Total int64
	Unit        string
}
