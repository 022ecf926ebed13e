package ingest_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// wideTree backs up the entries of a tree like the kernel's: 80,000 files with a chunk each, 5,000 directories, a side
// stream. The chunks are one and the same.
func wideTree(b *testing.B, s *site) dedup.Manifest {
	ctx := b.Context()
	link, stop := s.agent(s.addr, "web1", nil)
	defer stop()
	r, k := s.backup("web1", nil)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		b.Fatal(err)
	}
	defer run.Close()
	var contents []recipe.Content
	h := digest.NewHasher(run.Domain().Keys.Data)
	var files [][]byte
	for i := range 2000 {
		files = append(files, fmt.Appendf(nil, "%08d", i))
		contents = append(contents, recipe.Content{Kind: recipe.OneChunk, Digest: h.Sum(files[i])})
	}
	if err := readFiles(ctx, run, run.Lane(0), files, make([]recipe.Content, len(files)), 0, 1); err != nil {
		b.Fatal(err)
	}
	nodes := digest.NewHasher(run.Domain().Keys.Node)
	root, side := recipe.NewDirBuilder(run, nodes), recipe.NewSideBuilder(run, nodes)
	check := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	n := uint64(0)
	row := func(name string) {
		n++
		check(side.Add(ctx, recipe.SideRow{Dev: 1, Ino: n * 7919, CTime: recipe.Time{Sec: 1_700_000_000 + int64(n%977), Nsec: uint32(n * 7_919 % 1e9)}, Captured: true}, name))
	}
	for d := range 5000 {
		name := fmt.Sprintf("directory-%05d", d)
		row(name)
		dir := recipe.NewDirBuilder(run, nodes)
		for f := range 16 {
			e := recipe.Entry{Name: fmt.Sprintf("some_source_file_%02d.c", f), Mode: recipe.ModeRegular | 0o644, Size: 8,
				MTime: recipe.Time{Sec: 1_700_000_000 + int64(n%977), Nsec: uint32(n * 104_729 % 1e9)}, Content: contents[n%2000]}
			row(e.Name)
			check(dir.Add(ctx, e, recipe.Totals{}))
		}
		ref, err := dir.Finish(ctx)
		check(err)
		check(root.Add(ctx, recipe.Entry{Name: name, Mode: recipe.ModeDir | 0o755,
			Content: recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}}, ref.Totals))
	}
	rootRef, err := root.Finish(ctx)
	check(err)
	sideRef, err := side.Finish(ctx)
	check(err)
	_, err = run.Commit(ctx, sms.Commit{Root: rootRef, Side: sideRef, Started: time.Now(), Finished: time.Now()})
	check(err)
	<-res
	return k.committed
}

// BenchmarkReadParent reads the whole tree of a parent, with its side stream beside, as an INCR does.
func BenchmarkReadParent(b *testing.B) {
	s := newSite(b, nil)
	m := wideTree(b, s)
	link, _ := s.agent(s.addr, "web1", nil)
	for b.Loop() {
		r, _ := s.backup("web1", &m)
		res := wait(b.Context(), r)
		run, err := link.Open(b.Context(), r.Token())
		if err != nil {
			b.Fatal(err)
		}
		began, start := cpu(), time.Now()
		n := readParent(b, run)
		b.ReportMetric((cpu() - began).Seconds(), "cpu-s")
		b.ReportMetric(time.Since(start).Seconds(), "wall-s")
		if n != 85_000 {
			b.Fatalf("%d entries", n)
		}
		_ = run.Close()
		<-res
	}
}

func readParent(b *testing.B, run *uplink.Session) (n int) {
	ctx := context.Background()
	side := recipe.NewSideIter(run, run.Parent().Side.Digest)
	var walk func(dir digest.Digest)
	walk = func(dir digest.Digest) {
		it := recipe.NewDirIter(run, dir)
		for {
			e, _, err := it.Next(ctx)
			if err == io.EOF {
				return
			}
			if err == nil {
				_, err = side.Next(ctx)
			}
			if err != nil {
				b.Fatal(err)
			}
			n++
			if e.IsDir() {
				walk(e.Content.Digest)
			}
		}
	}
	walk(run.Parent().Root.Digest)
	return n
}

// BenchmarkFetch restores 3,000 files of 20 KiB on average from a store in memory: index, containers, decryption, wire,
// decompression and digests included.
func BenchmarkFetch(b *testing.B) {
	s := newSite(b, nil)
	tr := randomTree(5, 3000)
	total := int64(0)
	for _, d := range tr {
		for _, f := range d {
			total += int64(len(f))
		}
	}
	m := mustBackup(b, s, s.addr, tr, nil)
	link, _ := s.agent(s.addr, "web1", nil)
	for b.Loop() {
		r := s.restore("web1", m)
		res := wait(b.Context(), r)
		run, err := link.Open(b.Context(), r.Token())
		if err != nil {
			b.Fatal(err)
		}
		began := cpu()
		if _, err := fetchTree(b.Context(), run, run.Root().Digest); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric((cpu() - began).Seconds(), "cpu-s")
		_ = run.Close()
		<-res
	}
	b.SetBytes(total)
}
