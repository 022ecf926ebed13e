package fsmeta

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

func openTemp(t *testing.T) (*Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := OpenPath(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, path
}

func TestStatTellsTypes(t *testing.T) {
	d, path := openTemp(t)
	_ = os.WriteFile(path+"/f", []byte("abc"), 0o640)
	_ = os.Symlink("f", path+"/l")
	_ = os.Mkdir(path+"/d", 0o711)
	_ = unix.Mkfifo(path+"/p", 0o600)
	for name, want := range map[string]uint32{"f": recipe.ModeRegular | 0o640, "d": recipe.ModeDir | 0o711,
		"p": recipe.ModeFifo | 0o600, "l": recipe.ModeSymlink | 0o777} {
		var st Stat
		if err := d.Lstat(name, &st); err != nil || st.Mode != want {
			t.Errorf("%s: mode 0%o, %v; want 0%o", name, st.Mode, err, want)
		}
	}
	var st Stat
	if err := d.Lstat("gone", &st); !Gone(err) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestSymlinksAreNotFollowed(t *testing.T) {
	d, path := openTemp(t)
	_ = os.Mkdir(path+"/d", 0o755)
	_ = os.WriteFile(path+"/f", nil, 0o644)
	_ = os.Symlink("d", path+"/dl")
	_ = os.Symlink("f", path+"/fl")
	if sub, err := d.OpenDir("dl"); err == nil {
		_ = sub.Close()
		t.Error("opened a directory through a symlink")
	}
	if f, err := d.OpenFile("fl"); !errors.Is(err, ErrLink) {
		_ = f.Close()
		t.Errorf("a file through a symlink: %v", err)
	}
	if _, err := d.OpenDir("f"); !errors.Is(err, ErrNotDir) {
		t.Errorf("a file as a directory: %v", err)
	}
	if err := d.Named("fl").Chmod(0o600); err == nil {
		t.Error("changed the mode of a symlink")
	}
	if info, _ := os.Stat(path + "/f"); info.Mode().Perm() != 0o644 {
		t.Error("changed the mode behind a symlink")
	}
}

// A fifo without a writer must not hold the reader up.
func TestOpenDoesNotWait(t *testing.T) {
	d, path := openTemp(t)
	_ = unix.Mkfifo(path+"/p", 0o600)
	f, err := d.OpenFile("p")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st Stat
	if err := f.Stat(&st); err != nil || st.IsRegular() {
		t.Errorf("mode 0%o, %v", st.Mode, err)
	}
}

func TestNextData(t *testing.T) {
	d, _ := openTemp(t)
	f, err := d.Create("sparse", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, island = 1 << 40, 5 << 30
	_ = f.Truncate(size)
	if _, err := f.WriteAt([]byte(strings.Repeat("x", 8192)), island); err != nil {
		t.Fatal(err)
	}
	start, end, err := f.NextData(0, size)
	if err != nil || start > island || end < island+8192 || end-start > 1<<20 {
		t.Errorf("data from %d to %d, %v", start, end, err)
	}
	if _, _, err := f.NextData(end, size); err != io.EOF {
		t.Errorf("after the island: %v", err)
	}
}

func TestApply(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d, path := openTemp(t)
	e := recipe.Entry{Mode: recipe.ModeRegular | 0o6755, UID: 12345, GID: 54321, MTime: recipe.Time{Sec: -5, Nsec: 7},
		Xattrs: []recipe.Xattr{
			{Name: "security.capability", Value: []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
			{Name: "user.empty"}, {Name: "user.x", Value: []byte("y")}},
		Flags: 0x40 | 0x80}
	a := &Applier{Report: func(code string, err error) { t.Errorf("%s: %v", code, err) }}
	for _, fresh := range []bool{true, false} {
		f, err := d.Create("f", 0o600)
		if err != nil {
			t.Fatal(err)
		}
		h := f.Handle(d, "f")
		if !fresh {
			_ = h.SetXattr("user.old", []byte("goes"))
		}
		a.Apply(h, &e, Made{Fresh: fresh, Perm: 0o600})
		a.Flags(h, &e, Made{Fresh: fresh})
		var st Stat
		_ = h.Stat(&st)
		xattrs, _ := h.Xattrs(&Scratch{})
		flags, _ := h.Flags()
		if st.Mode != e.Mode || st.UID != e.UID || st.GID != e.GID || st.MTime != e.MTime || flags != e.Flags || len(xattrs) != 3 {
			t.Errorf("fresh %v: %+v, flags %s, %v", fresh, st, FlagNames(flags), xattrs)
		}
		_ = f.Close()
		_ = os.Remove(path + "/f")
	}
}

func TestApplyReports(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d, _ := openTemp(t)
	f, err := d.Create("f", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var codes []string
	a := &Applier{Report: func(code string, err error) { codes = append(codes, code) }}
	e := recipe.Entry{Mode: recipe.ModeRegular | 0o600, Xattrs: []recipe.Xattr{{Name: "nonsense.x", Value: []byte("y")}}}
	a.Apply(f.Handle(d, "f"), &e, Made{Fresh: true, Perm: 0o600})
	if strings.Join(codes, " ") != CodeXattr {
		t.Errorf("reported %v", codes)
	}
}

func TestLongPaths(t *testing.T) {
	d, path := openTemp(t)
	name := strings.Repeat("n", 250)
	dirs := []*Dir{d}
	for range 20 {
		if err := d.Mkdir(name); err != nil {
			t.Fatal(err)
		}
		next, err := d.OpenDir(name)
		if err != nil {
			t.Fatal(err)
		}
		dirs, d = append(dirs, next), next
	}
	if err := d.Symlink("x", "l"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.LXattrs("l", &Scratch{}); err != nil {
		t.Errorf("attributes beyond 4,096 bytes: %v", err)
	}
	_ = d.Remove("l")
	for i := len(dirs) - 1; i > 0; i-- {
		_ = dirs[i].Close()
		_ = dirs[i-1].RemoveDir(name)
	}
	if left, _ := filepath.Glob(path + "/*"); len(left) != 0 {
		t.Error("not cleaned up")
	}
}

func TestDeviceNumbers(t *testing.T) {
	for _, n := range [][2]uint32{{0, 0}, {8, 1}, {259, 4095}, {4095, 0xfffff}, {0xfffff, 0xffffffff}} {
		major, minor := deviceNumbers(linuxDev(n[0], n[1]))
		if major != n[0] || minor != n[1] || linuxDev(n[0], n[1]) != unix.Mkdev(n[0], n[1]) {
			t.Errorf("%v became %d, %d", n, major, minor)
		}
	}
}

func TestFlagNames(t *testing.T) {
	for flags, want := range map[uint32]string{0: "", FlagImmutable | FlagAppend: "ia", 0x40 | FlagNoCOW: "dC", 0x1000: "(0x1000)"} {
		if got := FlagNames(flags); got != want {
			t.Errorf("flags 0x%x are %q, want %q", flags, got, want)
		}
	}
}

func FuzzDirents(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(make([]byte, 16), 24, 0, 8, 'a', 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, buf []byte) {
		for _, n := range appendDirents(nil, buf) {
			if n.Name == "" || n.Name == "." || n.Name == ".." {
				t.Errorf("name %q", n.Name)
			}
		}
	})
}
