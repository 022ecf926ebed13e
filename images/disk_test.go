package images

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// need skips a test where a program is missing; CI has them all.
func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("COFFER_REQUIRE_LAB") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// write puts data of a pattern into an image.
func write(t testing.TB, path string, format Format, cmds ...string) {
	t.Helper()
	args := []string{"-f", string(format)}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	run(t, "qemu-io", append(args, path)...)
}

const diskSize = 9<<20 + 512 // not a whole cluster

// variants make images at path.
var variants = []struct {
	name string
	make func(t *testing.T, path string)
}{
	{"default", func(t *testing.T, path string) {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(diskSize))
		write(t, path, Qcow2, "write -P 7 4096 100k", "write -P 9 3M 1M", "write -z 3M 128k", fmt.Sprintf("write -P 3 %d 512", diskSize-512))
	}},
	{"version 2, clusters of 512", func(t *testing.T, path string) {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=512", path, fmt.Sprint(diskSize))
		write(t, path, Qcow2, "write -P 7 512 3k", "write -P 9 3M 100k", "discard 3M 4k")
	}},
	{"clusters of 2M", func(t *testing.T, path string) {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, fmt.Sprint(diskSize))
		write(t, path, Qcow2, "write -P 7 512 3k", "write -P 9 5M 100k")
	}},
	{"deflate", func(t *testing.T, path string) { compressed(t, path, "zlib") }},
	{"zstd", func(t *testing.T, path string) { compressed(t, path, "zstd") }},
	{"chain", func(t *testing.T, path string) {
		base, middle := path+".base.img", path+".middle.qcow2"
		if err := os.WriteFile(base, randomBytes(5<<20+100*512), 0o600); err != nil { // shorter than what lies on it
			t.Fatal(err)
		}
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, middle, "8M")
		write(t, middle, Qcow2, "write -P 7 1M 100k", "write -P 9 7M 100k", "write -z 2M 64k")
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Base(middle), path, fmt.Sprint(diskSize))
		write(t, path, Qcow2, "write -P 11 1050k 10k", "write -P 12 8500k 3k")
	}},
	{"empty", func(t *testing.T, path string) {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(diskSize))
	}},
	{"nothing", func(t *testing.T, path string) { run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "0") }},
}

func compressed(t *testing.T, path, by string) {
	plain := path + ".plain"
	if err := os.WriteFile(plain, mixedBytes(diskSize&^511), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type="+by, plain, path)
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	c := rand.NewChaCha8([32]byte{1})
	_, _ = c.Read(p)
	return p
}

// mixedBytes are such that some clusters compress.
func mixedBytes(n int) []byte {
	p := randomBytes(n)
	for i := 0; i < n; i += 3 << 16 {
		clear(p[i:min(i+1<<16, n)])
		copy(p[min(i+1<<16, n):min(i+2<<16, n)], bytes.Repeat([]byte("coffer "), 1<<14))
	}
	return p
}

func seed(t testing.TB) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("COFFER_SEED"); s != "" {
		_, _ = fmt.Sscan(s, &n)
	}
	t.Logf("COFFER_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// What is read is what qemu-img reads, in whole and in parts, and holes hold zeros.
func TestLikeQemu(t *testing.T) {
	need(t, "qemu-img")
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			v.make(t, path)
			run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, path+".raw")
			want, err := os.ReadFile(path + ".raw")
			if err != nil {
				t.Fatal(err)
			}
			f, err := OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			d, err := Open(f, Options{Format: Qcow2, Backing: BackingBeside(path)})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if d.Size() != int64(len(want)) || d.Format() != Qcow2 {
				t.Fatalf("%d bytes of %s, want %d", d.Size(), d.Format(), len(want))
			}
			compare(t, d, want)
		})
	}
}

