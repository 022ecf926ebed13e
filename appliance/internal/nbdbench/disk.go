package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// makeDisk writes a file of real bytes and no holes: the files below /usr behind each other, from the start again until
// there are enough, each round shifted by a byte value so that it is new to a deduplicating store.
func makeDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := &filler{w: bufio.NewWriterSize(f, 1<<20), left: size}
	for w.left > 0 {
		before := w.left
		err := filepath.WalkDir("/usr", w.add)
		if err != nil && !errors.Is(err, fs.SkipAll) {
			return errors.Join(err, f.Close())
		}
		if w.left == before {
			return errors.Join(errors.New("there is nothing below /usr"), f.Close())
		}
		w.round++
	}
	return errors.Join(w.w.Flush(), f.Sync(), f.Close())
}

type filler struct {
	w     *bufio.Writer
	left  int64
	round byte
}

func (w *filler) add(path string, d fs.DirEntry, err error) error {
	if err != nil || !d.Type().IsRegular() {
		return nil // what cannot be read is not needed
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	b = b[:min(int64(len(b)), w.left)]
	if w.round > 0 {
		for i := range b {
			b[i] ^= w.round
		}
	}
	w.left -= int64(len(b))
	if _, err := w.w.Write(b); err != nil {
		return err
	}
	if w.left == 0 {
		return fs.SkipAll
	}
	return nil
}

// copyDisk makes a disk without holes of another: what is served, and what qemu-nbd may write.
func copyDisk(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// evict drops files from the page cache. What is dirty is written first.
func evict(paths ...string) error {
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil // it went meanwhile
			}
			f, err := os.Open(path)
			if err != nil {
				return nil
			}
			defer f.Close()
			if err := f.Sync(); err != nil {
				return fmt.Errorf("sync %s: %w", path, err)
			}
			return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// warm reads a file into the page cache.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}
