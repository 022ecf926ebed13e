//go:build linux || darwin || freebsd

package fsmeta

// SavesetPath turns a path as people on this system write it into one of a saveset: absolute, with forward slashes.
func SavesetPath(native string) string { return native }
