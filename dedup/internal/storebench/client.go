package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// askAt is how many plain bytes, or chunks, are asked for at once, as the agent does with small files.
const (
	askAt     = 1 << 20
	askChunks = 512
)

// client is the agent's end of a run: it hashes, asks, packs, compresses and sends in the order of reading, and builds the
// recipe.
type client struct {
	run        *dedup.Run
	lane       *dedup.Lane
	data, node *digest.Hasher
	enc        *frame.Encoder

	asked  []pending
	waits  int // bytes of asked
	ds     []digest.Digest
	have   []bool
	packer frame.Packer
	out    []byte

	nodes nodeBatch

	top *recipe.DirBuilder
	dir *recipe.DirBuilder
	str *recipe.StreamBuilder
	in  string // the open directory
}

type pending struct {
	d digest.Digest
	p []byte
}

// nodeBatch is nodes that wait to be asked for.
type nodeBatch struct {
	ds   []digest.Digest
	ends []int
	recs []byte
}

// begin opens a run.
func begin(ctx context.Context, s *dedup.Store, o dedup.RunOptions) (*client, error) {
	run, err := s.Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	lane, err := run.Lane(dedup.LaneOptions{})
	if err != nil {
		return nil, errors.Join(err, run.Abort(ctx, err.Error()))
	}
	k := s.Domain().Keys
	c := &client{run: run, lane: lane, data: digest.NewHasher(k.Data), node: digest.NewHasher(k.Node), enc: frame.NewEncoder()}
	c.top, c.dir, c.str = recipe.NewDirBuilder(c, c.node), recipe.NewDirBuilder(c, c.node), recipe.NewStreamBuilder(c, c.node)
	return c, nil
}

// chunk takes a chunk of the file that is being sent. Its bytes stay as they are until the file's directory has ended.
func (c *client) chunk(ctx context.Context, p []byte) error {
	d := c.data.Sum(p)
	if err := c.put(ctx, d, p); err != nil {
		return err
	}
	return c.str.Add(ctx, recipe.Extent{Length: uint64(len(p)), Digest: d})
}

// put has a chunk asked for, and sent if it is missing.
func (c *client) put(ctx context.Context, d digest.Digest, p []byte) error {
	c.asked = append(c.asked, pending{d, p})
	c.waits += len(p)
	if c.waits >= askAt || len(c.asked) >= askChunks {
		return c.send(ctx)
	}
	return nil
}

// send asks for what waits, and sends what is missing.
func (c *client) send(ctx context.Context) error {
	c.ds, c.have = c.ds[:0], c.have[:0]
	for i := range c.asked {
		c.ds, c.have = append(c.ds, c.asked[i].d), append(c.have, false)
	}
	if err := c.run.Have(ctx, c.ds, c.have); err != nil {
		return err
	}
	for i, a := range c.asked {
		if c.have[i] {
			continue
		}
		if !c.packer.Fits(len(a.p)) {
			if err := c.frame(ctx); err != nil {
				return err
			}
		}
		c.packer.Add(a.d, a.p)
	}
	c.asked, c.waits = c.asked[:0], 0
	return nil
}

// frame sends what is packed.
func (c *client) frame(ctx context.Context) error {
	if c.packer.Empty() {
		return nil
	}
	f := c.packer.Encode(c.enc, c.out)
	c.out = f.Stored
	c.packer.Reset()
	_, err := c.lane.PutFrame(ctx, f)
	return err
}

// flush sends all data.
func (c *client) flush(ctx context.Context) error {
	if err := c.send(ctx); err != nil {
		return err
	}
	return c.frame(ctx)
}

// endFile ends the file whose chunks were given. Files come in the order of their directories' names, then their own.
func (c *client) endFile(ctx context.Context, dir, name string, size uint64) error {
	if dir != c.in && c.in != "" {
		if err := c.endDir(ctx); err != nil {
			return err
		}
	}
	c.in = dir
	content, _, err := c.str.Finish(ctx)
	if err != nil {
		return err
	}
	return c.dir.Add(ctx, recipe.Entry{Name: name, Mode: recipe.ModeRegular | 0o644, Size: size, Content: content}, recipe.Totals{})
}

func (c *client) endDir(ctx context.Context) error {
	ref, err := c.dir.Finish(ctx)
	if err != nil {
		return err
	}
	e := recipe.Entry{Name: c.in, Mode: recipe.ModeDir | 0o755, Content: recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}}
	return c.top.Add(ctx, e, ref.Totals)
}

// PutNode implements recipe.Sink.
func (c *client) PutNode(ctx context.Context, d digest.Digest, rec []byte) error {
	n := &c.nodes
	n.ds = append(n.ds, d)
	n.recs = append(n.recs, rec...)
	n.ends = append(n.ends, len(n.recs))
	if len(n.ds) < 512 && len(n.recs) < 512<<10 {
		return nil
	}
	return c.sendNodes(ctx)
}

// sendNodes sends the nodes that the store lacks, after the data that they name.
func (c *client) sendNodes(ctx context.Context) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	n := &c.nodes
	have := make([]bool, len(n.ds))
	if err := c.run.Have(ctx, n.ds, have); err != nil {
		return err
	}
	var p frame.Packer
	put := func() error {
		if p.Empty() {
			return nil
		}
		f := p.Encode(c.enc, c.out)
		c.out = f.Stored
		p.Reset()
		return c.run.PutNodes(ctx, f)
	}
	start := 0
	for i, d := range n.ds {
		rec := n.recs[start:n.ends[i]]
		start = n.ends[i]
		if have[i] {
			continue
		}
		if !p.Fits(len(rec)) {
			if err := put(); err != nil {
				return err
			}
		}
		p.Add(d, rec)
	}
	n.ds, n.ends, n.recs = n.ds[:0], n.ends[:0], n.recs[:0]
	return put()
}

// commit ends the tree and the run.
func (c *client) commit(ctx context.Context, draft dedup.Draft) (dedup.Manifest, error) {
	if err := c.endDir(ctx); err != nil {
		return dedup.Manifest{}, err
	}
	root, err := c.top.Finish(ctx)
	if err != nil {
		return dedup.Manifest{}, err
	}
	if err := c.sendNodes(ctx); err != nil {
		return dedup.Manifest{}, err
	}
	draft.Root, draft.Client, draft.Task = root, "bench", "bench"
	draft.Started, draft.Finished = time.Now(), time.Now()
	return c.run.Commit(ctx, draft)
}

// backup runs a whole run, whose files send writes.
func backup(ctx context.Context, s *dedup.Store, o dedup.RunOptions, send func(*client) error) (dedup.Manifest, error) {
	c, err := begin(ctx, s, o)
	if err != nil {
		return dedup.Manifest{}, err
	}
	if err := send(c); err != nil {
		return dedup.Manifest{}, errors.Join(fmt.Errorf("run %s: %w", o.ID, err), c.run.Abort(ctx, "failed"))
	}
	return c.commit(ctx, dedup.Draft{Level: "FULL"})
}
