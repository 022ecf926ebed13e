package durable

// syncDir does nothing: Windows has no sync of a directory, NTFS journals the rename.
func syncDir(string) error { return nil }
