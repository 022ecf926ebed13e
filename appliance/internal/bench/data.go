package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernelTrees unpacks two releases of Debian's linux-source-6.1 below dir, the
// oldest and the newest that the archive offers.
func kernelTrees(ctx context.Context, dir string) (first, next string, err error) {
	first, next = filepath.Join(dir, "kernel-first"), filepath.Join(dir, "kernel-next")
	if exists(first) && exists(next) {
		return first, next, nil
	}
	out, err := exec.CommandContext(ctx, "apt-cache", "madison", "linux-source-6.1").Output()
	if err != nil {
		return "", "", fmt.Errorf("apt-cache madison linux-source-6.1: %w", err)
	}
	var versions []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(line, "|"); len(f) == 3 {
			versions = append(versions, strings.TrimSpace(f[1]))
		}
	}
	if len(versions) == 0 {
		return "", "", fmt.Errorf("no linux-source-6.1 in the package lists: run apt-get update")
	}
	if err := unpackKernel(ctx, dir, versions[len(versions)-1], first); err != nil {
		return "", "", err
	}
	return first, next, unpackKernel(ctx, dir, versions[0], next)
}

func unpackKernel(ctx context.Context, dir, version, to string) error {
	fmt.Printf("unpacking linux-source-6.1 %s\n", version)
	tmp, err := os.MkdirTemp(dir, "deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	script := `set -e; cd "$1"; apt-get -qq download "linux-source-6.1=$2" 2>/dev/null
dpkg-deb -x linux-source-6.1_*.deb x; mkdir tree; tar xf x/usr/src/linux-source-6.1.tar.xz -C tree --strip-components=1; mv tree "$3"`
	cmd := exec.CommandContext(ctx, "sh", "-c", script, "sh", tmp, version, to)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack linux-source-6.1 %s: %w: %s", version, err, bytes.TrimSpace(out))
	}
	return nil
}

// mixedData makes about 4 GiB as a file server holds it: text, logs, archives
// that do not compress, disk-like files with holes of zeros, and copies of
// some of them.
func mixedData(dir string, total int64) (string, error) {
	root := filepath.Join(dir, fmt.Sprintf("mixed-%d", total>>20))
	if exists(root) {
		return root, nil
	}
	fmt.Printf("making %d MiB of mixed data\n", total>>20)
	tmp := root + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	g := &generator{rng: rand.New(rand.NewPCG(1, 2)), dir: tmp}
	g.words()
	for g.written < total {
		if err := g.file(); err != nil {
			return "", err
		}
	}
	return root, os.Rename(tmp, root)
}

type generator struct {
	rng     *rand.Rand
	dir     string
	vocab   []string
	n       int
	written int64
	made    []string
}

func (g *generator) words() {
	for range 4000 {
		w := make([]byte, 2+g.rng.IntN(9))
		for i := range w {
			w[i] = byte('a' + g.rng.IntN(26))
		}
		g.vocab = append(g.vocab, string(w))
	}
}

// file writes one file of a random kind: half of the bytes lie in large
// incompressible files, as media and archives do.
func (g *generator) file() error {
	var data []byte
	switch k := g.rng.IntN(100); {
	case k < 60:
		data = g.text(1<<10 + g.rng.IntN(64<<10))
	case k < 80:
		data = g.text(256<<10 + g.rng.IntN(4<<20))
	case k < 90:
		data = g.noise(1<<20 + g.rng.IntN(16<<20))
	case k < 95:
		data = g.disk(8<<20 + g.rng.IntN(24<<20))
	default:
		if len(g.made) == 0 {
			return nil
		}
		old, err := os.ReadFile(g.made[g.rng.IntN(len(g.made))])
		if err != nil {
			return err
		}
		cut := g.rng.IntN(len(old))
		data = slices.Concat(old[:cut], g.text(100), old[cut:])
	}
	path := filepath.Join(g.dir, fmt.Sprintf("d%03d", g.n/100), fmt.Sprintf("f%06d", g.n))
	g.n++
	g.written += int64(len(data))
	g.made = append(g.made, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func (g *generator) text(n int) []byte {
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(g.vocab[int(g.rng.ExpFloat64()*300)%len(g.vocab)])
		b.WriteByte(" \n"[g.rng.IntN(12)/11])
	}
	return b.Bytes()[:n]
}

func (g *generator) noise(n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], g.rng.Uint64())
	}
	return b[:n]
}

func (g *generator) disk(n int) []byte {
	b := make([]byte, n)
	for off := 0; off < n; off += 1 << 20 {
		if g.rng.IntN(3) > 0 {
			copy(b[off:], g.text(min(512<<10, n-off)))
		}
	}
	return b
}

// touch changes one file in a hundred: a line is added in its middle.
func touch(root string, seed uint64) (int, error) {
	rng := rand.New(rand.NewPCG(seed, 7))
	changed := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || rng.IntN(100) != 0 {
			return err
		}
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		cut := len(old) / 2
		changed++
		line := fmt.Appendf(nil, "/* touched %d %d */\n", seed, changed)
		return os.WriteFile(path, slices.Concat(old[:cut], line, old[cut:]), 0o644)
	})
	return changed, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
