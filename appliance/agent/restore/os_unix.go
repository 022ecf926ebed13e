//go:build !windows

package restore

import (
	"os"
	"strconv"
	"strings"

	"coffer/appliance/agent/fsmeta"
)

// umask returns the process's mask, without changing it; all bits where the system does not tell, so that every mode is
// set.
func umask() uint32 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "Umask:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(text), 8, 32)
			if err == nil {
				return uint32(mask)
			}
		}
	}
	return 0o777
}

func owner() (uid, gid uint32) { return uint32(os.Geteuid()), uint32(os.Getegid()) }

// makePath makes the target directory with all that lead to it.
func makePath(path string) (*fsmeta.Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	return fsmeta.OpenPath(path)
}
