package volumetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Command runs a program that must succeed. A test that lacks it is skipped; where the lab is required, it fails.
func Command(t testing.TB, name string, args ...string) {
	t.Helper()
	need(t, name)
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8", "TZ=UTC")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("COFFER_REQUIRE_LAB") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// Ext makes a file system of what lies in dir, by mke2fs, and returns the image's path.
func Ext(t testing.TB, dir, size string, args ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "ext.img")
	Command(t, "mke2fs", append(args, "-q", "-F", "-E", "lazy_itable_init=1,root_owner=0:0", "-d", dir, image, size)...)
	return image
}

// FAT makes a file system of what lies in dir, by mkfs.fat and mtools.
func FAT(t testing.TB, dir, size string, args ...string) string {
	t.Helper()
	need(t, "mkfs.fat", "mcopy")
	image := filepath.Join(t.TempDir(), "fat.img")
	Command(t, "truncate", "-s", size, image)
	Command(t, "mkfs.fat", append(args, image)...)
	des, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	copies := []string{"-s", "-m", "-Q", "-i", image}
	for _, de := range des {
		copies = append(copies, filepath.Join(dir, de.Name()))
	}
	if len(des) > 0 {
		Command(t, "mcopy", append(copies, "::/")...)
	}
	return image
}

// NTFS makes a file system and has fill put something into it, through ntfs-3g. It needs root and /dev/fuse.
func NTFS(t testing.TB, size string, fill func(mnt string), args ...string) string {
	t.Helper()
	need(t, "mkntfs", "ntfs-3g", "setfattr")
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("COFFER_REQUIRE_FUSE") != "" {
			t.Fatal("no /dev/fuse, or not root")
		}
		t.Skip("no /dev/fuse, or not root")
	}
	image := filepath.Join(t.TempDir(), "ntfs.img")
	Command(t, "truncate", "-s", size, image)
	Command(t, "mkntfs", append(append([]string{"-q", "-F", "-Q"}, args...), image)...)
	mounted(t, fill, "ntfs-3g", "-o", "compression", image)
	return image
}

// XFS makes a file system and has fill put something into it, through Linux. It needs root, a loop device and a kernel that
// has XFS; else the test is skipped.
func XFS(t testing.TB, size string, fill func(mnt string), args ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "xfs.img")
	Command(t, "truncate", "-s", size, image)
	Command(t, "mkfs.xfs", append(append([]string{"-q"}, args...), image)...)
	mnt := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, mnt).CombinedOutput(); err != nil {
		t.Skipf("mounting XFS needs root, a loop device and a kernel that has it: %v\n%s", err, out)
	}
	Command(t, "umount", mnt)
	mounted(t, fill, "mount", "-o", "loop", image)
	return image
}

// mounted runs fill on what a command mounts, and unmounts it.
func mounted(t testing.TB, fill func(mnt string), command ...string) {
	t.Helper()
	mnt := t.TempDir()
	Command(t, command[0], append(command[1:], mnt)...)
	done := false
	defer func() {
		if !done {
			_ = exec.Command("umount", "-l", mnt).Run()
		}
	}()
	fill(mnt)
	Command(t, "umount", mnt)
	done = true
}

// Copy returns a fill that copies a directory.
func Copy(t testing.TB, dir string) func(mnt string) {
	return func(mnt string) {
		t.Helper()
		Command(t, "cp", "-r", "--sparse=always", "--preserve=timestamps", dir+"/.", mnt)
	}
}
