//go:build !linux

package dedup

// adviseHugePages does nothing: these systems decide by themselves.
func adviseHugePages(addr, n uintptr) {}
