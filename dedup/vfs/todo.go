package vfs

// OS is the operating system's file system.
func OS() FS { panic("todo") }

// Mem is a file system in memory.
type Mem struct{ FS }

// NewMem returns an empty file system with a root directory "/".
func NewMem() *Mem { panic("todo") }

// IsNoSpace tells whether an error says that the disk, or a quota, is full.
func IsNoSpace(err error) bool { panic("todo") }
