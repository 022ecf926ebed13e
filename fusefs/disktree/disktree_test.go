//go:build linux

package disktree

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coffer/fusefs"
	"coffer/images/volume/volumetest"
)

// fileDisk is a file as a Disk.
type fileDisk struct {
	f    *os.File
	size int64
}

func (d fileDisk) Size() int64 { return d.size }

func (d fileDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := d.f.ReadAt(p, off)
	return err
}

// disk puts file systems into partitions, one after the other; an empty path is a partition of zeros, and one that begins with
// "LABELONE" a physical volume.
func disk(t *testing.T, images ...string) (fileDisk, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	at := int64(1 << 20)
	script := "label: gpt\n"
	for _, image := range images {
		size := int64(1 << 20)
		if image != "" {
			st, err := os.Stat(image)
			if err != nil {
				t.Fatal(err)
			}
			size = st.Size()
			volumetest.Command(t, "dd", "if="+image, "of="+path, "bs=1M", fmt.Sprint("seek=", at>>20), "conv=sparse,notrunc", "status=none")
		}
		script += fmt.Sprintf("start=%d, size=%d\n", at/512, size/512)
		at += (size + 1<<20 - 1) &^ (1<<20 - 1)
	}
	if err := out.Truncate(at + 1<<20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sfdisk", "-q", path)
	cmd.Stdin = strings.NewReader(script)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, msg)
	}
	return fileDisk{out, at + 1<<20}, path
}

func mount(t *testing.T, d Disk) string {
	t.Helper()
	if err := fusefs.Available(); err != nil {
		if os.Getenv("COFFER_REQUIRE_FUSE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	m, err := fusefs.Mount(t.Context(), dir, New(d, fusefs.ID{Hi: 1 << 62}, fusefs.Time{Sec: 1}), fusefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sums returns the digest of every file, and the target of every link, below a directory.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		switch {
		case d.Name() == "lost+found":
			return fs.SkipDir
		case d.Type()&fs.ModeSymlink != 0:
			all[name], err = os.Readlink(path)
		case d.Type().IsRegular():
			var b []byte
			if b, err = os.ReadFile(path); err == nil {
				all[name] = fmt.Sprintf("%d %x", len(b), sha256.Sum256(b))
			}
		default:
			all[name] = d.Type().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compare(t *testing.T, got, want string) {
	t.Helper()
	g, w := sums(t, got), sums(t, want)
	if len(w) < 1000 {
		t.Errorf("%d files are few", len(w))
	}
	for name, sum := range w {
		if g[name] != sum {
			t.Errorf("%s is %q, want %q", name, g[name], sum)
		}
	}
	for name := range g {
		if _, ok := w[name]; !ok {
			t.Errorf("%s is too much", name)
		}
	}
}

// A thousand files and more on each file system, through the mount.
func TestThroughMount(t *testing.T) {
	dir := t.TempDir()
	volumetest.Make(t, dir, volumetest.Options{Holes: true, LongName: 200})
	if err := os.Remove(filepath.Join(dir, "emoji 🎉.bin")); err != nil { // mtools knows 16 bits of a letter
		t.Fatal(err)
	}
	d, _ := disk(t,
		volumetest.FAT(t, dir, "100M", "-F", "32"),
		volumetest.Ext(t, dir, "100M", "-t", "ext4"),
		volumetest.NTFS(t, "120M", volumetest.Copy(t, dir)),
		"",
		volumetest.XFS(t, "320M", volumetest.Copy(t, dir)))
	mnt := mount(t, d)
	var names []string
	des, err := os.ReadDir(mnt)
	if err != nil {
		t.Fatal(err)
	}
	for _, de := range des {
		names = append(names, de.Name())
	}
	slices.Sort(names)
	if want := "[1-vfat 2-ext4 3-ntfs 4-empty.txt 5-xfs]"; fmt.Sprint(names) != want {
		t.Fatalf("%s, want %s", names, want)
	}
	for _, name := range []string{"1-vfat", "2-ext4", "3-ntfs", "5-xfs"} {
		t.Run(name, func(t *testing.T) { compare(t, filepath.Join(mnt, name), dir) })
	}
	if b, err := os.ReadFile(filepath.Join(mnt, "4-empty.txt")); err != nil || !strings.Contains(string(b), "not shown") {
		t.Errorf("%q, %v", b, err)
	}
	// Holes are answered.
	f, err := os.Open(filepath.Join(mnt, "2-ext4", "only a hole"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const seekData = 3
	if _, err := f.Seek(0, seekData); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("a file that is a hole has data: %v", err)
	}
}

// What is damaged gives an error, and what is not is there.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	for i := range 40 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), []byte(fmt.Sprint("content ", i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "hurt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hurt", "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	image := volumetest.Ext(t, dir, "8M", "-t", "ext4")
	other := volumetest.Ext(t, dir, "8M", "-t", "ext4")
	out, err := exec.CommandContext(t.Context(), "debugfs", "-w", "-R", "set_inode_field hurt block[0] 0", image).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, err := os.ReadFile(other); err != nil {
		t.Fatal(err)
	} else {
		clear(b[1024+4 : 1024+400]) // the superblock, but its mark
		copy(b[1080:], "\x53\xef")
		if err := os.WriteFile(other, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, _ := disk(t, image, other)
	mnt := mount(t, d)
	if b, err := os.ReadFile(filepath.Join(mnt, "1-ext4", "f7")); err != nil || string(b) != "content 7" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.ReadDir(filepath.Join(mnt, "1-ext4", "hurt")); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a damaged directory: %v", err)
	}
	if des, err := os.ReadDir(filepath.Join(mnt, "1-ext4")); err != nil || len(des) != 42 {
		t.Errorf("%d names, %v", len(des), err)
	}
	if _, err := os.ReadDir(filepath.Join(mnt, "2-ext4")); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a damaged file system: %v", err)
	}
}
