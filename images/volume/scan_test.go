package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// partition makes a disk of 64 MiB with what sfdisk is told.
func partition(t testing.TB, script string) []byte {
	t.Helper()
	if _, err := exec.LookPath("sfdisk"); err != nil {
		if os.Getenv("COFFER_REQUIRE_LAB") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sfdisk", "-q", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func scan(t testing.TB, b []byte) []Part {
	t.Helper()
	parts, err := Scan(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

func TestScan(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         []Part
	}{
		{"gpt", "label: gpt\nstart=2048, size=8192, name=\"EFI system\"\nstart=20480, size=100, name=root\n", []Part{
			{Number: 1, Name: "EFI system", Offset: 1 << 20, Size: 4 << 20},
			{Number: 2, Name: "root", Offset: 10 << 20, Size: 50 << 10},
		}},
		{"gpt with gaps in the numbers", "label: gpt\n3 : start=2048, size=8192\n7 : start=20480, size=100\n", []Part{
			{Number: 3, Offset: 1 << 20, Size: 4 << 20}, {Number: 7, Offset: 10 << 20, Size: 50 << 10},
		}},
		{"mbr", "label: dos\nstart=2048, size=8192, type=83, bootable\nstart=20480, size=100, type=7\n", []Part{
			{Number: 1, Offset: 1 << 20, Size: 4 << 20}, {Number: 2, Offset: 10 << 20, Size: 50 << 10},
		}},
		{"logical partitions", "label: dos\n1 : start=2048, size=2048, type=83\n2 : start=8192, size=60000, type=5\n" +
			"5 : start=10240, size=2048, type=83\n6 : start=20480, size=4096, type=83\n7 : start=30720, size=100, type=83\n", []Part{
			{Number: 1, Offset: 1 << 20, Size: 1 << 20},
			{Number: 5, Offset: 5 << 20, Size: 1 << 20},
			{Number: 6, Offset: 10 << 20, Size: 2 << 20},
			{Number: 7, Offset: 15 << 20, Size: 50 << 10},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := partition(t, c.script)
			got := scan(t, b)
			if len(got) != len(c.want) {
				t.Fatalf("%+v", got)
			}
			for i := range got {
				c.want[i].Kind = Empty
				if got[i] != c.want[i] {
					t.Errorf("%+v, want %+v", got[i], c.want[i])
				}
			}
			copy(b[c.want[0].Offset:], "XFSB")
			if got := scan(t, b); got[0].Kind != XFS {
				t.Errorf("%+v is XFS", got[0])
			}
		})
	}
}

// A table whose first copy is broken is read from the backup at the disk's end.
func TestBackupTable(t *testing.T) {
	b := partition(t, "label: gpt\nstart=2048, size=8192, name=root\n")
	b[512+20]++
	if got := scan(t, b); len(got) != 1 || got[0].Name != "root" {
		t.Errorf("%+v", got)
	}
}

func TestNoTable(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing": {}, "zeros": make([]byte, 1<<20), "a byte": {1}, "text": []byte("no disk"), "ext4": ext4Disk(),
	} {
		got := scan(t, b)
		if len(b) == 0 {
			if len(got) != 0 {
				t.Errorf("%s: %+v", name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Number != 0 || got[0].Size != int64(len(b)) || (got[0].Kind == Ext) != (name == "ext4") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func ext4Disk() []byte {
	b := make([]byte, 1<<20)
	copy(b[1080:], "\x53\xef")
	return b
}

// A header that claims what no memory holds is refused before anything is read by it.
func TestHostileTables(t *testing.T) {
	good := partition(t, "label: gpt\nstart=2048, size=8192\n")
	for name, change := range map[string]func(h []byte){
		"entries":       func(h []byte) { binary.LittleEndian.PutUint32(h[80:], 1<<31) },
		"large entries": func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 1<<31) },
		"small entries": func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 0) },
		"place":         func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 1<<62) },
	} {
		b := bytes.Clone(good)
		h := b[512:1024]
		change(h)
		clear(h[16:20])
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		if _, err := Scan(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	loop := partition(t, "label: dos\n2 : start=8192, size=60000, type=5\n5 : start=10240, size=2048, type=83\n")
	next := loop[8192*512+446+16:] // the second entry of the first logical partition's record: back to itself
	copy(next, []byte{0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	if _, err := Scan(bytes.NewReader(loop), int64(len(loop))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a chain that ends nowhere: %v", err)
	}
}

func FuzzScan(f *testing.F) {
	f.Add(make([]byte, 4096), uint32(0))
	f.Add(partition(f, "label: gpt\nstart=2048, size=8192\n")[:40<<10], uint32(64<<20))
	f.Add(partition(f, "label: dos\n2 : start=8, size=60000, type=5\n5 : start=10, size=2048, type=83\n")[:40<<10], uint32(64<<20))
	f.Fuzz(func(t *testing.T, b []byte, more uint32) {
		if len(b) > 1<<20 {
			return
		}
		size := int64(len(b)) + int64(more)
		parts, err := Scan(padded(b), size)
		if err != nil {
			return
		}
		for _, p := range parts {
			if p.Offset < 0 || p.Size <= 0 || p.Offset+p.Size > size {
				t.Fatalf("%+v lies outside of %d bytes", p, size)
			}
		}
	})
}

// padded is bytes with zeros behind.
type padded []byte

func (b padded) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(b)) {
		n = copy(p, b[off:])
	}
	clear(p[n:])
	return len(p), nil
}
