// Package volume owns what a disk is divided into: it finds partitions (Scan), tells by its first bytes what lies in one
// (Identify), and states what a file system that is open for reading offers (FS).
//
// Partition tables are read by diskfs/go-diskfs; what a header claims is bounded here before the library sees it. The file
// systems themselves are read by the packages beside this one.
package volume
