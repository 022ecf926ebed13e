package dedup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// isDisk reports whether a file of a testTree is a disk image: its chunks have imageChunk bytes each, the last one may have
// fewer, and nil is a hole. The last one is none, so that the chunks say how long the disk is.
func isDisk(name string) bool { return strings.HasSuffix(name, ".raw") }

// withDisk adds a disk to a tree.
func (t testTree) withDisk(r *mathrand.Rand) testTree {
	t["d00/vda.raw"] = sparseDisk(r)
	return t
}

// sparseDisk is a disk of some runs of data: of two levels of nodes, or, of which most is a hole, of three.
func sparseDisk(r *mathrand.Rand) [][]byte {
	chunks := 130 + r.IntN(500)
	if r.IntN(3) == 0 {
		chunks = 128*128 + 1 + r.IntN(1000)
	}
	disk := make([][]byte, chunks)
	for range 1 + r.IntN(6) {
		at := r.IntN(chunks - 1)
		for i := at; i < min(at+1+r.IntN(8), chunks-1); i++ {
			disk[i] = randomBytes(r, imageChunk)
		}
	}
	disk[chunks-1] = randomBytes(r, 1+r.IntN(imageChunk))
	return disk
}

// mutateDisk returns a disk of which some chunks were written, or trimmed, and that now and then has become longer or
// shorter.
func mutateDisk(r *mathrand.Rand, old [][]byte) [][]byte {
	disk := slices.Clone(old)
	for range 1 + r.IntN(4) {
		i := r.IntN(len(disk) - 1)
		if disk[i] = nil; r.IntN(3) > 0 {
			disk[i] = randomBytes(r, imageChunk)
		}
	}
	switch last := len(disk) - 1; r.IntN(8) {
	case 0:
		disk[last] = randomBytes(r, imageChunk)
		disk = append(disk, make([][]byte, r.IntN(300))...)
		disk = append(disk, randomBytes(r, 1+r.IntN(imageChunk)))
	case 1:
		disk = disk[:last+1-r.IntN(last)]
		disk[len(disk)-1] = randomBytes(r, 1+r.IntN(imageChunk))
	}
	return disk
}

func diskSize(disk [][]byte) int { return (len(disk)-1)*imageChunk + len(disk[len(disk)-1]) }

// base is a saveset from which a run takes disks over, as far as they are the same. The run has it as its parent.
type base struct {
	id   SavesetID
	tree testTree // nil: there is none
	src  contents // of an agent: what reads it
	root digest.Digest
}

// use has a backup take what has not changed over from a saveset, until the returned function is called.
func (a *agent) use(ctx context.Context, s *Store, b base) (done func(), err error) {
	if b.tree == nil {
		return func() {}, nil
	}
	v, err := s.View(ctx, b.id)
	if err != nil {
		return nil, err
	}
	b.src, b.root = v, v.Manifest().Root.Digest
	if a.key != nil {
		b.src = unsealed{v, seal.NewOpener(*a.key)}
	}
	a.base = b
	return func() { _ = v.Close() }, nil
}

// takes reports whether chunk i of a disk is taken over: neither it nor its digest is sent.
func (a *agent) takes(name string, disk [][]byte, i int) bool {
	old := a.base.tree[name]
	return isDisk(name) && i < len(old) && (old[i] == nil) == (disk[i] == nil) && bytes.Equal(old[i], disk[i])
}

// disk builds the image of a disk; runs of chunks that are taken over are so by the largest nodes that lie in them.
func (a *agent) disk(ctx context.Context, b *recipe.ImageBuilder, h *digest.Hasher, name string, disk [][]byte) (recipe.Content, error) {
	var old *recipe.Image
	if a.base.tree[name] != nil {
		e, err := lookupPath(ctx, a.base.src, a.base.root, name)
		if err == nil {
			old, err = recipe.OpenImage(ctx, a.base.src, e.Content, e.Size)
		}
		if err != nil {
			return recipe.Content{}, err
		}
	}
	if err := b.Start(uint64(diskSize(disk)), imageChunk); err != nil {
		return recipe.Content{}, err
	}
	for i := 0; i < len(disk); {
		n, err := 1, error(nil)
		switch {
		case a.takes(name, disk, i):
			for i+n < len(disk) && a.takes(name, disk, i+n) {
				n++
			}
			err = b.Take(ctx, old, uint64(n))
		case disk[i] == nil:
			for disk[i+n] == nil && !a.takes(name, disk, i+n) {
				n++
			}
			err = b.Hole(ctx, uint64(n))
		default:
			err = b.Add(ctx, h.Sum(a.stored(disk[i])))
		}
		if err != nil {
			return recipe.Content{}, err
		}
		i += n
	}
	content, _, err := b.Finish()
	return content, err
}

// errDiffers is of a file that reads other bytes than were stored.
var errDiffers = errors.New("differs")

// compareFile reads a file and holds it against its chunks.
func compareFile(ctx context.Context, v contents, e *recipe.Entry, want [][]byte) error {
	if !isDisk(e.Name) {
		got, err := readFile(ctx, v, e)
		if err == nil && !bytes.Equal(got, bytes.Join(want, nil)) {
			err = errDiffers
		}
		return err
	}
	if len(want) == 0 || e.Size != uint64(diskSize(want)) || e.Content.Kind != recipe.ImageTree {
		return errDiffers
	}
	if err := compareExtents(ctx, v, e, want); err != nil {
		return err
	}
	if view, ok := v.(*View); ok {
		return compareReads(ctx, view, e, want)
	}
	return nil
}

// compareExtents holds the recipe of a disk against its chunks.
func compareExtents(ctx context.Context, v contents, e *recipe.Entry, want [][]byte) error {
	it := recipe.NewStreamIter(v, e.Content, e.Size)
	for i := 0; ; {
		x, err := it.Next(ctx)
		if errors.Is(err, io.EOF) && i == len(want) {
			return nil
		}
		if err != nil {
			return err
		}
		n := int(x.Length+imageChunk-1) / imageChunk
		if x.Offset != uint64(i*imageChunk) || i+n > len(want) {
			return fmt.Errorf("extent of %d at %d: %w", x.Length, x.Offset, errDiffers)
		}
		if x.Hole {
			if slices.ContainsFunc(want[i:i+n], func(c []byte) bool { return c != nil }) {
				return fmt.Errorf("hole of %d at %d: %w", x.Length, x.Offset, errDiffers)
			}
			i += n
			continue
		}
		got, err := v.Chunk(ctx, x.Digest)
		if err != nil {
			return err
		}
		if want[i] == nil || !bytes.Equal(got, want[i]) {
			return fmt.Errorf("chunk at %d: %w", x.Offset, errDiffers)
		}
		i += n
	}
}

// compareReads reads what is no hole as users of a disk do, together with a bit of what is beside it.
func compareReads(ctx context.Context, v *View, e *recipe.Entry, want [][]byte) error {
	f, err := OpenFile(v, *e)
	if err != nil {
		return err
	}
	for i := 0; i < len(want); i++ {
		if want[i] == nil {
			continue
		}
		from, to := max(i-1, 0), i
		for to < len(want) && want[to] != nil {
			to++
		}
		to = min(to+1, len(want))
		expect := flatten(want[from:to], min((to-from)*imageChunk, diskSize(want)-from*imageChunk))
		got := make([]byte, len(expect))
		if err := f.ReadAt(ctx, got, int64(from*imageChunk)); err != nil {
			return err
		}
		if !bytes.Equal(got, expect) {
			return fmt.Errorf("bytes at %d: %w", from*imageChunk, errDiffers)
		}
		i = to - 1
	}
	return nil
}
