package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"coffer/dedup"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// Kinds of data: streams are cut by content, files are small ones of one chunk each.
type load struct {
	name  string
	noise bool
	files bool
}

var loads = []load{
	{"incompressible stream", true, false},
	{"compressible stream", false, false},
	{"compressible small files", false, true},
}

// meanFile is the mean size of small files in bytes.
const meanFile = 16 << 10

func throughput(ctx context.Context, b *bench) error {
	size, rounds := 192<<20, b.rounds
	if b.short {
		size, rounds = 48<<20, 3
	}
	for _, l := range loads {
		if err := b.ingest(ctx, l, size, rounds); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

// ingest compares runs of new data, and of the same again, with the bare calls, in turns.
func (b *bench) ingest(ctx context.Context, l load, size, rounds int) error {
	p, err := newPlace(b.dir, "throughput", nil)
	if err != nil {
		return err
	}
	defer p.remove()
	s, err := p.create(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	data := make([]byte, size)
	var fresh, again, floor, floorAgain, sealed, written []float64
	out, err := os.Create(filepath.Join(p.root, "bare"))
	if err != nil {
		return err
	}
	defer out.Close()
	for round := range rounds + 1 {
		newContent(l.noise).fill(data, uint64(1000+round))
		pieces := l.pieces(data)
		store := func() error { return ingestAll(ctx, s, pieces) }
		calls := func(o bareOptions) func() error { return func() error { return bare(s.Domain(), pieces, o) } }
		for _, way := range []struct {
			cpu *[]float64
			f   func() error
		}{
			{&floor, calls(bareOptions{})},
			{&sealed, calls(bareOptions{seal: true})},
			{&fresh, store},
			{&floorAgain, calls(bareOptions{dup: true})},
			{&again, store},
			{&written, calls(bareOptions{seal: true, out: out})},
		} {
			settle()
			took, err := measure(way.f)
			if err != nil {
				return err
			}
			if round > 0 { // the first warms up
				*way.cpu = append(*way.cpu, took.cpu)
			}
		}
	}
	what := l.name + ", new"
	b.compare(what, "chunker, hash, zstd both ways, hash", size, floor, fresh)
	t := &b.table
	t.add(what, "of it AES-GCM alone, % of CPU", "%.1f", median(added(floor, sealed)))
	t.atMost(what, "the store adds to bare with AES-GCM, % of CPU", "%.1f", median(added(sealed, fresh)), storeAdds)
	t.add(what, "the store adds to bare with AES-GCM and write(2), % of CPU", "%.1f", median(added(written, fresh)))
	b.compare(l.name+", all duplicate", "chunker, hash", size, floorAgain, again)
	return nil
}

// storeAdds is what the store may add to the bare cost, in percent.
const storeAdds = 15

func (b *bench) compare(what, floor string, size int, bare, store []float64) {
	rate := func(cpu []float64) float64 { return float64(size) / 1e6 / median(cpu) }
	t := &b.table
	t.add(what, "bare ("+floor+"), MB/s a core", "%.0f", rate(bare))
	t.add(what, "ingest, MB/s a core", "%.0f", rate(store))
	t.atMost(what, "the store adds, % of CPU", "%.1f", median(added(bare, store)), storeAdds)
}

// added is by how much each round was dearer, in percent.
func added(bare, store []float64) []float64 {
	out := make([]float64, len(bare))
	for i := range bare {
		out[i] = 100 * (store[i]/bare[i] - 1)
	}
	return out
}

// pieces cuts data into what is one file each: small ones are one chunk, a stream is one piece that is cut by content.
func (l load) pieces(data []byte) [][]byte {
	if !l.files {
		return [][]byte{data}
	}
	var out [][]byte
	r := newSizes()
	for len(data) > 0 {
		n := min(r.next(), len(data))
		out = append(out, data[:n:n])
		data = data[n:]
	}
	return out
}

// ingestAll is a run with all pieces: one file, or one file each. It ends as a commit does.
func ingestAll(ctx context.Context, s *dedup.Store, pieces [][]byte) error {
	_, err := backup(ctx, s, dedup.RunOptions{ID: "throughput"}, func(c *client) error {
		if len(pieces) == 1 {
			return sendStream(ctx, s.Domain(), c, pieces[0])
		}
		for i, p := range pieces {
			if err := c.chunk(ctx, p); err != nil {
				return err
			}
			if err := c.endFile(ctx, "files", fmt.Sprintf("f%08d", i), uint64(len(p))); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// sendStream cuts by content. The chunks lie in one buffer each turn, so that they are sent before the next is read.
func sendStream(ctx context.Context, d dedup.Domain, c *client, data []byte) error {
	cut, err := chunk.NewCutter(d.Chunking)
	if err != nil {
		return err
	}
	cut.Reset(bytes.NewReader(data))
	buf := make([]byte, 0, d.Chunking.Max)
	for {
		p, err := cut.Next(buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := c.chunk(ctx, p); err != nil {
			return err
		}
		if err := c.send(ctx); err != nil {
			return err
		}
	}
	return c.endFile(ctx, "streams", "stream", uint64(len(data)))
}

// bareOptions say what bare does beside.
type bareOptions struct {
	dup  bool     // the data is there already: cut and hash only
	seal bool     // encrypt, which is the store's own affair
	out  *os.File // where to write to; may be nil
}

// bare makes the calls that no store can do without: cut, hash, and for new data compress, decompress, hash.
func bare(d dedup.Domain, pieces [][]byte, o bareOptions) error {
	if o.out != nil {
		if _, err := o.out.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if err := o.out.Truncate(0); err != nil {
			return err
		}
	}
	f := &bareFrames{bareOptions: o, h: digest.NewHasher(d.Keys.Data), enc: frame.NewEncoder(), dec: frame.NewDecoder()}
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		return err
	}
	if f.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	if len(pieces) > 1 {
		for _, p := range pieces {
			if err := f.add(p); err != nil {
				return err
			}
		}
		return f.end()
	}
	cut, err := chunk.NewCutter(d.Chunking)
	if err != nil {
		return err
	}
	cut.Reset(bytes.NewReader(pieces[0]))
	buf := make([]byte, 0, d.Chunking.Max)
	for {
		p, err := cut.Next(buf)
		if errors.Is(err, io.EOF) {
			return f.end()
		}
		if err != nil {
			return err
		}
		if err := f.add(p); err != nil {
			return err
		}
	}
}

// bareFrames is the bare way of chunks into frames.
type bareFrames struct {
	bareOptions
	h      *digest.Hasher
	enc    *frame.Encoder
	dec    *frame.Decoder
	aead   cipher.AEAD
	packer frame.Packer
	stored []byte
	plain  []byte
	sealed []byte
	nonce  [12]byte
}

func (f *bareFrames) add(p []byte) error {
	d := f.h.Sum(p)
	if f.dup {
		return nil
	}
	if !f.packer.Fits(len(p)) {
		if err := f.end(); err != nil {
			return err
		}
	}
	f.packer.Add(d, p)
	return nil
}

func (f *bareFrames) end() (err error) {
	if f.packer.Empty() {
		return nil
	}
	fr := f.packer.Encode(f.enc, f.stored)
	f.stored = fr.Stored
	f.packer.Reset()
	if f.plain, err = f.dec.Decode(fr, f.plain[:0]); err != nil {
		return err
	}
	if err := fr.Verify(f.h, f.plain); err != nil {
		return err
	}
	if f.seal {
		f.sealed = f.aead.Seal(f.sealed[:0], f.nonce[:], fr.Stored, nil)
	}
	if f.out != nil {
		_, err = f.out.Write(f.sealed)
	}
	return err
}
