package disk_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/agent/disk"
	"coffer/appliance/agent/uplink"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// memDisk is a disk in memory that refuses to be read where it did not change.
type memDisk struct {
	b       []byte
	changed []disk.Range
	lazy    bool // everything may be read
	fail    error
}

func (d *memDisk) Size() int64 { return int64(len(d.b)) }

func (d *memDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	if d.fail != nil {
		return d.fail
	}
	ok := d.lazy
	for _, r := range d.changed {
		ok = ok || !r.Zero && off >= r.Off && off+int64(len(p)) <= r.Off+r.N
	}
	if !ok {
		return errors.New("a part is read that did not change")
	}
	copy(p, d.b[off:])
	return nil
}

func (d *memDisk) changes(yield func(disk.Range) bool) error {
	for _, r := range d.changed {
		if !yield(r) {
			break
		}
	}
	return nil
}

// store stores a disk, with a parent or without, and reads it back.
func store(t *testing.T, s *agenttest.Store, d *memDisk, parent *recipe.Entry, o disk.Options) (recipe.Entry, disk.Stats) {
	t.Helper()
	run := s.Backup(nil)
	o.Parent = parent
	e, stats, err := disk.Store(t.Context(), run, d, d.changes, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := load(t, s, e, o.Key); !bytes.Equal(got, d.b) {
		at := 0
		for at < min(len(got), len(d.b)) && got[at] == d.b[at] {
			at++
		}
		t.Fatalf("disk of %d bytes comes back other than it was at byte %d of %d", len(d.b), at, len(got))
	}
	return e, stats
}

// load reads a disk back.
func load(t *testing.T, s *agenttest.Store, e recipe.Entry, key *seal.Key) []byte {
	t.Helper()
	var run uplink.Run = s.Restore(recipe.Ref{})
	if key != nil {
		run = uplink.Unseal(run, seal.NewOpener(*key))
	}
	it := recipe.NewStreamIter(run, e.Content, e.Size)
	var extents []recipe.Extent
	var items []uplink.FetchItem
	for {
		x, err := it.Next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if extents = append(extents, x); !x.Hole {
			items = append(items, uplink.FetchItem{Digest: x.Digest, Length: uint32(x.Length)})
		}
	}
	got, err := uplink.NewFetcher(run).Chunks(t.Context(), items)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, e.Size)
	for _, x := range extents {
		copy(out[x.Offset:x.Offset+x.Length], got[x.Digest])
	}
	return out
}

func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 2))
}

func noise(r *rand.Rand, p []byte) {
	for len(p) > 0 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], r.Uint64()|0x0101010101010101)
		p = p[copy(p, b[:]):]
	}
}

// next makes the following generation of a disk: parts of it change, and its length may.
func next(r *rand.Rand, d *memDisk) *memDisk {
	n := &memDisk{b: slices.Clone(d.b)}
	switch r.IntN(4) {
	case 0:
		n.b = n.b[:1+r.IntN(len(n.b))]
	case 1:
		n.b = append(n.b, make([]byte, 1+r.IntN(1<<18))...)
		noise(r, n.b[len(d.b):])
		n.lazy = true // what is beyond the parent is read without having been named
	}
	for at := 0; ; {
		at += 1 + r.IntN(1<<(6+r.IntN(14))) // apart: what touches is read as one
		length := 1 + r.IntN(1<<r.IntN(17))
		if at+length > len(n.b) {
			return n
		}
		zero := r.IntN(3) == 0
		if zero {
			clear(n.b[at : at+length])
		} else if r.IntN(4) > 0 {
			noise(r, n.b[at:at+length])
		}
		n.changed = append(n.changed, disk.Range{Off: int64(at), N: int64(length), Zero: zero})
		at += length
	}
}

// TestStoreModel stores generations of disks that change anywhere, and holds each against its bytes.
func TestStoreModel(t *testing.T) {
	r := newRand(t)
	for i := range 8 {
		key := seal.NewKey()
		o := disk.Options{ChunkSize: recipe.MinImageChunk << r.IntN(7)}
		s := agenttest.New()
		if i%2 == 1 {
			o.Key, s = &key, agenttest.NewSealed(key.ID())
		}
		s.Verify = true
		d := &memDisk{b: make([]byte, 1+r.IntN(1<<20)), lazy: true}
		d = next(r, d)
		d.lazy, d.changed = true, []disk.Range{{N: int64(len(d.b))}}
		e, _ := store(t, s, d, nil, o)
		for range 6 {
			d = next(r, d)
			e, _ = store(t, s, d, &e, o)
		}
		full := *d
		full.lazy, full.changed = true, []disk.Range{{N: int64(len(d.b))}}
		if again, stats := store(t, s, &full, nil, o); again.Content != e.Content || stats.New > 0 {
			t.Errorf("read as a whole the disk is %v (%d bytes new), as generations %v", again.Content, stats.New, e.Content)
		}
	}
}

