package blob

import "coffer/dedup/vfs"

// OpenDir opens the directory root of fs as a Store, and makes it if it is missing.
func OpenDir(fs vfs.FS, root string) (*Dir, error) { panic("todo") }

// Dir is a Store in a directory. It also is an Adopter, a FreeSpacer and a Locker.
type Dir struct{ Store }
