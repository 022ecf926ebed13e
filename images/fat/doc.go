// Package fat reads FAT12, FAT16 and FAT32 file systems over an io.ReaderAt ("FAT: General Overview of On-Disk Format",
// Microsoft, version 1.03), with long names.
//
// Owners are root's, modes are those of a file to read; times are taken as UTC, for the disk does not say of which zone they
// are. Inode numbers are the places of directory entries. Names without a long form are shown as Windows does, in small
// letters where the entry says so, and in code page 437.
//
// It is our own because what exists for Go follows a chain of clusters that is a ring until memory ends, takes bytes that were
// not read for zeros, and holds the whole table in memory.
package fat
