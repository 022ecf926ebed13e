package main

import (
	"bufio"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spent is time: on the clock, and of the processors.
type spent struct{ wall, cpu float64 }

// measure runs f and tells what it took.
func measure(f func() error) (spent, error) {
	cpu, start := cpuSeconds(), time.Now()
	err := f()
	return spent{time.Since(start).Seconds(), cpuSeconds() - cpu}, err
}

// cpuSeconds of this process, user and system.
func cpuSeconds() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// memory is the resident memory of this process in bytes: its own, and that of mapped files.
type memory struct{ anon, file int64 }

func memoryNow() (m memory) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return m
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "RssAnon:":
			m.anon = n << 10
		case "RssFile:":
			m.file = n << 10
		}
	}
	return m
}

// watch samples memory until the returned function is called, which gives the highest values.
func watch() func() memory {
	var top memory
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			m := memoryNow()
			top.anon, top.file = max(top.anon, m.anon), max(top.file, m.file)
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() memory {
		close(done)
		wg.Wait()
		return top
	}
}

// settle gives memory that nobody uses back, so that what one phase left is not counted for the next.
func settle() {
	runtime.GC()
	debug.FreeOSMemory()
}

// treeBytes is the disk space that files below a directory take.
func treeBytes(dir string) (n int64) {
	_ = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}

// dropCaches empties the page cache; false when that is not allowed.
func dropCaches() bool {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0) == nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
