// Package ext4 reads ext2, ext3 and ext4 file systems over an io.ReaderAt (Documentation/filesystems/ext4 of Linux).
//
// Extents and block maps, sparse and preallocated files, inline data, hashed and linear directories, META_BG, 64-bit block
// numbers and block sizes from 1 to 64 KiB are read. The journal is not replayed: what was not yet written back when the disk
// was copied is as it was before. Refused by name: compressed file systems, external journals, files that are encrypted.
//
// It is our own because what exists for Go keeps an entry in memory for every block that an extent claims (a single node of 4
// KiB can claim eleven million), reads only from a file's beginning on, and shares one position between all readers.
package ext4
