package agent_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/agent/backup"
	"coffer/appliance/agent/restore"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// imageRuns backs up with disk images and restores, sealed or not.
type imageRuns struct {
	*testing.T
	s   *agenttest.Store
	key *seal.Key
	src string
}

func newImageRuns(t *testing.T, sealed bool) *imageRuns {
	r := &imageRuns{T: t, s: agenttest.New(), src: t.TempDir()}
	if sealed {
		key := seal.NewKey()
		r.key, r.s = &key, agenttest.NewSealed(key.ID())
	}
	r.s.Verify = true
	return r
}

func (r *imageRuns) backup(parent *uplink.Parent) *agenttest.Run {
	r.Helper()
	run := r.s.Backup(parent)
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(r.src)}, Images: []string{"*.raw", "*.qcow2", "*.vmdk"}}
	// The clock is ahead, so that what the test just wrote is old enough to be taken over.
	now := func() time.Time { return time.Now().Add(time.Minute) }
	if _, err := backup.Run(r.Context(), backup.Options{Order: order, Run: run, Key: r.key, Now: now}); err != nil {
		r.Fatal(err)
	}
	return run
}

// restore restores a saveset, or compares with what is there, and returns the directory and the differences.
func (r *imageRuns) restore(root recipe.Ref, dst string, verify bool) (string, uint64) {
	r.Helper()
	run := r.s.Restore(root)
	var open uplink.Run = run
	if r.key != nil {
		open = uplink.Unseal(run, seal.NewOpener(*r.key))
	}
	out, err := restore.Run(r.Context(), restore.Options{Order: sms.RestoreOrder{Target: sms.Path(dst), Verify: verify}, Run: open})
	if err != nil {
		r.Fatal(err)
	}
	if !verify {
		noNotices(r.T, "restore", run)
	}
	return filepath.Join(dst, r.src), out.Different
}

func (r *imageRuns) write(name string, content []byte) {
	r.Helper()
	f, err := os.Create(filepath.Join(r.src, name))
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(content))); err != nil {
		r.Fatal(err)
	}
	for at := 0; at < len(content); at += 4096 {
		b := content[at:min(at+4096, len(content))]
		if bytes.Count(b, []byte{0}) == len(b) {
			continue
		}
		if _, err := f.WriteAt(b, int64(at)); err != nil {
			r.Fatal(err)
		}
	}
}

func (r *imageRuns) qemuImg(args ...string) {
	r.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		r.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
}

func allocatedBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// diskContent is a sparse disk: a little data all over it.
func diskContent(r *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for range 40 {
		at := r.IntN(size/4096-16) * 4096
		for i := range 4096 * (1 + r.IntN(16)) {
			b[at+i] = byte(r.IntN(256))
		}
	}
	return b
}

// TestNoDiskImage: who asks for disk images and has none is told.
func TestNoDiskImage(t *testing.T) {
	r := newImageRuns(t, false)
	r.write("vm.img", make([]byte, 8192))
	if got := r.backup(nil).Notices(); len(got) != 1 || got[0].Code != "no_disk_image" || got[0].Severity != sms.SeverityWarning ||
		!strings.Contains(got[0].Message, "no file matches") || !strings.Contains(got[0].Message, "*.vmdk") {
		t.Fatalf("%+v", got)
	}
}

func TestDiskImages(t *testing.T) {
	for name, sealed := range map[string]bool{"open": false, "sealed": true} {
		t.Run(name, func(t *testing.T) { testDiskImages(newImageRuns(t, sealed)) })
	}
}

