package ingest_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"coffer/appliance/agent/disk"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// backupDisk stores a disk as the only file of a saveset.
func backupDisk(t *testing.T, s *site, content []byte, changes disk.Changes, parent *dedup.Manifest) (dedup.Manifest, disk.Stats) {
	t.Helper()
	ctx := testContext(t)
	link, stop := s.agent(s.addr, "web1", nil)
	defer stop()
	r, k := s.backup("web1", parent)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	stats, err := sendDisk(ctx, run, content, changes)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-res; got.Err != nil || got.Committed == nil {
		t.Fatalf("the run ended with %+v", got)
	}
	return k.committed, stats
}

func sendDisk(ctx context.Context, run uplink.Run, content []byte, changes disk.Changes) (disk.Stats, error) {
	started := time.Now()
	old, err := disk.Lookup(ctx, run, nil, "vda.raw")
	if err != nil {
		return disk.Stats{}, err
	}
	src := disk.FromReaderAt(bytes.NewReader(content), int64(len(content)))
	e, stats, err := disk.Store(ctx, run, src, changes, disk.Options{Parent: old})
	if err != nil {
		return stats, err
	}
	e.Name, e.Mode = "vda.raw", recipe.ModeRegular|0o600
	b := recipe.NewDirBuilder(run, digest.NewHasher(run.Domain().Keys.Node))
	if err := b.Add(ctx, e, recipe.Totals{}); err != nil {
		return stats, err
	}
	root, err := b.Finish(ctx)
	if err != nil {
		return stats, err
	}
	_, err = run.Commit(ctx, sms.Commit{Root: root, Started: started, Finished: time.Now()})
	return stats, err
}

// readDisk reads the disk of a saveset from the store.
func readDisk(t *testing.T, s *site, m dedup.Manifest) []byte {
	t.Helper()
	v := s.view(m.ID)
	e, _, err := recipe.Lookup(t.Context(), v, m.Root.Digest, "vda.raw")
	if err != nil {
		t.Fatal(err)
	}
	f, err := dedup.OpenFile(v, e)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, f.Size())
	if err := f.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDiskGenerations stores a disk and what changes in it over the wire, into a real store.
func TestDiskGenerations(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	s := newSite(t, nil)
	content := make([]byte, 24<<20+4096)
	for i := range 12 << 20 {
		content[i] = byte(r.IntN(64))
	}
	m, _ := backupDisk(t, s, content, disk.All(int64(len(content))), nil)
	generations, contents := []dedup.Manifest{m}, [][]byte{slices.Clone(content)}
	for range 3 {
		var changed []disk.Range
		for at := int64(0); ; {
			at += 4096 * (1 + r.Int64N(300))
			n := 4096 * (1 + r.Int64N(64))
			if at+n > int64(len(content)) {
				break
			}
			for i := at; i < at+n; i++ {
				content[i] = byte(r.IntN(256))
			}
			changed = append(changed, disk.Range{Off: at, N: n})
			at += n
		}
		next, stats := backupDisk(t, s, content, func(yield func(disk.Range) bool) error {
			for _, x := range changed {
				if !yield(x) {
					break
				}
			}
			return nil
		}, &m)
		dirty := uint64(0)
		for _, x := range changed {
			dirty += uint64(x.N)
		}
		if stats.Read != dirty || stats.Fetched == 0 {
			t.Errorf("%d bytes changed: %+v", dirty, stats)
		}
		m = next
		generations, contents = append(generations, m), append(contents, slices.Clone(content))
	}
	for i, m := range generations {
		if !bytes.Equal(readDisk(t, s, m), contents[i]) {
			t.Errorf("generation %d comes back other than it was", i)
		}
	}
}
