package dedup

import (
	"bytes"
	"context"
	mathrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// imageChunk is the chunk size of the disks of these tests.
const imageChunk = recipe.MinImageChunk

// backupDisk stores a disk, given as chunks of which nil ones are holes, as d/vda.raw. What old has, it takes over from there.
func backupDisk(t testing.TB, s *Store, disk [][]byte, size int, parent *Manifest, old [][]byte) Manifest {
	t.Helper()
	ctx := t.Context()
	o := RunOptions{ID: "run"}
	if parent != nil {
		o.Parents = []SavesetID{parent.ID}
	}
	run, err := s.Begin(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	var oldImage *recipe.Image
	if parent != nil {
		v, e := openDisk(t, s, *parent)
		defer v.Close()
		if oldImage, err = recipe.OpenImage(ctx, v, e.Content, e.Size); err != nil {
			t.Fatal(err)
		}
	}
	var changed [][]byte
	for i, c := range disk {
		if c != nil && (i >= len(old) || !bytes.Equal(c, old[i])) {
			changed = append(changed, c)
		}
	}
	if err := a.sendData(ctx, testTree{"d/vda.raw": changed}); err != nil {
		t.Fatal(err)
	}
	root, err := a.buildDisk(ctx, disk, size, oldImage, old)
	if err == nil {
		err = a.sendNodes(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := run.Commit(ctx, Draft{Root: root, Client: "kvm1", Task: "vm", TaskType: "path", Level: "FULL",
		Started: time.Unix(1, 0), Finished: time.Unix(2, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (a *agent) buildDisk(ctx context.Context, disk [][]byte, size int, oldImage *recipe.Image, old [][]byte) (recipe.Ref, error) {
	data, node := digest.NewHasher(a.keys.Data), digest.NewHasher(a.keys.Node)
	b := recipe.NewImageBuilder(a.into(), node)
	if err := b.Start(uint64(size), imageChunk); err != nil {
		return recipe.Ref{}, err
	}
	for i, c := range disk {
		var err error
		switch {
		case i < len(old) && bytes.Equal(c, old[i]):
			err = b.Take(ctx, oldImage, 1)
		case c == nil:
			err = b.Hole(ctx, 1)
		default:
			err = b.Add(ctx, data.Sum(a.stored(c)))
		}
		if err != nil {
			return recipe.Ref{}, err
		}
	}
	content, _, err := b.Finish()
	if err != nil {
		return recipe.Ref{}, err
	}
	d := recipe.NewDirBuilder(a.into(), node)
	e := recipe.Entry{Name: "vda.raw", Mode: recipe.ModeRegular | 0o600, Size: uint64(size), Content: content}
	if err := d.Add(ctx, e, recipe.Totals{}); err != nil {
		return recipe.Ref{}, err
	}
	below, err := d.Finish(ctx)
	if err != nil {
		return recipe.Ref{}, err
	}
	e = recipe.Entry{Name: "d", Mode: recipe.ModeDir | 0o755, Content: recipe.Content{Kind: recipe.DirTree, Digest: below.Digest}}
	if err := d.Add(ctx, e, below.Totals); err != nil {
		return recipe.Ref{}, err
	}
	return d.Finish(ctx)
}

// openDisk opens the saveset and finds its disk.
func openDisk(t testing.TB, s *Store, m Manifest) (*View, recipe.Entry) {
	t.Helper()
	v, err := s.View(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	dir, _, err := recipe.Lookup(t.Context(), v, m.Root.Digest, "d")
	if err != nil {
		t.Fatal(err)
	}
	e, _, err := recipe.Lookup(t.Context(), v, dir.Content.Digest, "vda.raw")
	if err != nil {
		t.Fatal(err)
	}
	return v, e
}

// flatten is the disk's bytes.
func flatten(disk [][]byte, size int) []byte {
	out := make([]byte, size)
	for i, c := range disk {
		copy(out[i*imageChunk:], c)
	}
	return out
}

func mustCompareDisk(t *testing.T, s *Store, m Manifest, disk [][]byte, size int) {
	t.Helper()
	v, e := openDisk(t, s, m)
	defer v.Close()
	f, err := OpenFile(v, e)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if err := f.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, flatten(disk, size)) {
		t.Fatalf("the disk of saveset %v is not what it was: %v", m.ID, err)
	}
}

// randomDisk is a disk with holes, whose last chunk is short.
func randomDisk(r *mathrand.Rand, chunks int) (disk [][]byte, size int) {
	size = (chunks-1)*imageChunk + 512
	for i := range chunks {
		n := min(imageChunk, size-i*imageChunk)
		if r.IntN(3) == 0 {
			disk = append(disk, nil)
			continue
		}
		disk = append(disk, randomBytes(r, n))
	}
	return disk, size
}

// TestDiskImagesInTheStore: generations that share subtrees outlive each other, a check finds nothing wrong with them, and
// where there is damage it names the disk, which the next backup heals.
func TestDiskImagesInTheStore(t *testing.T) {
	r := newRand(t)
	o := memOptions(t)
	bad := &badSectors{Store: o.Blob}
	o.Blob = bad
	s := mustCreate(t, o)
	first, size := randomDisk(r, 700) // six leaves and one inner node
	m := backupDisk(t, s, first, size, nil, nil)
	second := slices.Clone(first)
	for range 20 {
		second[r.IntN(600)] = randomBytes(r, imageChunk)
	}
	n := backupDisk(t, s, second, size, &m, first)
	mustCompareDisk(t, s, m, first, size)
	mustCompareDisk(t, s, n, second, size)
	if rep := mustCheck(t, s); len(rep.Found) != 0 {
		t.Fatalf("a check found %+v", rep.Found)
	}
	mustDelete(t, s, m.ID)
	if _, err := s.Collect(t.Context(), CollectOptions{Sparse: 1}); err != nil {
		t.Fatal(err)
	}
	mustCompareDisk(t, s, n, second, size)
	if rep := mustCheck(t, s); len(rep.Found) != 0 {
		t.Fatalf("after a collection a check found %+v", rep.Found)
	}

	id := containersOf(t, o, container.Data)[0]
	dir, err := container.OpenDirectory(t.Context(), o.Blob, id, s.ring)
	if err != nil {
		t.Fatal(err)
	}
	f := dir.Frame(0)
	bad.name, bad.from, bad.to = id.Name(), f.Offset+10, f.Offset+20
	if rep := mustCheck(t, s); len(rep.Found) == 0 {
		t.Fatal("a check found no damage")
	}
	harmed, err := s.Affected(t.Context(), 10)
	if err != nil || len(harmed) != 1 || !slices.Equal(harmed[0].Paths, []string{"d/vda.raw"}) {
		t.Fatalf("damage harms %+v, %v", harmed, err)
	}
	third := backupDisk(t, s, second, size, nil, nil)
	if got := s.Damage(); len(got) != 0 {
		t.Errorf("after the next backup: %+v", got)
	}
	mustCompareDisk(t, s, third, second, size)
}

// benchDisk is a disk of 64 MiB in chunks of 128 KiB, all in the frame cache.
func benchDisk(b *testing.B, cache int64) *File {
	b.Helper()
	const size, chunk = 64 << 20, 128 << 10
	o := memOptions(b)
	o.FrameMemory, o.LocalityMemory, o.NodeMemory, o.ContainerSize = cache, 64<<20, 32<<20, 32<<20
	s := mustCreate(b, o)
	r := mathrand.New(mathrand.NewPCG(1, 2))
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(r.IntN(24))
	}
	ctx := context.Background()
	run, err := s.Begin(ctx, RunOptions{ID: "run"})
	if err != nil {
		b.Fatal(err)
	}
	a, err := newAgent(run, s, 1)
	if err != nil {
		b.Fatal(err)
	}
	disk := slices.Collect(slices.Chunk(content, chunk))
	data, node := digest.NewHasher(a.keys.Data), digest.NewHasher(a.keys.Node)
	if err := a.sendData(ctx, testTree{"d/vda.raw": disk}); err != nil {
		b.Fatal(err)
	}
	ib := recipe.NewImageBuilder(a, node)
	if err := ib.Start(size, chunk); err != nil {
		b.Fatal(err)
	}
	for _, c := range disk {
		if err := ib.Add(ctx, data.Sum(c)); err != nil {
			b.Fatal(err)
		}
	}
	content2, _, err := ib.Finish()
	if err != nil {
		b.Fatal(err)
	}
	d := recipe.NewDirBuilder(a, node)
	e := recipe.Entry{Name: "vda.raw", Mode: recipe.ModeRegular, Size: size, Content: content2}
	if err := d.Add(ctx, e, recipe.Totals{}); err != nil {
		b.Fatal(err)
	}
	root, err := d.Finish(ctx)
	if err == nil {
		err = a.sendNodes(ctx)
	}
	if err != nil {
		b.Fatal(err)
	}
	m, err := run.Commit(ctx, Draft{Root: root, Client: "c", Task: "t", TaskType: "path", Level: "FULL", Started: time.Unix(1, 0), Finished: time.Unix(2, 0)})
	if err != nil {
		b.Fatal(err)
	}
	v, err := s.View(ctx, m.ID)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = v.Close() })
	f, err := OpenFile(v, e)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// BenchmarkFileRandom reads blocks of 4 KiB that are in the cache.
func BenchmarkFileRandom(b *testing.B) {
	f := benchDisk(b, 256<<20)
	all := make([]byte, f.Size())
	if err := f.ReadAt(b.Context(), all, 0); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		r, p := mathrand.New(mathrand.NewPCG(mathrand.Uint64(), 1)), make([]byte, 4096)
		for pb.Next() {
			if err := f.ReadAt(b.Context(), p, r.Int64N(f.Size()/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFileSequential reads a disk in order, cold (the cache holds an eighth of it) and warm.
func BenchmarkFileSequential(b *testing.B) {
	for name, cache := range map[string]int64{"cold": 8 << 20, "warm": 256 << 20} {
		b.Run(name, func(b *testing.B) {
			f := benchDisk(b, cache)
			p := make([]byte, 256<<10)
			b.SetBytes(f.Size())
			b.ResetTimer()
			for b.Loop() {
				for off := int64(0); off < f.Size(); off += int64(len(p)) {
					if err := f.ReadAt(b.Context(), p, off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
