package ntfs

import (
	"bytes"
	"compress/gzip"
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
	dir := t.TempDir()
	volumetest.Make(t, dir, volumetest.Options{Holes: true})
	for _, args := range [][]string{nil, {"-c", "512"}, {"-c", "65536"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			image := volumetest.NTFS(t, "120M", volumetest.Copy(t, dir), args...)
			volumetest.Compare(t, open(t, image), dir, volumetest.Options{Holes: true})
		})
	}
}

// Compressed files, and files in many pieces, whose extents need records of their own.
func TestCompressedAndFragmented(t *testing.T) {
	want := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(want, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(want, "z"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("Coffer keeps what was given to it. "), 40000)
	for i := range text {
		if i%1000 == 0 {
			text[i] = byte(i / 1000)
		}
	}
	write("z/text", text)
	write("z/small", []byte("small"))
	noise := make([]byte, 300000)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	write("z/mixed", append(append(slices.Clone(noise), make([]byte, 200000)...), text[:100001]...))
	image := volumetest.NTFS(t, "60M", func(mnt string) {
		if err := os.Mkdir(filepath.Join(mnt, "z"), 0o755); err != nil {
			t.Fatal(err)
		}
		volumetest.Command(t, "setfattr", "-h", "-n", "system.ntfs_attrib_be", "-v", "0x00000810", filepath.Join(mnt, "z"))
		volumetest.Command(t, "cp", "-r", want+"/.", mnt)
		for i := range 4000 { // leave gaps of one cluster
			if err := os.WriteFile(filepath.Join(mnt, fmt.Sprint("f", i)), make([]byte, 4096), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		fillUp(t, mnt)
		for i := 0; i < 4000; i += 2 {
			if err := os.Remove(filepath.Join(mnt, fmt.Sprint("f", i))); err != nil {
				t.Fatal(err)
			}
		}
		b := bytes.Repeat(noise, 22)[:6<<20]
		if err := os.WriteFile(filepath.Join(mnt, "pieces"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		write("pieces", b)
		for i := 1; i < 4000; i += 2 {
			if err := os.Remove(filepath.Join(mnt, fmt.Sprint("f", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(filepath.Join(mnt, "filler")); err != nil {
			t.Fatal(err)
		}
	})
	f := open(t, image)
	volumetest.Compare(t, f, want, volumetest.Options{Seconds: true})
	root, err := f.Root()
	if err != nil {
		t.Fatal(err)
	}
	n, err := root.Lookup("pieces")
	if err != nil {
		t.Fatal(err)
	}
	if pieces := len(n.(*file).data.runs); pieces < 300 {
		t.Errorf("the file lies in %d pieces", pieces)
	}
}

// fillUp takes all space that is left.
func fillUp(t testing.TB, mnt string) {
	f, err := os.Create(filepath.Join(mnt, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = byte(i)
	}
	for len(b) >= 512 {
		if _, err := f.Write(b); err != nil {
			b = b[:len(b)/2]
		}
	}
	_ = f.Close()
}

func TestStreamsAndLinks(t *testing.T) {
	image := volumetest.NTFS(t, "20M", func(mnt string) {
		for name, b := range map[string]string{"a.txt": "content", "b": "", "ünï": "x"} {
			if err := os.WriteFile(filepath.Join(mnt, name), []byte(b), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(mnt, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		large := strings.Repeat("stream ", 5000)
		volumetest.Command(t, "setfattr", "-n", "user.Zone.Identifier", "-v", "[ZoneTransfer]", filepath.Join(mnt, "a.txt"))
		volumetest.Command(t, "setfattr", "-n", "user.large", "-v", large, filepath.Join(mnt, "a.txt"))
		volumetest.Command(t, "setfattr", "-n", "user.of a directory", "-v", "yes", filepath.Join(mnt, "d"))
		if err := os.Link(filepath.Join(mnt, "a.txt"), filepath.Join(mnt, "d", "other name")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("d/other name", filepath.Join(mnt, "link")); err != nil {
			t.Fatal(err)
		}
	})
	root, err := open(t, image).Root()
	if err != nil {
		t.Fatal(err)
	}
	content := func(name string) string {
		t.Helper()
		n, err := root.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(io.NewSectionReader(n.(volume.File), 0, n.Attr().Size))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var names []string
	if err := root.List(func(e volume.Entry) bool { names = append(names, e.Name); return true }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if want := "[a.txt a.txt:Zone.Identifier a.txt:large b d d:of a directory link ünï]"; fmt.Sprint(names) != want {
		t.Errorf("%s, want %s", names, want)
	}
	for name, want := range map[string]string{
		"a.txt": "content", "a.txt:Zone.Identifier": "[ZoneTransfer]", "a.txt:large": strings.Repeat("stream ", 5000),
		"d:of a directory": "yes", "b": "",
	} {
		if got := content(name); got != want {
			t.Errorf("%s has %.40q, want %.40q", name, got, want)
		}
	}
	for _, name := range []string{"$MFT", "a.txt:", ":", "A:B", "", "d:none"} {
		if n, err := root.Lookup(name); err == nil {
			t.Errorf("%q is a %T", name, n)
		}
	}
	one, err := root.Lookup("a.txt")
	if err != nil {
		t.Fatal(err)
	}
	d, err := root.Lookup("d")
	if err != nil {
		t.Fatal(err)
	}
	other, err := d.(volume.Dir).Lookup("other name")
	if err != nil || other.Attr().Ino != one.Attr().Ino || other.Attr().Nlink < 2 {
		t.Errorf("%+v and %+v, %v: two names of one file", one.Attr(), other, err)
	}
}

func TestRefused(t *testing.T) {
	for name, b := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 4096), "no records": bootOnly()} {
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, volume.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func bootOnly() []byte {
	b := make([]byte, 1<<20)
	copy(b[3:], "NTFS    ")
	b[12], b[13], b[64], b[40], b[48], b[510], b[511] = 2, 8, 0xf6, 0xff, 4, 0x55, 0xaa
	return b
}

// Whatever a file system says, reading it ends, without a panic and in bounded memory.
func FuzzFS(f *testing.F) {
	packed, err := os.Open(filepath.Join("testdata", "small.img.gz"))
	if err != nil {
		f.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		f.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{0}, uint32(4096*4), []byte{0})
	f.Fuzz(func(t *testing.T, at uint32, change []byte, at2 uint32, change2 []byte) {
		if len(change)+len(change2) > 1<<12 {
			return
		}
		b := bytes.Clone(b)
		copy(b[int(at)%len(b):], change)
		copy(b[int(at2)%len(b):], change2)
		n, err := Open(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			volumetest.Walk(n)
		}
	})
}
