package main

import (
	"context"
	"fmt"
	"math/rand/v2"

	"coffer/dedup"
)

const (
	generations = 50
	aging       = 0.05 // of the bytes, each generation
	imageBlock  = 64 << 10
	imageExtent = 64 // blocks of the longest change in an image: 4 MiB
	// switchCeiling is what data aged so may reach at most, in containers a MiB of a window of 64 MiB: without rewriting a
	// window comes to lie in one container of each generation, 0.8; with it the curve bends at 0.3.
	switchCeiling = 0.5
)

// source is data that ages.
type source interface {
	age()
	send(ctx context.Context, c *client) error
}

func aged(ctx context.Context, b *bench) error {
	size := int64(256 << 20)
	if b.short {
		size = 64 << 20
	}
	for _, k := range []struct {
		name string
		make func() source
	}{
		{"image", func() source { return newImage(size) }},
		{"file tree", func() source { return newTree(size) }},
	} {
		for _, rewrite := range []bool{false, true} {
			name := k.name + map[bool]string{false: ", not rewritten", true: ", rewritten"}[rewrite]
			if err := b.ageing(ctx, name, k.make(), rewrite); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// ageing writes all generations, and reads some of them.
func (b *bench) ageing(ctx context.Context, name string, src source, rewrite bool) error {
	p, err := newPlace(b.dir, "aged", nil)
	if err != nil {
		return err
	}
	defer p.remove()
	s, err := p.create(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	t := &b.table
	stored, last := uint64(0), dedup.SavesetID{}
	for gen := 1; gen <= generations; gen++ {
		m, err := backup(ctx, s, dedup.RunOptions{ID: fmt.Sprintf("generation %d", gen), Rewrite: rewrite, Previous: last},
			func(c *client) error { return src.send(ctx, c) })
		if err != nil {
			return err
		}
		stored, last = stored+m.Stored, m.ID
		if gen != 1 && gen%10 != 0 {
			src.age()
			continue
		}
		if err := s.Close(); err != nil {
			return err
		}
		rounds := 1
		if gen == generations {
			rounds = b.rounds
		}
		r, err := p.rates(ctx, m.ID, rounds)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%s, generation %d", name, gen)
		if gen == generations && rewrite && !b.short { // a small source is one window, and mostly in doubt
			t.atMost(what, "container switches a MiB", "%.2f", m.SwitchesPerMiB(), switchCeiling)
			r.print(t, what)
		} else {
			t.add(what, "switches a MiB; restore, mount / bare, wall, %", "%.2f; %.0f, %.0f", m.SwitchesPerMiB(),
				100*median(r.restoreWall)/median(r.bareWall), 100*median(r.mountWall)/median(r.bareWall))
		}
		b.note("%s: %.2f switches a MiB, restore %.0f, mount %.0f, bare %.0f MB/s", what, m.SwitchesPerMiB(), median(r.restoreWall), median(r.mountWall), median(r.bareWall))
		if s, err = p.open(ctx); err != nil {
			return err
		}
		src.age()
	}
	t.add(name, "stored by all generations, MiB", "%.0f", mib(int64(stored)))
	return nil
}

// image is a disk of blocks; a change overwrites some that follow one another.
type image struct {
	seeds []uint64
	next  uint64
	r     *rand.Rand
	sizes *sizes
	c     *content
}

func newImage(size int64) *image {
	im := &image{seeds: make([]uint64, size/imageBlock), r: rand.New(rand.NewPCG(21, 22)), sizes: newSizes(), c: newContent(false)}
	for i := range im.seeds {
		im.next++
		im.seeds[i] = im.next
	}
	return im
}

func (im *image) age() {
	for left := int(float64(len(im.seeds)) * aging); left > 0; {
		n := min(im.sizes.extent(imageExtent), left)
		left -= n
		at := im.r.IntN(len(im.seeds) - n + 1)
		for i := range n {
			im.next++
			im.seeds[at+i] = im.next
		}
	}
}

func (im *image) send(ctx context.Context, c *client) error {
	bufs := make([]byte, askAt+imageBlock)
	for i, seed := range im.seeds {
		p := bufs[c.waits:][:imageBlock:imageBlock]
		im.c.fill(p, seed)
		if err := c.chunk(ctx, p); err != nil {
			return err
		}
		if i == len(im.seeds)-1 {
			if err := c.send(ctx); err != nil {
				return err
			}
		}
	}
	return c.endFile(ctx, "images", "disk", uint64(len(im.seeds))*imageBlock)
}

// tree is files of which some are written anew; one in a hundred is a large one, which changes in places.
type tree struct {
	files []file
	next  uint64
	r     *rand.Rand
	c     *content
	bytes int
}

type file struct {
	size int
	seed uint64
}

func newTree(size int64) *tree {
	t := &tree{r: rand.New(rand.NewPCG(31, 32)), c: newContent(false)}
	for s := newSizes(); int64(t.bytes) < size; {
		f := file{size: s.next()}
		t.next++
		f.seed = t.next
		t.bytes += f.size
		t.files = append(t.files, f)
	}
	return t
}

func (t *tree) age() {
	for left := int(float64(t.bytes) * aging); left > 0; {
		f := &t.files[t.r.IntN(len(t.files))]
		t.next++
		f.seed = t.next
		left -= f.size
	}
}

// filesInDir is how many files a directory has.
const filesInDir = 100

func (t *tree) send(ctx context.Context, c *client) error {
	bufs := make([]byte, askAt+1<<20)
	for i, f := range t.files {
		p := bufs[c.waits:][:f.size:f.size]
		t.c.fill(p, f.seed)
		if err := c.chunk(ctx, p); err != nil {
			return err
		}
		if err := c.endFile(ctx, fmt.Sprintf("d%05d", i/filesInDir), fmt.Sprintf("f%08d", i), uint64(f.size)); err != nil {
			return err
		}
	}
	return nil
}