func testDiskImages(r *imageRuns) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		missing(r.T, "needs qemu-img")
	}
	seed := rand.Uint64()
	r.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	content := diskContent(rnd, 32<<20+512)
	guest := diskContent(rnd, 16<<20)
	r.write("vm.raw", content)
	r.write("guest", guest)
	at := func(name string) string { return filepath.Join(r.src, name) }
	r.qemuImg("convert", "-f", "raw", "-O", "qcow2", "-c", at("guest"), at("vm.qcow2"))
	r.qemuImg("create", "-q", "-f", "qcow2", "-b", "vm.qcow2", "-F", "qcow2", at("clone.qcow2"))
	r.qemuImg("create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", at("evil.qcow2"))
	r.write("vm.qcow2-old", []byte("a name between those of an image and its disk"))
	r.write("empty.raw", nil)
	r.write("other.vmdk", []byte("a format that is not read"))
	r.write("broken.qcow2", []byte("no image at all"))

	full := r.backup(nil)
	r.checkNotices(full)
	dst, _ := r.restore(full.Committed.Root, r.TempDir(), false)
	r.checkRestored(dst, map[string][]byte{"vm.raw": content, "vm.qcow2.raw": guest, "clone.qcow2.raw": guest, "guest": guest,
		"vm.qcow2-old": []byte("a name between those of an image and its disk"), "empty.raw": nil,
		"other.vmdk": []byte("a format that is not read"), "broken.qcow2": []byte("no image at all")})
	if n := allocatedBytes(r.T, filepath.Join(dst, "vm.raw")); n > 2*allocatedBytes(r.T, at("vm.raw"))+1<<20 {
		r.Errorf("the restored disk takes %d bytes, %d are enough", n, allocatedBytes(r.T, at("vm.raw")))
	}

	same := r.backup(full.AsParent())
	if c := same.Committed.Counters; c.Files != 0 || c.BytesRead != 0 {
		r.Errorf("unchanged disks are not taken over: %+v", c)
	}

	copy(content[5<<20:], "what the machine wrote meanwhile")
	r.write("vm.raw", content)
	incr := r.backup(same.AsParent())
	if c := incr.Committed.Counters; c.BytesNew > 256<<10 {
		r.Errorf("a small change in a disk: %+v", c)
	}
	dst, _ = r.restore(incr.Committed.Root, r.TempDir(), false)
	r.checkRestored(dst, map[string][]byte{"vm.raw": content, "vm.qcow2.raw": guest})
	r.checkVerify(incr.Committed.Root, strings.TrimSuffix(dst, r.src), filepath.Join(dst, "vm.raw"), content)
}

func (r *imageRuns) checkNotices(run *agenttest.Run) {
	r.Helper()
	got := map[string]string{}
	for _, n := range run.Notices() {
		got[filepath.Base(string(n.Path))] = n.Code
	}
	for _, name := range []string{"other.vmdk", "broken.qcow2", "evil.qcow2"} {
		if got[name] != "no_disk_image" {
			r.Errorf("%s: notice %q", name, got[name])
		}
		delete(got, name)
	}
	if len(got) > 0 {
		r.Errorf("more notices: %v", got)
	}
}

func (r *imageRuns) checkRestored(dst string, want map[string][]byte) {
	r.Helper()
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(dst, name))
		if err != nil || !bytes.Equal(got, content) {
			r.Errorf("%s comes back other than it was (%d bytes, want %d): %v", name, len(got), len(content), err)
		}
	}
}

// checkVerify holds a verifying restore against what it must find: nothing, a change in data, and one in a hole.
func (r *imageRuns) checkVerify(root recipe.Ref, dst, file string, content []byte) {
	r.Helper()
	if _, n := r.restore(root, dst, true); n != 0 {
		r.Errorf("verify finds %d differences in what was just restored", n)
	}
	st, err := os.Stat(file)
	if err != nil {
		r.Fatal(err)
	}
	hole := 0
	for hole < len(content) && (hole%(256<<10) != 0 || !bytes.Equal(content[hole:hole+256<<10], make([]byte, 256<<10))) {
		hole += 4096
	}
	for name, off := range map[string]int64{"data": 5 << 20, "a hole": int64(hole) + 128<<10 + 77} {
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			r.Fatal(err)
		}
		var was [1]byte
		_, _ = f.ReadAt(was[:], off)
		_, _ = f.WriteAt([]byte{was[0] + 1}, off)
		_ = os.Chtimes(file, st.ModTime(), st.ModTime())
		if _, n := r.restore(root, dst, true); n != 1 {
			r.Errorf("verify finds %d differences where %s changed", n, name)
		}
		_, _ = f.WriteAt(was[:], off)
		_ = f.Close()
		_ = os.Chtimes(file, st.ModTime(), st.ModTime())
	}
}
