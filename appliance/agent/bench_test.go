package agent_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/agent/backup"
	"coffer/appliance/agent/restore"
	"coffer/appliance/sms"
)

// BenchmarkRestore restores a real tree, named by COFFER_BENCH_TREE, into memory.
func BenchmarkRestore(b *testing.B) {
	tree := os.Getenv("COFFER_BENCH_TREE")
	if tree == "" {
		b.Skip("COFFER_BENCH_TREE names no tree")
	}
	s := agenttest.New()
	run := s.Backup(nil)
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(tree)}}
	if _, err := backup.Run(b.Context(), backup.Options{Order: order, Run: run}); err != nil {
		b.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "coffer-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	start, spent := 0.0, 0.0
	defer func() { b.ReportMetric(spent/float64(b.N), "cpu-s/op") }()
	for b.Loop() {
		start = agenttest.CPUSeconds()
		rest := s.Restore(run.Committed.Root)
		out, err := restore.Run(b.Context(), restore.Options{Run: rest,
			Order: sms.RestoreOrder{Target: sms.Path(filepath.Join(dir, "t"))}})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		spent += agenttest.CPUSeconds() - start
		b.ReportMetric(float64(out.Counters.Entries), "entries")
		b.ReportMetric(out.Counters.Compress.Seconds(), "s-decompress")
		b.ReportMetric(out.Counters.Hashing.Seconds(), "s-hash")
		b.ReportMetric(out.Counters.Source.Seconds(), "s-write")
		b.ReportMetric(float64(len(rest.Notices())), "notices")
		if err := os.RemoveAll(filepath.Join(dir, "t")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkOverTheWire does the whole way with a real store in this process: FULL, unchanged INCR, restore into memory.
func BenchmarkOverTheWire(b *testing.B) {
	tree := os.Getenv("COFFER_BENCH_TREE")
	if tree == "" {
		b.Skip("COFFER_BENCH_TREE names no tree")
	}
	dir, err := os.MkdirTemp("/dev/shm", "coffer-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	a := newAppliance(b, 0)
	a.agent()
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(tree)}}
	for b.Loop() {
		start, cpu := time.Now(), agenttest.CPUSeconds()
		lap := func(what string) {
			b.ReportMetric(time.Since(start).Seconds(), what+"-s")
			b.ReportMetric(agenttest.CPUSeconds()-cpu, what+"-cpu-s")
			start, cpu = time.Now(), agenttest.CPUSeconds()
		}
		full, _ := a.backup(order, nil)
		lap("full")
		_, k := a.backup(order, &full)
		lap("incr")
		b.ReportMetric(float64(k.commit.Counters.Unchanged), "unchanged")
		out, _ := a.restore(full, sms.RestoreOrder{Target: sms.Path(filepath.Join(dir, "t"))})
		lap("restore")
		b.ReportMetric(float64(out.Counters.Entries), "entries")
		_ = os.RemoveAll(filepath.Join(dir, "t"))
	}
}
