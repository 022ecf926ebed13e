package fat

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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
	n, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTrees(t *testing.T) {
	for _, c := range []struct {
		bits  uint
		size  string
		files int
		args  string
	}{{32, "100M", 1000, "-F 32"}, {32, "400M", 300, "-F 32 -S 4096 -s 1"}, {16, "60M", 300, "-F 16 -s 2"}, {12, "30M", 100, "-F 12 -s 32"}} {
		t.Run(c.args, func(t *testing.T) {
			o := volumetest.Options{Files: c.files, Seconds: true, LongName: 200}
			dir := t.TempDir()
			volumetest.Make(t, dir, o)
			if err := os.Remove(filepath.Join(dir, "emoji 🎉.bin")); err != nil { // mcopy knows 16 bits of a letter
				t.Fatal(err)
			}
			f := open(t, volumetest.FAT(t, dir, c.size, strings.Fields(c.args)...))
			if f.bits != c.bits {
				t.Fatalf("%d bits", f.bits)
			}
			volumetest.Compare(t, f, dir, o)
		})
	}
}

// A file that was written into gaps.
func TestFragmented(t *testing.T) {
	dir := t.TempDir()
	for i := range 600 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%03d", i)), bytes.Repeat([]byte{byte(i)}, 2000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := volumetest.FAT(t, dir, "34M", "-F", "32", "-s", "1")
	for i := 0; i < 600; i += 2 {
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("f%03d", i))); err != nil {
			t.Fatal(err)
		}
	}
	volumetest.Command(t, "mdel", "-i", image, "::/f??0", "::/f??2", "::/f??4", "::/f??6", "::/f??8")
	clearHint(t, image)
	content := make([]byte, 500_001)
	for i := range content {
		content[i] = byte(i * i >> 9)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, content, 0o644); err != nil {
		t.Fatal(err)
	}
	volumetest.Command(t, "mcopy", "-i", image, big, "::/")
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
	if runs, err := n.(*file).clusters(); err != nil || len(runs) < 100 {
		t.Errorf("%d pieces, %v", len(runs), err)
	}
}

// clearHint has mtools look for free clusters from the start.
func clearHint(t testing.TB, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4)
	binary.LittleEndian.PutUint32(b, 2)
	if _, err := f.WriteAt(b, 512+492); err != nil {
		t.Fatal(err)
	}
}

func TestShortNames(t *testing.T) {
	entry := func(name string, small byte) []byte {
		e := make([]byte, 32)
		copy(e, name)
		e[12] = small
		return e
	}
	for _, c := range []struct {
		name  string
		small byte
		want  string
	}{
		{"README  TXT", 0, "README.TXT"}, {"README  TXT", 0x18, "readme.txt"}, {"README  TXT", 0x10, "README.txt"},
		{"NOEXT      ", 0, "NOEXT"}, {"GR\x99\xe1E   DAT", 0, "GRÖßE.DAT"}, {"\x05AB     C  ", 0, "σAB.C"},
	} {
		if got := shortName(entry(c.name, c.small)); got != c.want {
			t.Errorf("%q is %q, want %q", c.name, got, c.want)
		}
	}
	if len(upper) != 128 {
		t.Errorf("%d letters in the upper half", len(upper))
	}
}

// A chain that bites its tail is an error, not a loop; so are a file and a directory that point outside.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "good"), []byte("good"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := volumetest.FAT(t, dir, "34M", "-F", "32", "-s", "1")
	f := open(t, image)
	root, err := f.Root()
	if err != nil {
		t.Fatal(err)
	}
	n, err := root.Lookup("file")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	first := n.(*file).first
	for name, to := range map[string]uint32{"ring": first, "far away": 0xffffff0, "free": 0} {
		bad := bytes.Clone(b)
		binary.LittleEndian.PutUint32(bad[f.table+int64(first+3)*4:], to)
		g, err := Open(bytes.NewReader(bad), int64(len(bad)))
		if err != nil {
			t.Fatal(err)
		}
		root, err := g.Root()
		if err != nil {
			t.Fatal(err)
		}
		n, err := root.Lookup("file")
		if err != nil {
			t.Fatal(err)
		}
		_, err = n.(volume.File).ReadAt(make([]byte, 10), 90_000)
		if !errors.Is(err, volume.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		n, err = root.Lookup("good")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(io.NewSectionReader(n.(volume.File), 0, 10)); err != nil || string(got) != "good" {
			t.Errorf("%s: another file has %q, %v", name, got, err)
		}
	}
	ring := bytes.Clone(b)
	binary.LittleEndian.PutUint32(ring[f.table+int64(f.rootCluster)*4:], f.rootCluster)
	g, err := Open(bytes.NewReader(ring), int64(len(ring)))
	if err != nil {
		t.Fatal(err)
	}
	root, err = g.Root()
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	if err := root.List(func(volume.Entry) bool { names++; return true }); !errors.Is(err, volume.ErrCorrupt) {
		t.Errorf("%d names, %v", names, err)
	}
	if _, err := Open(bytes.NewReader(nil), 0); !errors.Is(err, volume.ErrCorrupt) {
		t.Error(err)
	}
}

// Whatever a file system says, reading it ends, without a panic and in bounded memory.
func FuzzFS(f *testing.F) {
	for _, bits := range []string{"12", "16", "32"} {
		packed, err := os.Open(filepath.Join("testdata", "fat"+bits+".img.gz"))
		if err != nil {
			f.Fatal(err)
		}
		z, err := gzip.NewReader(packed)
		if err != nil {
			f.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			f.Fatal(err)
		}
		_ = packed.Close()
		f.Add(b, uint32(11), []byte{0})
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint32, change []byte) {
		if len(b) > 1<<20 || len(change) > 1<<12 {
			return
		}
		b = slices.Clone(b)
		if int(at) < len(b) {
			copy(b[at:], change)
		}
		r := padded(b) // images are cut behind what is used
		if g, err := Open(r, 80<<20); err == nil {
			volumetest.Walk(g)
		}
	})
}

type padded []byte

func (b padded) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(b)) {
		n = copy(p, b[off:])
	}
	clear(p[n:])
	return len(p), nil
}
