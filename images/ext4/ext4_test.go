package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coffer/images/volume"
	"coffer/images/volume/volumetest"
)

func open(t testing.TB, image string) *FS {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func TestTrees(t *testing.T) {
	o := volumetest.Options{Unix: os.Geteuid() == 0, Holes: true}
	dir := t.TempDir()
	volumetest.Make(t, dir, o)
	for _, args := range []string{
		"-t ext4",
		"-t ext4 -b 1024 -O ^64bit",
		"-t ext4 -O inline_data -I 512",
		"-t ext4 -O bigalloc -C 16384",
		"-t ext4 -O meta_bg,^resize_inode -b 1024",
		"-t ext3",
		"-t ext2 -b 1024 -I 128",
		"-t ext2 -O ^filetype,^sparse_super,^resize_inode",
	} {
		t.Run(args, func(t *testing.T) {
			o := o
			o.Seconds = strings.Contains(args, "-I 128")
			volumetest.Compare(t, open(t, volumetest.Ext(t, dir, "60M", strings.Fields(args)...)), dir, o)
		})
	}
}

// A file written into the gaps between many others lies in hundreds of pieces, and needs a tree of extents.
func TestFragmented(t *testing.T) {
	for _, kind := range []string{"ext4", "ext3"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			var script strings.Builder
			for i := range 3000 {
				name := fmt.Sprint("f", i)
				if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte{byte(i)}, 4096), 0o644); err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					fmt.Fprintf(&script, "rm %s\n", name)
				}
			}
			image := volumetest.Ext(t, dir, "20M", "-t", kind, "-b", "1024")
			big := filepath.Join(t.TempDir(), "big")
			content := make([]byte, 5<<20+10)
			for i := range content {
				content[i] = byte(i * 7 / 1024)
			}
			if err := os.WriteFile(big, content, 0o644); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&script, "write %s big\n", big)
			cmd := exec.CommandContext(t.Context(), "debugfs", "-w", "-f", "-", image)
			cmd.Stdin = strings.NewReader(script.String())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("debugfs: %v\n%s", err, out)
			}
			for i := 0; i < 3000; i += 2 {
				if err := os.Remove(filepath.Join(dir, fmt.Sprint("f", i))); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Rename(big, filepath.Join(dir, "big")); err != nil {
				t.Fatal(err)
			}
			f := open(t, image)
			volumetest.Compare(t, f, dir, volumetest.Options{Seconds: true})
			root, err := f.Root()
			if err != nil {
				t.Fatal(err)
			}
			n, err := root.Lookup("big")
			if err != nil {
				t.Fatal(err)
			}
			pieces := 0
			for at := uint64(0); at*1024 < uint64(len(content)); {
				x, err := n.(file).find(at)
				if err != nil {
					t.Fatal(err)
				}
				pieces, at = pieces+1, at+x.n
			}
			if pieces < 100 {
				t.Errorf("big lies in %d pieces", pieces)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	small := make([]byte, 64<<10)
	if _, err := Open(bytes.NewReader(small), int64(len(small))); !errors.Is(err, volume.ErrCorrupt) {
		t.Error(err)
	}
	if _, err := Open(bytes.NewReader(nil), 0); !errors.Is(err, volume.ErrCorrupt) {
		t.Error(err)
	}
	image := volumetest.Ext(t, t.TempDir(), "4M", "-t", "ext4")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	b[superblockAt+99] = 0x80 // a feature of the future
	if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, volume.ErrUnsupported) || !strings.Contains(err.Error(), "0x80000000") {
		t.Error(err)
	}
}

// Whatever a file system says, reading it ends, without a panic and in bounded memory.
func FuzzFS(f *testing.F) {
	for _, name := range []string{"ext4.img", "ext2.img"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1080), []byte{0x53})
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint32, change []byte) {
		if len(b) > 1<<20 || len(change) > 1<<12 {
			return
		}
		b = bytes.Clone(b)
		if int(at) < len(b) {
			copy(b[at:], change) // one change, in a place that a mutation of all would seldom hit
		}
		fs, err := Open(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			volumetest.Walk(fs)
		}
	})
}
