package vm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/agent/report"
	"coffer/appliance/sms"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
	"coffer/images/libvirt"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestDocumentIsGolden(t *testing.T) {
	d := Document{Version: DocumentVersion, Began: time.Date(2026, 11, 22, 2, 15, 0, 0, time.UTC), URI: "qemu:///system", UUID: "00010203-0405-0607-0809-0a0b0c0d0e0f",
		Name: "shop", State: "running", Persistent: true, Level: "INCR", Checkpoint: "coffer-0a-2", Reference: "coffer-0a-1",
		Quiesce: Quiesce{State: libvirt.Frozen, FileSystems: 2}, NVRAM: "/n", TPM: "/t",
		Disks:    []SavedDisk{{Target: "vda", File: "vda.raw", Capacity: 40 << 30, Format: "qcow2", Source: "file", Path: "/img/shop.qcow2", Incremental: true, Read: 100, Dirty: 200}},
		Excluded: []ExcludedDisk{{"vdb", "the task excludes it"}}}
	got, err := d.encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "backup.json")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update rewrites it), %v:\n%s", file, err, got)
	}
	if back, err := ParseDocument(want); err != nil || back.Name != "shop" || back.Disks[0] != d.Disks[0] {
		t.Errorf("%+v, %v", back, err)
	}
	for name, bad := range map[string]string{"a newer version": `{"version":2}`, "no version": `{}`, "no JSON": `{`,
		"a disk elsewhere": `{"version":1,"disks":[{"target":"vda","file":"../vda.raw"}]}`, "a negative disk": `{"version":1,"disks":[{"target":"vda","file":"vda.raw","capacity":-1}]}`} {
		if _, err := ParseDocument([]byte(bad)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// offHost is a host with one machine that is off.
type offHost struct {
	Host
	d     libvirt.Domain
	files fstest.MapFS
	deny  string
	clean error
	kept  []string
}

func (h *offHost) Domain(context.Context, string, string) (*libvirt.Domain, error) {
	d := h.d
	return &d, nil
}
func (h *offHost) XML(context.Context, *libvirt.Domain) (string, error) { return "<domain/>", nil }
func (h *offHost) Close() error                                         { return nil }
func (h *offHost) Files() libvirt.Files                                 { return h }

func (h *offHost) Clean(_ context.Context, _ *libvirt.Domain, _ libvirt.Tag, _ string, keep ...string) (libvirt.Cleaned, error) {
	h.kept = keep
	return libvirt.Cleaned{}, h.clean
}

func (h *offHost) DropCheckpoints(context.Context, *libvirt.Domain, libvirt.Tag, ...string) ([]string, error) {
	return nil, nil
}

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

func (h *offHost) Open(_ context.Context, name string) (libvirt.File, error) {
	if h.deny != "" && strings.HasPrefix(name, h.deny) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	b, err := h.files.ReadFile(strings.TrimPrefix(name, "/"))
	return memFile{bytes.NewReader(b)}, err
}

func (h *offHost) Stat(_ context.Context, name string) (fs.FileInfo, error) {
	return h.files.Stat(strings.TrimPrefix(name, "/"))
}

func (h *offHost) ReadDir(_ context.Context, name string) (out []fs.FileInfo, err error) {
	entries, err := h.files.ReadDir(strings.TrimPrefix(name, "/"))
	for _, e := range entries {
		info, _ := e.Info()
		out = append(out, info)
	}
	return out, err
}

func (h *offHost) Remove(context.Context, string) error { return nil }

func newOff() *offHost {
	old := time.Now().Add(-time.Hour)
	return &offHost{d: libvirt.Domain{UUID: "u", Name: "shop", State: libvirt.StateOff, NVRAM: "/vars", TPM: "/tpm", Disks: []libvirt.Disk{
		{Target: "vda", Device: "disk", Format: "raw", Source: "file", Path: "/a"}, {Target: "sda", Device: "cdrom"}, {Target: "vdb", Device: "disk", Source: "vhostuser"}}},
		files: fstest.MapFS{"a": {Data: bytes.Repeat([]byte("disk"), 50_000), ModTime: old}, "vars": {Data: bytes.Repeat([]byte{7}, 700_000)},
			"tpm/tpm2/state": {Data: []byte("secret")}, "tpm/tpm2/.lock": {}}}
}

func (h *offHost) back(t *testing.T, s *agenttest.Store, key *seal.Key) (*agenttest.Run, error) {
	t.Helper()
	run := s.Backup(nil)
	_, err := Backup(t.Context(), BackupOptions{Run: run, Key: key, Locks: &Locks{}, Connect: func(context.Context, string) (Host, error) { return h, nil },
		Order: sms.BackupOrder{TaskType: sms.TaskLibvirt, Level: "FULL", Libvirt: &sms.LibvirtSource{Domain: "shop", Owner: "0a", FullRun: "r1", LastRun: "r2"}}})
	return run, err
}

func codes(run *agenttest.Run) (out []string) {
	for _, n := range run.Notices() {
		out = append(out, n.Code)
	}
	return out
}

// names lists a tree.
func names(t *testing.T, src recipe.Source, dir recipe.Ref, above string) (out []string) {
	t.Helper()
	for it := recipe.NewDirIter(src, dir.Digest); ; {
		e, _, err := it.Next(t.Context())
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, path.Join(above, e.Name))
		if e.IsDir() {
			out = append(out, names(t, src, recipe.Ref{Digest: e.Content.Digest}, path.Join(above, e.Name))...)
		}
	}
}

func TestWhatASavesetHas(t *testing.T) {
	s, h := agenttest.New(), newOff()
	run, err := h.back(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"backup.json", "domain.xml", "nvram", "tpm", "tpm/tpm2", "tpm/tpm2/.lock", "tpm/tpm2/state", "vda.raw"}
	if got := names(t, s, run.AsParent().Root, ""); !slices.Equal(got, want) {
		t.Errorf("the saveset has %q, want %q", got, want)
	}
	if got := codes(run); !slices.Equal(got, []string{"disk_not_saved"}) {
		t.Errorf("notices %v", got)
	}
	if !slices.Equal(h.kept, []string{"coffer-0a-r1", "coffer-0a-r2", ""}) {
		t.Errorf("kept %v", h.kept)
	}
	key := seal.NewKey()
	if _, err := newOff().back(t, agenttest.NewSealed(key.ID()), &key); err != nil {
		t.Errorf("sealed: %v", err)
	}
}

func TestWhatCannotBeReached(t *testing.T) {
	for name, c := range map[string]struct {
		change func(h *offHost)
		notice string
		code   string
	}{
		"nvram":         {func(h *offHost) { h.deny = "/vars" }, "nvram_not_saved", ""},
		"tpm":           {func(h *offHost) { h.deny = "/tpm" }, "tpm_not_saved", ""},
		"none made yet": {func(h *offHost) { h.d.NVRAM, h.d.TPM = "/x", "/y" }, "", ""},
		"leftovers":     {func(h *offHost) { h.clean = errors.New("a checkpoint stays") }, "left_behind", ""},
		"busy":          {func(h *offHost) { h.clean = &libvirt.Error{Kind: libvirt.KindBusy, Op: "x", Err: errors.New("y")} }, "", CodeBusy},
		"a disk":        {func(h *offHost) { h.deny = "/a" }, "", CodeDisk},
		"other storage": {func(h *offHost) { h.d.Disks[0].Source = "network" }, "", CodeDisk},
		"no disk":       {func(h *offHost) { h.d.Disks = h.d.Disks[1:] }, "", CodeDisk},
	} {
		t.Run(name, func(t *testing.T) {
			h := newOff()
			c.change(h)
			run, err := h.back(t, agenttest.New(), nil)
			if c.code == "" && err != nil || c.code != "" && report.CodeOf(err) != c.code {
				t.Errorf("%v, code %s, want %s", err, report.CodeOf(err), c.code)
			}
			if c.notice != "" && !slices.Contains(codes(run), c.notice) {
				t.Errorf("notices %v, want %s", codes(run), c.notice)
			}
		})
	}
}

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks
		unlock, err := l.Lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.Lock(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Lock(ctx, "a"); err == nil {
			t.Error("two have it")
		}
		time.AfterFunc(time.Second, unlock)
		again, err := l.Lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		again()
	})
}
