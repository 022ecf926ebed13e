package main

import (
	"context"
	"crypto/rand"
	"path/filepath"
	"sync"
	"time"

	"coffer/appliance/agent/disk"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/recipe"
	"coffer/dedup/vfs"
	"coffer/images"
)

// storeOptions are those of an encrypted store below a directory.
func storeOptions(root string) (dedup.Options, error) {
	b, err := blob.OpenDir(vfs.OS(), filepath.Join(root, "store"))
	if err != nil {
		return dedup.Options{}, err
	}
	file, err := keys.NewKeyFile(rand.Reader)
	if err != nil {
		return dedup.Options{}, err
	}
	key, err := keys.KeyFile(file)
	if err != nil {
		return dedup.Options{}, err
	}
	return dedup.Options{Blob: b, FS: vfs.OS(), SpoolDir: filepath.Join(root, "spool"), IndexDir: filepath.Join(root, "index"),
		Key: key, Owner: "imagebench"}, nil
}

// direct is an uplink.Run that writes into a store without a wire.
type direct struct {
	uplink.Run // what is not needed: nil
	run        *dedup.Run
	domain     uplink.Domain
	lanes      []*dedup.Lane

	mu    sync.Mutex // guards all below
	pack  frame.Packer
	enc   *frame.Encoder
	nodes int64 // bytes
}

const lanes = 4

func newDirect(ctx context.Context, s *dedup.Store) (*direct, error) {
	run, err := s.Begin(ctx, dedup.RunOptions{ID: "imagebench"})
	if err != nil {
		return nil, err
	}
	d := s.Domain()
	out := &direct{run: run, domain: uplink.Domain{ID: d.ID, Keys: d.Keys, Chunking: d.Chunking}, enc: frame.NewEncoder()}
	for range lanes {
		l, err := run.Lane(dedup.LaneOptions{})
		if err != nil {
			return nil, err
		}
		out.lanes = append(out.lanes, l)
	}
	return out, nil
}

// Domain implements uplink.Run.
func (d *direct) Domain() uplink.Domain { return d.domain }

// MaxLanes implements uplink.Run.
func (d *direct) MaxLanes() int { return lanes }

// Lane implements uplink.Run.
func (d *direct) Lane(i int) uplink.Lane { return lane{d, d.lanes[i]} }

// PutNode implements uplink.Run: nodes wait until all chunks are there.
func (d *direct) PutNode(ctx context.Context, dg digest.Digest, rec []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.pack.Fits(len(rec)) {
		if err := d.putNodes(ctx); err != nil {
			return err
		}
	}
	d.pack.Add(dg, rec)
	return nil
}

func (d *direct) putNodes(ctx context.Context) error {
	if d.pack.Empty() {
		return nil
	}
	f := d.pack.Encode(d.enc, nil)
	d.pack.Reset()
	d.nodes += int64(len(f.Stored))
	return d.run.PutNodes(ctx, f)
}

type lane struct {
	d *direct
	l *dedup.Lane
}

// Have implements uplink.Lane.
func (l lane) Have(ctx context.Context, ds []digest.Digest) ([]bool, error) {
	have := make([]bool, len(ds))
	return have, l.d.run.Have(ctx, ds, have)
}

// HaveAsync implements uplink.Lane.
func (l lane) HaveAsync(ctx context.Context, ds []digest.Digest) func(context.Context) ([]bool, error) {
	have, err := l.Have(ctx, ds)
	return func(context.Context) ([]bool, error) { return have, err }
}

// Put implements uplink.Lane.
func (l lane) Put(ctx context.Context, f frame.Frame) error {
	_, err := l.l.PutFrame(ctx, f)
	return err
}

// Flush implements uplink.Lane.
func (l lane) Flush(ctx context.Context) error { return l.l.Flush(ctx) }

// store stores one disk as a saveset. It also returns the compressed bytes of the saveset's nodes.
func store(ctx context.Context, s *dedup.Store, path string, chunk int) (m dedup.Manifest, stats disk.Stats, nodes int64, err error) {
	f, err := images.OpenFile(path)
	if err != nil {
		return m, stats, 0, err
	}
	defer f.Close()
	run, err := newDirect(ctx, s)
	if err != nil {
		return m, stats, 0, err
	}
	if m, err = run.store(ctx, f, chunk, &stats); err != nil {
		_ = run.run.Abort(ctx, err.Error())
	}
	return m, stats, run.nodes, err
}

func (d *direct) store(ctx context.Context, f *images.File, chunk int, stats *disk.Stats) (dedup.Manifest, error) {
	started := time.Now()
	e, st, err := disk.Store(ctx, d, disk.FromReaderAt(f, f.Size()), disk.All(f.Size()), disk.Options{ChunkSize: chunk})
	if err != nil {
		return dedup.Manifest{}, err
	}
	*stats = st
	e.Name, e.Mode = "disk.raw", recipe.ModeRegular|0o600
	b := recipe.NewDirBuilder(d, digest.NewHasher(d.domain.Keys.Node))
	if err := b.Add(ctx, e, recipe.Totals{}); err != nil {
		return dedup.Manifest{}, err
	}
	root, err := b.Finish(ctx)
	if err != nil {
		return dedup.Manifest{}, err
	}
	if err := d.putNodes(ctx); err != nil {
		return dedup.Manifest{}, err
	}
	return d.run.Commit(ctx, dedup.Draft{Root: root, Client: "c", Task: "t", TaskType: sms.TaskPath, RequestedLevel: "FULL",
		Level: "FULL", Reason: "requested", Started: started, Finished: time.Now()})
}
