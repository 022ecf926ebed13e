package backup

import (
	"os"
	"testing"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/sms"
)

// BenchmarkTree backs up a real tree, named by COFFER_BENCH_TREE, in full and again unchanged.
func BenchmarkTree(b *testing.B) {
	tree := os.Getenv("COFFER_BENCH_TREE")
	if tree == "" {
		b.Skip("COFFER_BENCH_TREE names no tree")
	}
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(tree)}}
	b.Run("full", func(b *testing.B) {
		for b.Loop() {
			s := agenttest.New()
			s.Discard = true
			s.Verify = os.Getenv("COFFER_BENCH_VERIFY") != ""
			benchRun(b, s.Backup(nil), order)
		}
	})
	s := agenttest.New()
	s.Discard = true
	first := s.Backup(nil)
	if _, err := Run(b.Context(), Options{Order: order, Run: first}); err != nil {
		b.Fatal(err)
	}
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			parent := first.AsParent()
			benchRun(b, s.Backup(parent), order)
		}
	})
}

func benchRun(b *testing.B, run *agenttest.Run, order sms.BackupOrder) {
	start := agenttest.CPUSeconds()
	if _, err := Run(b.Context(), Options{Order: order, Run: run}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(agenttest.CPUSeconds()-start, "cpu-s/last")
	c := run.Committed.Counters
	b.ReportMetric(float64(c.Entries), "entries")
	b.ReportMetric(float64(c.Unchanged), "unchanged")
	b.ReportMetric(float64(c.BytesRead)/1e6, "MBread")
	b.ReportMetric(float64(c.BytesSent)/1e6, "MBsent")
	b.ReportMetric(c.Source.Seconds(), "s-source")
	b.ReportMetric(c.Hashing.Seconds(), "s-hash")
	b.ReportMetric(c.Compress.Seconds(), "s-compress")
	b.ReportMetric(float64(len(run.Notices())), "notices")
}
