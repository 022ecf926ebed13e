package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"coffer/api"
)

// needTool skips a test for a program that the machine lacks; where nothing may be lacking, it fails.
func needTool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("COFFER_REQUIRE_LAB") != "" {
		t.Fatalf("needs %s", name)
	}
	t.Skipf("needs %s", name)
}

// diskImages is a directory of a raw and a qcow2 image, and what they hold.
type diskImages struct {
	*testing.T
	dir        string
	raw, qcow2 []byte
	rnd        *rand.Rand
}

func newDiskImages(t *testing.T, dir string) *diskImages {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	d := &diskImages{T: t, dir: dir, raw: make([]byte, 48<<20), qcow2: make([]byte, 24<<20), rnd: rand.New(rand.NewPCG(seed, 5))}
	d.tool("qemu-img", "create", "-q", "-f", "raw", d.path("data.img"), "48M")
	d.tool("qemu-img", "create", "-q", "-f", "qcow2", d.path("system.qcow2"), "24M")
	d.change(60)
	return d
}

func (d *diskImages) path(name string) string { return filepath.Join(d.dir, name) }

func (d *diskImages) tool(name string, args ...string) {
	d.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// change writes to both disks as machines would.
func (d *diskImages) change(writes int) {
	d.Helper()
	f, err := os.OpenFile(d.path("data.img"), os.O_WRONLY, 0)
	if err != nil {
		d.Fatal(err)
	}
	defer f.Close()
	commands := []string{"-f", "qcow2"}
	for range writes {
		at, n := d.rnd.IntN(len(d.raw)-(256<<10)), 1+d.rnd.IntN(200<<10)
		for i := range n {
			d.raw[at+i] = byte(d.rnd.IntN(256))
		}
		if _, err := f.WriteAt(d.raw[at:at+n], int64(at)); err != nil {
			d.Fatal(err)
		}
		sector, pattern := d.rnd.IntN(len(d.qcow2)/512-256), 1+d.rnd.IntN(255)
		length := 512 * (1 + d.rnd.IntN(256))
		for i := range length {
			d.qcow2[sector*512+i] = byte(pattern)
		}
		commands = append(commands, "-c", fmt.Sprintf("write -P %d %d %d", pattern, sector*512, length))
	}
	d.tool("qemu-io", append(commands, d.path("system.qcow2"))...)
}

// readSparse reads a file by the parts that it says are data, as cp does.
func readSparse(t *testing.T, path string) (content []byte, data int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	content = make([]byte, size)
	for at := int64(0); at < size; {
		from, err := f.Seek(at, 3) // SEEK_DATA
		if err != nil {
			return content, data
		}
		to, err := f.Seek(from, 4) // SEEK_HOLE
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(content[from:to], from); err != nil {
			t.Fatal(err)
		}
		data += to - from
		at = to
	}
	return content, data
}

// Disk images of a path task: each generation is the disk of its time, in the mount, from a restore and from the API; an
// INCR stores what changed; the store finds nothing wrong with them.
func TestDiskImages(t *testing.T) {
	needFUSE(t)
	needTool(t, "qemu-img")
	needTool(t, "qemu-io")
	l := newLab(t)
	source := l.task("disks", "--image", "*.img", "--image", "*.qcow2")
	disks := newDiskImages(t, source)
	type generation struct {
		run        api.Run
		raw, qcow2 []byte
	}
	var all []generation
	for i, level := range []api.Level{api.LevelFull, api.LevelIncr, api.LevelIncr} {
		if i > 0 {
			disks.change(3)
		}
		age()
		run := l.backup("disks", level, api.RunSuccess)
		if i > 0 && (run.LevelEffective != level || run.Progress.BytesNew > 8<<20) {
			t.Errorf("generation %d: %s, %d bytes new", i, run.LevelEffective, run.Progress.BytesNew)
		}
		all = append(all, generation{run, bytes.Clone(disks.raw), bytes.Clone(disks.qcow2)})
	}

	m := decode[api.Mount](l, "mount", "on")
	times, err := filepath.Glob(filepath.Join(m.Path, client, "disks", "2*"))
	if err != nil || len(times) != len(all) {
		t.Fatalf("the mount shows %q, %v", times, err)
	}
	for i, g := range all {
		want := map[string][]byte{"data.img": g.raw, "system.qcow2.raw": g.qcow2}
		to := l.restore(g.run.Saveset, "restored-"+string(rune('a'+i)))
		for name, content := range want {
			mounted := filepath.Join(times[i], source, name)
			got, data := readSparse(t, mounted)
			if !bytes.Equal(got, content) {
				t.Errorf("generation %d: %s in the mount is not what it was", i, name)
			}
			var st syscall.Stat_t
			if err := syscall.Stat(mounted, &st); err != nil || st.Blocks*512 != data || data >= int64(len(content)) {
				t.Errorf("generation %d: %s has %d blocks, %d bytes of data, of %d bytes: %v", i, name, st.Blocks, data, len(content), err)
			}
			if got, _ := readSparse(t, filepath.Join(to, source, name)); !bytes.Equal(got, content) {
				t.Errorf("generation %d: %s comes back other than it was", i, name)
			}
			out := l.path("got")
			l.ok("saveset", "get", g.run.Saveset, filepath.Join(source, name), "-o", out, "--force")
			if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
				t.Errorf("generation %d: saveset get %s gives other bytes: %v", i, name, err)
			}
		}
		l.run(api.RunSuccess, "restore", g.run.Saveset, "--client", client, "--to", to, "--verify")
	}
	l.ok("mount", "off")
	l.ok("saveset", "delete", all[0].run.Saveset, "--force", "--yes")
	l.ok("store", "gc", "--sparse", "1")
	l.ok("store", "check", "--pages")
	to := l.restore(all[2].run.Saveset, "after-gc")
	if got, _ := readSparse(t, filepath.Join(to, source, "data.img")); !bytes.Equal(got, all[2].raw) {
		t.Error("a disk is not what it was after its first generation was deleted")
	}
}
