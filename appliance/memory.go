package appliance

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"

	"coffer/appliance/config"
)

// setMemoryLimit tells Go's collector the limit in force: what is configured, and beside it what the cache of frames holds, which
// cannot be collected. A limit of the environment stays.
func setMemoryLimit(conf config.Config, frames int64) {
	if conf.Memory > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(conf.Memory) + frames)
	}
}

// Bounds of the cache of frames where none is configured.
const (
	leastFrameMemory = 64 << 20
	mostFrameMemory  = 4 << 30
)

// frameMemory is the budget of decoded frames in force, in bytes.
func frameMemory(c config.Store) int64 {
	if c.FrameMemory > 0 {
		return int64(c.FrameMemory)
	}
	return min(max(machineMemory("/")/8, leastFrameMemory), mostFrameMemory)
}

// machineMemory is the memory of the machine, or of the control group (version 2) that this process lives in where that has
// less; root is that of the file system. 0 when nobody knows.
func machineMemory(root string) int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	total := int64(info.Totalram) * int64(info.Unit)
	b, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup")) // without it there is no limit
	for line := range bytes.Lines(b) {
		group, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::/"))
		if !ok {
			continue
		}
		for dir := string(group); ; dir = filepath.Dir(dir) {
			b, _ := os.ReadFile(filepath.Join(root, "sys/fs/cgroup", dir, "memory.max")) // the root has none; "max" is no number
			if n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64); err == nil {
				total = min(total, n)
			}
			if dir == "." || dir == "/" || dir == "" {
				break
			}
		}
	}
	return total
}
