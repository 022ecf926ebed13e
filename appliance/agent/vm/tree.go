package vm

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"coffer/appliance/agent/report"
	"coffer/appliance/agent/uplink"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// tree builds the saveset's directories, and stores small files. It is for one goroutine.
type tree struct {
	run  uplink.Run
	rep  *report.Reporter
	sink recipe.Sink
	hash *digest.Hasher // of chunks
	node *digest.Hasher
	box  *seal.Sealer // nil: nothing is sealed
	enc  *frame.Encoder
}

// named is an entry with what is below it.
type named struct {
	e     recipe.Entry
	below recipe.Totals
}

func newTree(run uplink.Run, rep *report.Reporter, key *seal.Key) *tree {
	keys := run.Domain().Keys
	t := &tree{run: run, rep: rep, sink: run, hash: digest.NewHasher(keys.Data), node: digest.NewHasher(keys.Node), enc: frame.NewEncoder()}
	if key != nil {
		t.sink, t.box = seal.NewSink(run, *key), seal.NewSealer(*key)
	}
	return t
}

// oneChunk is the length up to which a file is one chunk.
const oneChunk = 512 << 10

// file stores a small file.
func (t *tree) file(ctx context.Context, name string, data []byte, mtime time.Time) (named, error) {
	n := named{e: recipe.Entry{Name: name, Mode: recipe.ModeRegular | 0o600, MTime: toTime(mtime), Size: uint64(len(data))}}
	var err error
	switch {
	case len(data) == 0:
	case len(data) <= oneChunk && t.box == nil || len(data) <= min(oneChunk, seal.MaxPlain):
		n.e.Content.Kind = recipe.OneChunk
		n.e.Content.Digest, err = t.chunk(ctx, data)
	default:
		n.e.Content, err = t.stream(ctx, data)
	}
	t.rep.Entries.Add(1)
	t.rep.Files.Add(1)
	t.rep.BytesRead.Add(uint64(len(data)))
	if err != nil {
		return n, fmt.Errorf("store %s: %w", name, err)
	}
	return n, nil
}

// stream stores a file of several chunks.
func (t *tree) stream(ctx context.Context, data []byte) (recipe.Content, error) {
	cut, err := chunk.NewCutter(t.run.Domain().Chunking)
	if err != nil {
		return recipe.Content{}, fmt.Errorf("chunking of the appliance: %w", err)
	}
	cut.Reset(bytes.NewReader(data))
	b := recipe.NewStreamBuilder(t.sink, t.node)
	for {
		c, err := cut.Next(nil)
		if err == io.EOF {
			content, _, err := b.Finish(ctx)
			return content, err
		}
		if err != nil {
			return recipe.Content{}, err
		}
		d, err := t.chunk(ctx, c)
		if err == nil {
			err = b.Add(ctx, recipe.Extent{Length: uint64(len(c)), Digest: d})
		}
		if err != nil {
			return recipe.Content{}, err
		}
	}
}

// chunk sends a chunk where the appliance lacks it.
func (t *tree) chunk(ctx context.Context, c []byte) (digest.Digest, error) {
	if t.box != nil {
		var err error
		if c, err = t.box.SealChunk(nil, c); err != nil {
			return digest.Digest{}, err
		}
	}
	d := t.hash.Sum(c)
	lane := t.run.Lane(0)
	have, err := lane.Have(ctx, []digest.Digest{d})
	if err != nil || have[0] {
		return d, err
	}
	f := t.enc.Encode([]frame.Ref{{Digest: d, Length: uint32(len(c))}}, c, nil)
	t.rep.BytesNew.Add(uint64(len(c)))
	t.rep.BytesSent.Add(uint64(len(f.Stored)))
	return d, lane.Put(ctx, f)
}

// dir builds a directory of its entries.
func (t *tree) dir(ctx context.Context, entries []named) (recipe.Ref, error) {
	slices.SortFunc(entries, func(a, b named) int { return cmp.Compare(a.e.Name, b.e.Name) })
	b := recipe.NewDirBuilder(t.sink, t.node)
	for _, n := range entries {
		if err := b.Add(ctx, n.e, n.below); err != nil {
			return recipe.Ref{}, fmt.Errorf("add %s: %w", n.e.Name, err)
		}
	}
	return b.Finish(ctx)
}

// folder is the entry of a directory below the root.
func (t *tree) folder(ctx context.Context, name string, entries []named, mtime time.Time) (named, error) {
	ref, err := t.dir(ctx, entries)
	t.rep.Entries.Add(1)
	return named{recipe.Entry{Name: name, Mode: recipe.ModeDir | 0o700, MTime: toTime(mtime),
		Content: recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}}, ref.Totals}, err
}

func toTime(t time.Time) recipe.Time { return recipe.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())} }
