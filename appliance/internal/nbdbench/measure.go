package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// step is one measurement. Its result is MB/s or IO/s: more is better.
type step struct {
	name  string
	unit  string
	cold  bool
	write bool
	run   func(ctx context.Context, o options, uri string) (float64, error)
	// goals by the name of the other server; 0: none was set
	nbdkit, qemu float64
}

var steps = []step{
	{name: "sequential, 1 connection", unit: "MB/s", cold: true, run: sequential(1), nbdkit: 0.5},
	{name: "sequential, 4 connections", unit: "MB/s", cold: true, run: sequential(4), nbdkit: 0.5},
	{name: "4 KiB random, depth 1", unit: "IO/s", cold: true, run: random("randread", "4k", 1, "100%")},
	{name: "4 KiB random, depth 16", unit: "IO/s", cold: true, run: random("randread", "4k", 16, "100%")},
	{name: "64 KiB random, depth 1", unit: "IO/s", cold: true, run: random("randread", "64k", 1, "100%")},
	{name: "64 KiB random, depth 16", unit: "IO/s", cold: true, run: random("randread", "64k", 16, "100%")},
	{name: "sequential, 1 connection", unit: "MB/s", run: sequential(1), nbdkit: 0.8},
	{name: "sequential, 4 connections", unit: "MB/s", run: sequential(4), nbdkit: 0.8},
	{name: "4 KiB random, depth 1", unit: "IO/s", run: random("randread", "4k", 1, "100%")},
	{name: "4 KiB random, depth 16", unit: "IO/s", run: random("randread", "4k", 16, "100%"), qemu: 0.7},
	{name: "64 KiB random, depth 1", unit: "IO/s", run: random("randread", "64k", 1, "100%")},
	{name: "64 KiB random, depth 16", unit: "IO/s", run: random("randread", "64k", 16, "100%")},
	{name: "4 KiB random in 32 MiB, depth 1", unit: "IO/s", run: random("randread", "4k", 1, hot)},
	{name: "4 KiB random in 32 MiB, depth 16", unit: "IO/s", run: random("randread", "4k", 16, hot), qemu: 0.7},
	{name: "4 KiB random writes, depth 1", unit: "IO/s", write: true, run: random("randwrite", "4k", 1, "100%"), qemu: 0.5},
	{name: "4 KiB random writes, depth 16", unit: "IO/s", write: true, run: random("randwrite", "4k", 16, "100%"), qemu: 0.5},
	{name: "64 KiB random writes, depth 16", unit: "IO/s", write: true, run: random("randwrite", "64k", 16, "100%"), qemu: 0.5},
}

func (s step) title() string {
	switch {
	case s.write:
		return s.name
	case s.cold:
		return s.name + ", cold"
	}
	return s.name + ", warm"
}

// sequential reads the whole disk.
func sequential(connections int) func(context.Context, options, string) (float64, error) {
	return func(ctx context.Context, o options, uri string) (float64, error) {
		st, err := os.Stat(o.disk)
		if err != nil {
			return 0, err
		}
		begun := time.Now()
		cmd := exec.CommandContext(ctx, "nbdcopy", "--connections="+strconv.Itoa(connections), "--requests=64", uri, "null:")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("nbdcopy: %w: %s", err, out)
		}
		return float64(st.Size()) / 1e6 / time.Since(begun).Seconds(), nil
	}
}

// hot is a part of the disk that the store's cache of frames holds as it comes (frame_memory, 64 MiB).
const hot = "32m"

func random(kind, size string, depth int, span string) func(context.Context, options, string) (float64, error) {
	return func(ctx context.Context, o options, uri string) (float64, error) {
		report := filepath.Join(o.dir, "fio.json")
		cmd := exec.CommandContext(ctx, "fio", "--name=x", "--ioengine=nbd", "--uri="+uri, "--rw="+kind, "--bs="+size, "--iodepth="+strconv.Itoa(depth),
			"--time_based", "--runtime="+strconv.Itoa(o.seconds), "--size="+span, "--randrepeat=0", "--norandommap", "--output-format=json", "--output="+report)
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("fio: %w: %s", err, out)
		}
		b, err := os.ReadFile(report)
		if err != nil {
			return 0, err
		}
		var r struct {
			Jobs []struct{ Read, Write struct{ IOPS float64 } }
		}
		if err := json.Unmarshal(b, &r); err != nil || len(r.Jobs) != 1 {
			return 0, fmt.Errorf("fio's report: %d jobs, %w", len(r.Jobs), err)
		}
		return r.Jobs[0].Read.IOPS + r.Jobs[0].Write.IOPS, nil
	}
}

// measureRound takes every step, the servers one after the other, beginning with another one in each round.
func measureRound(ctx context.Context, o options, servers []server, r *results, round int) error {
	for _, st := range steps {
		for i := range servers {
			s := servers[(i+round)%len(servers)]
			if err := measure(ctx, o, s, st, r); err != nil {
				return fmt.Errorf("%s: %s: %w", s.name(), st.title(), err)
			}
		}
	}
	return nil
}

func measure(ctx context.Context, o options, s server, st step, r *results) error {
	uri := s.read()
	if st.write {
		uri = s.write()
	}
	if uri == "" {
		return nil
	}
	if err := prepare(ctx, o, s, st, uri); err != nil {
		return err
	}
	before := cpu(s.pid())
	begun := time.Now()
	v, err := st.run(ctx, o, uri)
	if err != nil {
		return err
	}
	r.add(st.title(), s.name(), v, (cpu(s.pid())-before)/(v*time.Since(begun).Seconds()))
	fmt.Fprintf(os.Stderr, "  %-34s %-9s %10.0f %s\n", st.title(), s.name(), v, st.unit)
	return nil
}

// prepare makes caches cold or warm. A warm one has seen the whole disk once: then each keeps what it can.
func prepare(ctx context.Context, o options, s server, st step, uri string) error {
	if st.cold {
		return s.cool(ctx)
	}
	if st.write {
		return nil
	}
	if err := warm(o.disk); err != nil {
		return err
	}
	_, err := sequential(1)(ctx, o, uri)
	return err
}

// cpu is what a process has used, in seconds.
func cpu(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64) // the kernel's own text
	system, _ := strconv.ParseFloat(f[12], 64)
	const ticks = 100 // USER_HZ
	return (user + system) / ticks
}
