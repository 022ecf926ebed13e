//go:build linux

package index

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"coffer/dedup/container"
	"coffer/dedup/vfs"
)

// smallDisk mounts a file system of the given size, which takes root.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestDiskFull enters containers until a real disk is full. badger would end the process by SIGBUS at the last page.
func TestDiskFull(t *testing.T) {
	disk := smallDisk(t, "size=48m")
	o := small()
	o.Reserve = 0
	dir := filepath.Join(disk, "index")
	x := open(t, dir, o)
	var err error
	n := 0
	for ; err == nil; n++ {
		if n > 1000 {
			t.Fatal("48 MiB never fill up")
		}
		err = x.PutContainer(t.Context(), testContainer(t, uint32(n+1), container.Data, randomDigests(20000)), nil)
	}
	wantKind(t, err, KindNoSpace)
	if n < 3 {
		t.Fatalf("only %d containers were entered", n)
	}
	closeIndex(t, x)

	// Others write what is left, to the last byte.
	fill, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 64<<10))
	}
	if !vfs.IsNoSpace(errors.Join(err, fill.Close())) {
		t.Fatal(err)
	}
	x = open(t, dir, o)
	if has, err := x.HasContainer(container.MakeID(1, 1)); err != nil || !has {
		t.Fatalf("on a full disk: %v, %v", has, err)
	}
	wantKind(t, x.CheckSpace(), KindNoSpace)
	closeIndex(t, x)
	if err := os.Remove(fill.Name()); err != nil {
		t.Fatal(err)
	}
	x = open(t, dir, o)
	if has, err := x.HasContainer(container.MakeID(1, 1)); err != nil || !has {
		t.Fatalf("after room was made: %v, %v", has, err)
	}
}
