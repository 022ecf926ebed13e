// Package press makes Zstandard frames (RFC 8878) of short pieces of memory, as fast as it can at the ratio of
// Zstandard's fastest levels. It owns the search for matches and the coding of sequences; literals are coded by huff0.
// It does not decompress, and it knows nothing of chunks.
//
// A general encoder copies its input into a window that slides, since more may follow. Here all input is at hand: it is
// its own window, offsets reach back to its start, and a table of plain positions, cleared for every frame, needs no
// check of distance or age. Matches shorter than seven bytes are found by luck only: they save next to nothing
// behind an entropy coder, and each of them takes the time of a long one.
//
// Frames are single segments with a content size, no dictionary and no checksum. Blocks have their own sequence tables,
// or the predefined ones where sequences are few; literals may use the Huffman table of the block before.
package press
