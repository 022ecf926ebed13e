//go:build linux

package savesettree_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
	"coffer/fusefs"
	"coffer/fusefs/savesettree"
	"coffer/fusefs/savesettree/savesettreetest"
)

// Savesets of a real store.

func newStore(t testing.TB, dir string) *dedup.Store {
	t.Helper()
	data, err := keys.NewKeyFile(bytes.NewReader(bytes.Repeat([]byte{7}, 256)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.KeyFile(data)
	if err != nil {
		t.Fatal(err)
	}
	fs := vfs.OS()
	b, err := blob.OpenDir(fs, filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := dedup.Create(t.Context(), dedup.Options{Blob: b, FS: fs, SpoolDir: filepath.Join(dir, "spool"),
		IndexDir: filepath.Join(dir, "index"), Key: key, Reserve: -1, Logger: discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// runSink puts what is captured into a run of a store.
type runSink struct {
	run   *dedup.Run
	lane  *dedup.Lane
	h     *digest.Hasher
	enc   *frame.Encoder
	data  frame.Packer
	nodes frame.Packer
	seen  map[digest.Digest]bool
}

func (s *runSink) fresh(ctx context.Context, d digest.Digest) (bool, error) {
	if s.seen[d] {
		return false, nil
	}
	s.seen[d] = true
	have := []bool{false}
	err := s.run.Have(ctx, []digest.Digest{d}, have)
	return !have[0], err
}

func (s *runSink) PutChunk(ctx context.Context, b []byte) (digest.Digest, error) {
	d := s.h.Sum(b)
	fresh, err := s.fresh(ctx, d)
	if err != nil || !fresh {
		return d, err
	}
	if !s.data.Fits(len(b)) {
		if err := s.flushData(ctx); err != nil {
			return d, err
		}
	}
	s.data.Add(d, b)
	return d, nil
}

func (s *runSink) flushData(ctx context.Context) error {
	if s.data.Empty() {
		return nil
	}
	_, err := s.lane.PutFrame(ctx, s.data.Encode(s.enc, nil))
	s.data.Reset()
	return err
}

func (s *runSink) PutNode(ctx context.Context, d digest.Digest, rec []byte) error {
	fresh, err := s.fresh(ctx, d)
	if err != nil || !fresh {
		return err
	}
	if !s.nodes.Fits(len(rec)) {
		if err := s.flushNodes(ctx); err != nil {
			return err
		}
	}
	s.nodes.Add(d, rec)
	return nil
}

// flushNodes sends data first: a node is taken only when its chunks are there.
func (s *runSink) flushNodes(ctx context.Context) error {
	if err := s.flushData(ctx); err != nil || s.nodes.Empty() {
		return err
	}
	err := s.run.PutNodes(ctx, s.nodes.Encode(s.enc, nil))
	s.nodes.Reset()
	return err
}

// backup stores a directory as a saveset.
func backup(t testing.TB, s *dedup.Store, dir string, started time.Time) dedup.Manifest {
	t.Helper()
	ctx := t.Context()
	run, err := s.Begin(ctx, dedup.RunOptions{ID: fmt.Sprint("run-", started.Unix())})
	if err != nil {
		t.Fatal(err)
	}
	lane, err := run.Lane(dedup.LaneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k := s.Domain().Keys
	sink := &runSink{run: run, lane: lane, h: digest.NewHasher(k.Data), enc: frame.NewEncoder(), seen: map[digest.Digest]bool{}}
	root, err := savesettreetest.Capture(ctx, sink, digest.NewHasher(k.Node), dir)
	if err == nil {
		err = sink.flushNodes(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := run.Commit(ctx, dedup.Draft{Root: root, Client: "c", Task: "t", TaskType: "path", RequestedLevel: "FULL", Level: "FULL",
		Reason: "requested", Started: started, Finished: started.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mountStore(t testing.TB, s *dedup.Store) string {
	t.Helper()
	if err := fusefs.Available(); err != nil {
		if os.Getenv("COFFER_REQUIRE_FUSE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	tree := savesettree.New(savesettree.FromStore(s), savesettree.Options{Logger: discard()})
	dir := t.TempDir()
	mnt, err := fusefs.Mount(t.Context(), dir, tree.Root(), fusefs.Options{Logger: discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mnt.Unmount(); err != nil {
			t.Error(err)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sources copies some source code of this project: a tree of small files.
func sources(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	if err := os.CopyFS(dir, os.DirFS("../../dedup")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestStore reads a saveset of a real store from the mount, many programs at a time.
func TestStore(t *testing.T) {
	src := sources(t)
	s := newStore(t, t.TempDir())
	backup(t, s, src, at("2026-11-22T02:15:00Z"))
	set := filepath.Join(mountStore(t, s), "c/t/latest") + "/"
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if out, err := exec.Command("diff", "-r", src, set).CombinedOutput(); err != nil {
				t.Errorf("diff: %v\n%.1000s", err, out)
			}
		})
	}
	wg.Wait()
}

// BenchmarkCopy copies a tree of small files and one of large ones out of the mount of a real store, the kernel's caches
// dropped, beside a copy from the original.
func BenchmarkCopy(b *testing.B) {
	src := os.Getenv("COFFER_BENCH_TREE")
	if src == "" {
		src = sources(b)
	}
	base := b.TempDir()
	s := newStore(b, base)
	backup(b, s, src, at("2026-11-22T02:15:00Z"))
	set := filepath.Join(mountStore(b, s), "c/t/latest") + "/."
	for _, c := range []struct{ name, from string }{{"original", src + "/."}, {"mount", set}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0) // names and inodes; not possible everywhere
				to, err := os.MkdirTemp("/dev/shm", "coffer-bench-")
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if out, err := exec.Command("cp", "-a", c.from, to).CombinedOutput(); err != nil {
					b.Fatalf("cp: %v\n%.1000s", err, out)
				}
				b.StopTimer()
				_ = os.RemoveAll(to)
				b.StartTimer()
			}
		})
	}
}
