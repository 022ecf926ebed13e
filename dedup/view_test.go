package dedup

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// openView makes a store with one saveset of a random tree and opens it; chunks are its chunks in order of the paths.
func openView(t *testing.T, o Options) (s *Store, v *View, ds []digest.Digest, chunks [][]byte) {
	t.Helper()
	s = mustCreate(t, o)
	tree := randomTree(fixedRand(), 80)
	m := mustBackup(t, s, tree, 2)
	v, err := s.View(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	h := digest.NewHasher(s.Domain().Keys.Data)
	for _, name := range tree.names() {
		for _, c := range tree[name] {
			ds, chunks = append(ds, h.Sum(c)), append(chunks, c)
		}
	}
	return s, v, ds, chunks
}

func TestPlanAndFrames(t *testing.T) {
	s, v, ds, chunks := openView(t, memOptions(t))
	ctx := t.Context()
	twice := append(append([]digest.Digest(nil), ds...), ds[0])
	items, err := v.Plan(ctx, twice)
	if err != nil {
		t.Fatal(err)
	}
	dec, h := frame.NewDecoder(), digest.NewHasher(s.Domain().Keys.Data)
	wanted := 0
	var buf FrameBuffer
	for i, it := range items {
		if i > 0 && items[i-1].Loc.Compare(it.Loc) >= 0 {
			t.Errorf("%v comes after %v", it.Loc, items[i-1].Loc)
		}
		f, err := v.Frame(ctx, it.Loc, &buf)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := dec.Decode(f, nil)
		if err == nil {
			err = f.Verify(h, plain)
		}
		if err != nil || len(plain) != int(it.PlainBytes) {
			t.Fatal(it.Loc, err)
		}
		for _, w := range it.Want {
			wanted++
			if !holdsChunk(f, plain, twice[w], chunks[w%len(ds)]) {
				t.Errorf("%v does not hold chunk %d", it.Loc, w)
			}
		}
	}
	if wanted != len(twice) {
		t.Errorf("%d chunks planned, want %d", wanted, len(twice))
	}
	_, err = v.Plan(ctx, []digest.Digest{{1, 2, 3}})
	wantKind(t, err, NotFound)
	_, err = v.Frame(ctx, Loc{items[0].Loc.Container, 1 << 20}, nil)
	wantKind(t, err, NotFound)
	_, err = v.Frame(ctx, Loc{container.MakeID(77, 1), 0}, nil)
	wantKind(t, err, NotFound)
}

func holdsChunk(f frame.Frame, plain []byte, d digest.Digest, want []byte) bool {
	for i := range f.Refs {
		if f.Refs[i].Digest == d {
			return bytes.Equal(f.Chunk(i, plain), want)
		}
	}
	return false
}

func TestReadAtAndReadAhead(t *testing.T) {
	s, v, ds, chunks := openView(t, memOptions(t))
	ctx := t.Context()
	p := make([]byte, 100)
	for i := range ds {
		off := int64(len(chunks[i]) / 2)
		n, err := v.ReadAt(ctx, ds[i], p, off)
		if want := chunks[i][off:min(int(off)+100, len(chunks[i]))]; err != nil || !bytes.Equal(p[:n], want) {
			t.Fatalf("chunk %d at %d: %d bytes, %v", i, off, n, err)
		}
	}
	if n, err := v.ReadAt(ctx, ds[0], p, 1<<40); n != 0 || err != nil {
		t.Errorf("read past the end: %d, %v", n, err)
	}
	_, err := v.ReadAt(ctx, ds[0], p, -1)
	wantKind(t, err, Invalid)
	_, err = v.Chunk(ctx, v.Manifest().Root.Digest)
	wantKind(t, err, NotFound)
	_, err = v.Node(ctx, ds[0])
	wantKind(t, err, NotFound)

	// What is read ahead is loaded once, whoever comes first.
	s.frames = newFrameCache(s.opts.FrameMemory)
	v.ReadAhead(ds[:20])
	frames := make(map[Loc]bool)
	for _, at := range must(s.locate(ctx, ds[:20])) {
		frames[at.loc()] = true
	}
	for _, d := range ds[:20] {
		if _, err := v.Chunk(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	if _, misses, _ := s.frames.stats(); misses != uint64(len(frames)) {
		t.Errorf("%d loads of %d frames", misses, len(frames))
	}
}

// A flipped byte anywhere in a data container is Damaged for what it hits, and nothing else suffers.
func TestDamageIsNamed(t *testing.T) {
	o := memOptions(t)
	s, v, ds, chunks := openView(t, o)
	places := must(s.locate(t.Context(), ds))
	victim := places[0].loc()
	info := places[0].dir.Frame(victim.Frame)
	f, err := o.FS.OpenReadWrite("/store/" + victim.Container.Name())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	at := info.Offset + int64(info.Size)/2
	_, err = f.ReadAt(b, at)
	b[0] ^= 1
	_, werr := f.WriteAt(b, at)
	if err := errors.Join(err, werr, f.Close()); err != nil {
		t.Fatal(err)
	}
	for i, d := range ds {
		got, err := v.Chunk(t.Context(), d)
		if places[i].loc() == victim {
			wantKind(t, err, Damaged)
		} else if err != nil || !bytes.Equal(got, chunks[i]) {
			t.Fatalf("chunk %d: %v", i, err)
		}
	}
}

// A container whose directory cannot be read does not count: the next run stores its chunks again, and heals the saveset.
func TestDamagedContainerIsStoredAgain(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	tree := randomTree(fixedRand(), 40)
	m := mustBackup(t, s, tree, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	for id := range s.containers.m {
		size := must(o.Blob.Size(t.Context(), id.Name()))
		f := must(o.FS.OpenReadWrite("/store/" + id.Name()))
		if err := errors.Join(f.Truncate(size/2), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, compare(t.Context(), s, m.ID, tree), Damaged)
	again := mustBackup(t, s, tree, 1)
	if again.New != m.New {
		t.Errorf("%d bytes stored again, want %d", again.New, m.New)
	}
	mustCompare(t, s, again.ID, tree)
	mustCompare(t, s, m.ID, tree)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	mustCompare(t, s, m.ID, tree)
}

func TestFrameCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFrameCache(1000)
		ctx := t.Context()
		var loads atomic.Int32
		open := make(chan struct{})
		load := func(context.Context) ([]byte, error) {
			loads.Add(1)
			<-open
			return make([]byte, 100), nil
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if b, err := c.get(ctx, Loc{1, 1}, load); err != nil || len(b) != 100 {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(open)
		wg.Wait()
		if n := loads.Load(); n != 1 {
			t.Errorf("%d loads of one frame", n)
		}

		// The loader is cancelled: those who wait load by themselves.
		first, cancel := context.WithCancel(ctx)
		waits := func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		wg.Go(func() {
			if _, err := c.get(first, Loc{2, 1}, waits); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := c.get(ctx, Loc{2, 1}, load); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()

		for i := range uint32(50) {
			if _, err := c.get(ctx, Loc{3, i}, load); err != nil {
				t.Fatal(err)
			}
			if _, _, bytes := c.stats(); bytes > 1000 {
				t.Fatalf("%d bytes cached, budget 1000", bytes)
			}
		}
		boom := errors.New("boom")
		if _, err := c.get(ctx, Loc{4, 0}, func(context.Context) ([]byte, error) { return nil, boom }); !errors.Is(err, boom) || c.has(Loc{4, 0}) {
			t.Errorf("an error is cached, or lost: %v", err)
		}
	})
}
