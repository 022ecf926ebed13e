package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// sampler reads the memory of some processes every few milliseconds. The
// kernel's own peak (VmHWM) counts mapped files too, so the anonymous part is
// sampled and the peak is given beside it.
type sampler struct {
	stop chan struct{}
	done sync.WaitGroup

	mu   sync.Mutex
	anon map[int]int64 // pid → highest RssAnon seen, bytes; guarded by mu
	hwm  map[int]int64 // pid → VmHWM, bytes; guarded by mu
}

func startSampler(pids func() []int) *sampler {
	s := &sampler{stop: make(chan struct{}), anon: map[int]int64{}, hwm: map[int]int64{}}
	s.done.Add(1)
	go func() {
		defer s.done.Done()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, pid := range pids() {
				s.read(pid)
			}
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
		}
	}()
	return s
}

func (s *sampler) read(pid int) {
	anon, hwm, ok := memoryOf(pid)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.anon[pid] = max(s.anon[pid], anon)
	s.hwm[pid] = max(s.hwm[pid], hwm)
}

// peaks ends the sampling and returns the highest figures of any process.
func (s *sampler) peaks() (anon, hwm int64) {
	close(s.stop)
	s.done.Wait()
	for pid := range s.anon {
		anon = max(anon, s.anon[pid])
		hwm = max(hwm, s.hwm[pid])
	}
	return anon, hwm
}

// of returns the peaks of one process; it may be called after peaks.
func (s *sampler) of(pid int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.anon[pid]
}

func memoryOf(pid int) (anon, hwm int64, ok bool) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, false
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		switch key, rest, _ := strings.Cut(sc.Text(), ":"); key {
		case "RssAnon":
			anon = kilobytes(rest)
		case "VmHWM":
			hwm = kilobytes(rest)
		}
	}
	return anon, hwm, true
}

func kilobytes(s string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(s), " kB"), 10, 64)
	return n << 10
}

// cpuOf returns the CPU seconds that a running process and the children that
// it has waited for have used.
func cpuOf(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 15 {
		return 0
	}
	ticks := 0.0
	for _, v := range f[11:15] { // utime stime cutime cstime
		n, _ := strconv.ParseFloat(v, 64)
		ticks += n
	}
	return ticks / 100
}
