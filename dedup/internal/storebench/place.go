package main

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"runtime/debug"

	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// place is a store's directory and how it is opened: encrypted, as a store is by default.
type place struct {
	root string
	opts dedup.Options
}

// newPlace makes an empty place; change may alter the options.
func newPlace(parent, name string, change func(*dedup.Options)) (*place, error) {
	root := filepath.Join(parent, name)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	b, err := blob.OpenDir(vfs.OS(), filepath.Join(root, "store"))
	if err != nil {
		return nil, err
	}
	file, err := keys.NewKeyFile(rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := keys.KeyFile(file)
	if err != nil {
		return nil, err
	}
	p := &place{root, dedup.Options{Blob: b, FS: vfs.OS(), SpoolDir: filepath.Join(root, "spool"),
		IndexDir: filepath.Join(root, "index"), Key: key, Owner: "storebench",
		FrameMemory: frameMemory, FramesHeld: func(n int64) { debug.SetMemoryLimit(memoryLimit + n) }}}
	if change != nil {
		change(&p.opts)
	}
	return p, nil
}

func (p *place) create(ctx context.Context) (*dedup.Store, error) { return dedup.Create(ctx, p.opts) }
func (p *place) open(ctx context.Context) (*dedup.Store, error)   { return dedup.Open(ctx, p.opts) }
func (p *place) remove() error                                    { return os.RemoveAll(p.root) }
