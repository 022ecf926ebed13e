package overlay

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"coffer/dedup/vfs"
)

// BenchmarkWrite writes blocks of 4 KiB at random places of a disk: ones that were never written, and ones that were. A raw
// file is beside it, for what the system takes.
func BenchmarkWrite(b *testing.B) {
	const size = 1 << 30
	block := make([]byte, blockSize)
	block[0] = 1
	places := rand.New(rand.NewPCG(1, 1)).Perm(size / blockSize)
	open := func(b *testing.B) *Overlay {
		o, err := Create(b.Context(), vfs.OS(), filepath.Join(b.TempDir(), "o"), make(sizeOnly, 1), Options{BootID: bootA})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = o.Close() })
		return o
	}
	write := func(b *testing.B, o *Overlay) {
		for i := range b.N {
			if err := o.WriteAt(b.Context(), block, int64(places[i%len(places)])*blockSize); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("new", func(b *testing.B) {
		b.SetBytes(blockSize)
		write(b, open(b))
	})
	b.Run("again", func(b *testing.B) {
		b.SetBytes(blockSize)
		o := open(b)
		write(b, o)
		b.ResetTimer()
		write(b, o)
	})
	b.Run("raw", func(b *testing.B) {
		b.SetBytes(blockSize)
		f, err := vfs.OS().Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		for i := range b.N {
			if _, err := f.WriteAt(block, int64(places[i%len(places)])*blockSize); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// sizeOnly is a base of 1 GiB that nobody reads.
type sizeOnly []byte

func (sizeOnly) Size() int64 { return 1 << 30 }

func (sizeOnly) ReadAt(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}
