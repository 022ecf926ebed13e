package appliance

import (
	"os"
	"path/filepath"
	"testing"

	"coffer/appliance/config"
)

// The tightest limit of a control group, its own or one above, counts for the machine's memory.
func TestMachineMemory(t *testing.T) {
	whole := machineMemory(t.TempDir())
	if whole < 256<<20 {
		t.Fatalf("the machine has %d bytes of memory", whole)
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no limit":        {map[string]string{"a/b/memory.max": "max\n"}, whole},
		"its own":         {map[string]string{"a/b/memory.max": "104857600\n", "a/memory.max": "209715200\n"}, 100 << 20},
		"one above":       {map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "209715200\n"}, 200 << 20},
		"more than there": {map[string]string{"a/b/memory.max": "9223372036854775807\n"}, whole},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			c.files["/proc/self/cgroup"] = "1:name=systemd:/x\n0::/a/b\n"
			for name, text := range c.files {
				path := filepath.Join(root, "sys/fs/cgroup", name)
				if filepath.IsAbs(name) {
					path = filepath.Join(root, name)
				}
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := machineMemory(root); got != c.want {
				t.Errorf("%d bytes, want %d", got, c.want)
			}
		})
	}
}

// What is configured is taken as it is; else the machine decides, within bounds.
func TestFrameMemory(t *testing.T) {
	if n := frameMemory(config.Store{FrameMemory: 1 << 20}); n != 1<<20 {
		t.Errorf("configured: %d bytes", n)
	}
	if n := frameMemory(config.Store{}); n < leastFrameMemory || n > mostFrameMemory {
		t.Errorf("by itself: %d bytes", n)
	}
}