// TestStoreReadsWhatChanged: the clean part of a chunk comes from the parent, and nothing else is read or sent.
func TestStoreReadsWhatChanged(t *testing.T) {
	r := newRand(t)
	const chunk = 16 << 10
	s := agenttest.New()
	d := &memDisk{b: make([]byte, 256*chunk), lazy: true, changed: []disk.Range{{N: 256 * chunk}}}
	noise(r, d.b[:200*chunk])
	e, stats := store(t, s, d, nil, disk.Options{ChunkSize: chunk})
	if stats.Read != 256*chunk || stats.Zero != 56*chunk || stats.New != 200*chunk || stats.Taken != 0 {
		t.Errorf("first: %+v", stats)
	}
	d = &memDisk{b: d.b, changed: []disk.Range{
		{Off: 10*chunk + 5, N: 100},
		{Off: 20 * chunk, N: chunk},
		{Off: 30 * chunk, N: 3 * chunk, Zero: true},
		{Off: 210*chunk + 7, N: 1},
	}}
	for _, x := range d.changed {
		clear(d.b[x.Off : x.Off+x.N])
		if !x.Zero {
			noise(r, d.b[x.Off:x.Off+x.N])
		}
	}
	_, stats = store(t, s, d, &e, disk.Options{})
	want := disk.Stats{Read: 100 + chunk + 1, Zero: 3 * chunk, Fetched: chunk, New: 3 * chunk,
		Taken: (256-6)*chunk + chunk - 100 + chunk - 1, Sent: stats.Sent}
	if stats != want {
		t.Errorf("second: %+v, want %+v", stats, want)
	}
}

func TestStoreOfNothing(t *testing.T) {
	e, _, err := disk.Store(t.Context(), agenttest.New().Backup(nil), &memDisk{}, disk.All(0), disk.Options{})
	if err != nil || e.Size != 0 || e.Content != (recipe.Content{}) {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestStoreFails(t *testing.T) {
	r := newRand(t)
	s := agenttest.New()
	d := &memDisk{b: make([]byte, 4<<20), lazy: true, changed: []disk.Range{{N: 4 << 20}}}
	noise(r, d.b)
	e, _ := store(t, s, d, nil, disk.Options{})
	run := s.Backup(nil)
	try := func(name string, d *memDisk, changes disk.Changes, want error) {
		t.Helper()
		_, _, err := disk.Store(t.Context(), run, d, changes, disk.Options{Parent: &e})
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := &memDisk{b: d.b, fail: errors.New("medium error")}
	try("a source that fails", broken, disk.All(4<<20), broken.fail)
	lost := errors.New("connection lost")
	try("changes that fail", d, func(func(disk.Range) bool) error { return lost }, lost)
	for name, changed := range map[string][]disk.Range{
		"overlapping": {{Off: 0, N: 10}, {Off: 5, N: 10}},
		"descending":  {{Off: 100, N: 10}, {Off: 5, N: 10}},
		"beyond":      {{Off: 4 << 20, N: 1}},
		"negative":    {{Off: -1, N: 1}},
		"huge":        {{Off: 1, N: 1<<63 - 1}},
	} {
		try(name, d, (&memDisk{changed: changed}).changes, nil)
	}
	for _, c := range s.Chunks() {
		s.Drop(c)
	}
	try("a parent without its chunks", &memDisk{b: d.b, lazy: true},
		(&memDisk{changed: []disk.Range{{Off: 1, N: 1}}}).changes, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := disk.Store(ctx, run, d, disk.All(4<<20), disk.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestLookup(t *testing.T) {
	r := newRand(t)
	for _, key := range []*seal.Key{nil, new(seal.Key)} {
		s := agenttest.New()
		if key != nil {
			*key = seal.NewKey()
			s = agenttest.NewSealed(key.ID())
		}
		d := &memDisk{b: make([]byte, 1<<20), lazy: true, changed: []disk.Range{{N: 1 << 20}}}
		noise(r, d.b)
		e, _ := store(t, s, d, nil, disk.Options{Key: key})
		e.Name, e.Mode = "vda.raw", recipe.ModeRegular|0o600
		run := s.Backup(nil)
		var sink recipe.Sink = run
		if key != nil {
			sink = seal.NewSink(run, *key)
		}
		b := recipe.NewDirBuilder(sink, digest.NewHasher(run.Domain().Keys.Node))
		for _, e := range []recipe.Entry{{Name: "domain.xml", Mode: recipe.ModeRegular}, e} {
			if err := b.Add(t.Context(), e, recipe.Totals{}); err != nil {
				t.Fatal(err)
			}
		}
		root, err := b.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		run = s.Backup(&uplink.Parent{Root: root})
		got, err := disk.Lookup(t.Context(), run, key, "vda.raw")
		if err != nil || got == nil || got.Content != e.Content {
			t.Errorf("%+v, %v", got, err)
		}
		for _, name := range []string{"domain.xml", "vdb.raw"} {
			if got, err := disk.Lookup(t.Context(), run, key, name); err != nil || got != nil {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
		if got, err := disk.Lookup(t.Context(), s.Backup(nil), key, "vda.raw"); err != nil || got != nil {
			t.Errorf("without a parent: %+v, %v", got, err)
		}
	}
}