func compare(t *testing.T, d Disk, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := d.ReadAt(got, 0); n != len(want) || err != nil && err != io.EOF || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; equal: %v", n, err, bytes.Equal(got, want))
	}
	r := seed(t)
	for range 200 {
		if len(want) == 0 {
			break
		}
		off := r.IntN(len(want))
		p := make([]byte, 1+r.IntN(300<<10))
		n, err := d.ReadAt(p, int64(off))
		if wantN := min(len(p), len(want)-off); n != wantN || (n < len(p)) != (err == io.EOF) || !bytes.Equal(p[:n], want[off:off+n]) {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
	at := 0
	err := d.Extents(0, int64(len(want)), func(n int64, hole bool) bool {
		if n <= 0 || hole && len(bytes.Trim(want[at:at+int(n)], "\x00")) > 0 {
			t.Fatalf("a hole of %d bytes at %d has data", n, at)
		}
		at += int(n)
		return true
	})
	if err != nil || at != len(want) {
		t.Fatalf("extents end at %d of %d, %v", at, len(want), err)
	}
}

// Sparse images show their holes: reading them must not mean reading their size.
func TestExtents(t *testing.T) {
	need(t, "qemu-img")
	dir := t.TempDir()
	qcow, raw := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.img")
	for path, format := range map[string]Format{qcow: Qcow2, raw: Raw} {
		run(t, "qemu-img", "create", "-q", "-f", string(format), path, "1T")
		write(t, path, format, "write -P 1 512G 1M")
		f, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Open(f, Options{Format: FormatOf(path)})
		if err != nil {
			t.Fatal(err)
		}
		data, extents := int64(0), 0
		if err := d.Extents(0, d.Size(), func(n int64, hole bool) bool {
			if extents++; !hole {
				data += n
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if data < 1<<20 || data > 2<<20 || extents > 3000 {
			t.Errorf("%s: %d bytes of data in %d extents", format, data, extents)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefused(t *testing.T) {
	need(t, "qemu-img")
	dir := t.TempDir()
	create := func(args ...string) []byte {
		path := filepath.Join(dir, fmt.Sprint(len(args), "x.qcow2"))
		run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1M")...)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := create()
	change := func(off int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[off:], to)
		return b
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, randomBytes(1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		kind error
		says string
	}{
		{"no image", []byte("no image"), ErrMalformed, "header"},
		{"raw", make([]byte, 4096), ErrMalformed, "no qcow2"},
		{"version", change(4, 0, 0, 0, 9), ErrUnsupported, "version 9"},
		{"encrypted", change(32, 0, 0, 0, 2), ErrUnsupported, "encrypted"},
		{"extended entries", create("-o", "extended_l2=on,cluster_size=128k"), ErrUnsupported, "extended L2"},
		{"external data", create("-o", "data_file="+filepath.Join(dir, "data")), ErrUnsupported, "external"},
		{"corrupt", change(79, 2), ErrMalformed, "qemu-img check"},
		{"clusters", change(20, 0, 0, 0, 40), ErrMalformed, "2^40"},
		{"size", change(24, 0xff), ErrMalformed, "a disk of"},
		{"large table", change(36, 0x7f), ErrMalformed, "L1 table"},
		{"small table", change(36, 0, 0, 0, 0), ErrMalformed, "L1 table"},
		{"backing file", create("-F", "raw", "-b", secret), ErrUnsupported, secret},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(bytesSource{bytes.NewReader(c.b)}, Options{Format: Qcow2})
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want one about %q", err, c.says)
			}
		})
	}
	if _, err := Open(bytesSource{bytes.NewReader(good)}, Options{Format: VMDK}); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	loop := filepath.Join(dir, "loop.qcow2")
	run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", loop, loop+".new", "1M")
	if err := os.Rename(loop+".new", loop); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(loop)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Open(f, Options{Format: Qcow2, Backing: BackingBeside(loop)}); !errors.Is(err, ErrMalformed) {
		t.Errorf("an image that is its own backing file: %v", err)
	}
}

type bytesSource struct{ *bytes.Reader }

func (b bytesSource) Size() int64 { return b.Reader.Size() }

func TestFormatOf(t *testing.T) {
	for name, want := range map[string]Format{"a.qcow2": Qcow2, "A.VMDK": VMDK, "a.vhdx": VHDX, "a.vhd": VHD, "a.img": Raw, "a": Raw, "qcow2": Raw} {
		if got := FormatOf(name); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
}

// Whatever an image says, reading it ends, in bounded memory and without a panic.
func FuzzQcow2(f *testing.F) {
	for _, name := range []string{"small.qcow2", "compressed.qcow2", "backing.qcow2"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		o := Options{Format: Qcow2, Backing: func(string, Format) (Source, Format, error) {
			return bytesSource{bytes.NewReader(b[:len(b)/2])}, Raw, nil
		}}
		d, err := Open(bytesSource{bytes.NewReader(b)}, o)
		if err != nil {
			return
		}
		p := make([]byte, 256<<10)
		for _, off := range []int64{0, d.Size() / 2, d.Size() - 100} {
			if off >= 0 && off < d.Size() {
				_, _ = d.ReadAt(p, off)
			}
		}
		extents := 0
		_ = d.Extents(0, min(d.Size(), 64<<20), func(int64, bool) bool { extents++; return extents < 1000 })
	})
}
