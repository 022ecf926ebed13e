package exports

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"coffer/dedup"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
	"coffer/nbd"
	"coffer/nbd/overlay"
)

func TestReadOnlyExport(t *testing.T) {
	r := newRig(t, false)
	m := r.manager()
	info, err := m.Create(t.Context(), Spec{Saveset: r.saveset, By: "admin"})
	must(t, err)
	if info.Disk != "vda.raw" || info.Size != diskSize || info.Name != r.saveset.String()+"/vda.raw" || info.State != Ready || info.Client != "kvm1" {
		t.Fatalf("%+v", info)
	}
	plain, err := m.Create(t.Context(), Spec{Saveset: r.saveset, Disk: "/images//plain.img"})
	must(t, err)
	for name, want := range map[string][]byte{info.Name: r.disk, info.ID: r.disk, plain.Name: r.plain} {
		e := openExport(t, m, local, name)
		if !e.ReadOnly || !e.MultiConn || !bytes.Equal(read(t, e.Device), want) {
			t.Fatalf("export %s: %+v", name, e)
		}
		if _, ok := e.Device.(nbd.Writer); ok {
			t.Fatal("a read-only export takes writes")
		}
		e.Close()
	}
	if len(r.accesses) != 3 || r.accesses[0].Saveset != r.saveset.String() || r.accesses[0].Write {
		t.Fatalf("recorded: %+v", r.accesses)
	}
	if got, _ := m.Get(info.ID); got.BytesRead != 2*diskSize || got.Connections != 0 {
		t.Fatalf("%+v", got)
	}
	if err := r.store.Delete(t.Context(), r.saveset, "test"); dedup.KindOf(err) != dedup.InUse {
		t.Fatalf("an exported saveset is deleted: %v", err)
	}
	if ids := m.Using(r.saveset); len(ids) != 2 {
		t.Fatalf("used by %q", ids)
	}
	must(t, m.Drop(t.Context(), info.ID, false))
	must(t, m.Drop(t.Context(), plain.ID, false))
	if names, _ := r.fs.List("/data/overlays"); len(names) != 0 {
		t.Fatalf("drop left %q", names)
	}
	must(t, r.store.Delete(t.Context(), r.saveset, "test"))
	if _, err := m.Served().Open(t.Context(), local, info.Name); kindOf(err) != nbd.KindUnknownExport {
		t.Fatalf("dropped and opened: %v", err)
	}
}

func kindOf(err error) nbd.Kind {
	if e, ok := errors.AsType[*nbd.Error](err); ok {
		return e.Kind
	}
	return nbd.KindOther
}

func TestCreateRefuses(t *testing.T) {
	r := newRig(t, false)
	m := r.manager()
	for name, c := range map[string]struct {
		spec Spec
		want Kind
	}{
		"no saveset":    {Spec{Saveset: dedup.SavesetID{1}}, NotFound},
		"no disk":       {Spec{Saveset: r.saveset, Disk: "vdb.raw"}, NotFound},
		"a directory":   {Spec{Saveset: r.saveset, Disk: "images"}, Invalid},
		"an empty file": {Spec{Saveset: r.saveset, Disk: "empty"}, Invalid},
		"dots":          {Spec{Saveset: r.saveset, Disk: "../vda.raw"}, NotFound},
		"limit alone":   {Spec{Saveset: r.saveset, Limit: 1 << 20}, Invalid},
		"bad limit":     {Spec{Saveset: r.saveset, Overlay: true, Limit: -1}, Invalid},
	} {
		if _, err := m.Create(t.Context(), c.spec); KindOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names, _ := r.fs.List("/data/overlays"); len(names) != 0 {
		t.Fatalf("left behind: %q", names)
	}
	must(t, m.Detach())
	if _, err := m.Create(t.Context(), Spec{Saveset: r.saveset}); KindOf(err) != Locked {
		t.Fatalf("without a store: %v", err)
	}
	must(t, r.store.Delete(t.Context(), r.saveset, "no lease is left"))
}

// TestOverlayLives: what is written is there after a restart, with the store locked in between, and the saveset is what it
// was.
func TestOverlayLives(t *testing.T) {
	r := newRig(t, false)
	m := r.manager()
	ctx := t.Context()
	info, err := m.Create(ctx, Spec{Saveset: r.saveset, Overlay: true, Limit: 1 << 20, Allow: []string{"kvm1"}, Purpose: "a test"})
	must(t, err)
	e := openExport(t, m, local, info.ID)
	w := e.Device.(nbd.Writer)
	must(t, w.WriteAt(ctx, []byte("written"), 12345))
	must(t, w.Zero(ctx, 100*testChunk, 5*testChunk, true))
	must(t, w.Trim(ctx, 110*testChunk, testChunk))
	must(t, w.Flush(ctx))
	want := bytes.Clone(r.disk)
	copy(want[12345:], "written")
	clear(want[100*testChunk : 105*testChunk])
	clear(want[110*testChunk : 111*testChunk])
	if err := m.Drop(ctx, info.ID, false); KindOf(err) != InUse {
		t.Fatalf("drop with a connection: %v", err)
	}
	if err := m.Detach(); KindOf(err) != InUse {
		t.Fatalf("detach with a connection: %v", err)
	}
	e.Close()
	// The process dies: nothing is closed.
	m = r.unattached(r.fs)
	got, err := m.Get(info.ID)
	must(t, err)
	if got.State != StoreLocked || got.Usage.DataBytes != 8192 && got.Usage.DataBytes != 4096 || got.Purpose != "a test" || got.Usage.Limit != 1<<20 {
		t.Fatalf("%+v", got)
	}
	if _, err := m.Served().Open(ctx, local, info.ID); kindOf(err) != nbd.KindShutdown {
		t.Fatalf("open without a store: %v", err)
	}
	m.Attach(ctx, r)
	if err := r.store.Delete(ctx, r.saveset, "test"); dedup.KindOf(err) != dedup.InUse {
		t.Fatalf("deleted: %v", err)
	}
	e = openExport(t, m, local, info.ID)
	if !bytes.Equal(read(t, e.Device), want) {
		t.Fatal("the overlay lost something")
	}
	ro, err := m.Create(ctx, Spec{Saveset: r.saveset})
	must(t, err)
	if !bytes.Equal(read(t, openExport(t, m, local, ro.ID).Device), r.disk) {
		t.Fatal("the saveset changed")
	}
	if err := m.Drop(ctx, info.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := e.Device.ReadAt(ctx, make([]byte, 1), 0); nbd.ErrnoOf(err) != nbd.ESHUTDOWN {
		t.Fatalf("read of a dropped export: %v", err)
	}
	e.Close()
	if names, _ := r.fs.List("/data/overlays"); !slices.Equal(names, []string{ro.ID}) {
		t.Fatalf("left: %q", names)
	}
	must(t, m.Close())
}

// TestPowerLoss: after a loss of power that may have cost an overlay something, the disk of a machine is refused for good, so
// that no guest goes on with it, until somebody takes it as it is.
func TestPowerLoss(t *testing.T) {
	r := newRig(t, false)
	ctx := t.Context()
	m := r.manager()
	of := map[string]string{} // export by machine
	for _, machine := range []string{"", "0123456789ab"} {
		i, err := m.Create(ctx, Spec{Saveset: r.saveset, Overlay: true, Machine: machine})
		must(t, err)
		e := openExport(t, m, local, i.ID)
		must(t, e.Device.(nbd.Writer).WriteAt(ctx, []byte("written"), 0))
		of[machine] = i.ID
	}
	m = New(Options{FS: r.fs, Dir: "/data/overlays", BootID: overlay.BootID{2}, Reserve: 1})
	must(t, m.Load(ctx))
	m.Attach(ctx, r)
	openExport(t, m, local, of[""]).Close()
	id := of["0123456789ab"]
	if i, err := m.Get(id); err != nil || !i.Unclean || i.Machine != "0123456789ab" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := m.Served().Open(ctx, local, id); kindOf(err) != nbd.KindPolicy {
		t.Errorf("a machine's disk that may have lost something: %v", err)
	}
	must(t, m.Settle(ctx, id))
	openExport(t, m, local, id).Close()
	must(t, m.Close())
}

func TestWhoSees(t *testing.T) {
	r := newRig(t, false)
	m := r.manager()
	ids := map[string]string{}
	for name, allow := range map[string][]string{"none": nil, "kvm1": {"kvm1"}, "both": {"kvm2", "kvm1", "kvm1"}, "any": {Anybody}} {
		i, err := m.Create(t.Context(), Spec{Saveset: r.saveset, Overlay: true, Allow: allow})
		must(t, err)
		ids[name] = i.ID
	}
	remote := nbd.Peer{Remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9)}}
	loopClient := client("kvm2")
	loopClient.Loopback = true
	for name, c := range map[string]struct {
		peer nbd.Peer
		want []string
	}{
		"unix":                {local, []string{"any", "both", "kvm1", "none"}},
		"loopback":            {nbd.Peer{Loopback: true, Remote: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}, []string{"any", "both", "kvm1", "none"}},
		"remote":              {remote, []string{"any"}},
		"client":              {client("kvm1"), []string{"any", "both", "kvm1"}},
		"client on this host": {loopClient, []string{"any", "both"}},
		"revoked":             {client("revoked"), []string{"any"}},
		"named like anybody":  {client(Anybody), []string{"any"}},
	} {
		list, err := m.Served().List(t.Context(), c.peer)
		must(t, err)
		var got []string
		for label, id := range ids {
			listed := slices.ContainsFunc(list, func(i nbd.ExportInfo) bool { return i.Name == id })
			e, err := m.Served().Open(t.Context(), c.peer, id)
			if listed != (err == nil) {
				t.Fatalf("%s: export %s is listed: %v, and opens: %v", name, label, listed, err)
			}
			if err == nil {
				e.Close()
				got = append(got, label)
			} else if kindOf(err) != nbd.KindUnknownExport {
				t.Fatalf("%s: export %s: %v", name, label, err)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s sees %q, want %q", name, got, c.want)
		}
	}
}

func TestRevoked(t *testing.T) {
	r := newRig(t, false)
	m := r.manager()
	i, err := m.Create(t.Context(), Spec{Saveset: r.saveset, Allow: []string{"kvm1", "kvm2"}})
	must(t, err)
	one, two := openExport(t, m, client("kvm1"), i.ID), openExport(t, m, client("kvm2"), i.ID)
	m.Revoke("kvm1")
	if err := one.Device.ReadAt(t.Context(), make([]byte, 1), 0); nbd.ErrnoOf(err) != nbd.EPERM {
		t.Fatalf("a client that was revoked reads: %v", err)
	}
	read(t, two.Device)
	one.Close()
	two.Close()
}

// TestCommit: the new saveset has the overlay's disk and all else as it was, costs what was written, and leaves the old one.
func TestCommit(t *testing.T) {
	for _, c := range []struct {
		disk   string
		sealed bool
	}{{"vda.raw", false}, {"images/plain.img", false}, {"vda.raw", true}, {"images/plain.img", true}} {
		t.Run(fmt.Sprintf("%s sealed %v", c.disk, c.sealed), func(t *testing.T) {
			r := newRig(t, c.sealed)
			m := r.manager()
			ctx := t.Context()
			info, err := m.Create(ctx, Spec{Saveset: r.saveset, Disk: c.disk, Overlay: true})
			must(t, err)
			want := bytes.Clone(r.disk)
			other, otherDisk := "images/plain.img", r.plain
			if c.disk != "vda.raw" {
				want, other, otherDisk = bytes.Clone(r.plain), "vda.raw", r.disk
			}
			e := openExport(t, m, local, info.ID)
			w := e.Device.(nbd.Writer)
			rnd := rand.New(rand.NewPCG(3, 3))
			for range 12 {
				p := make([]byte, 1+rnd.IntN(9000))
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				off := rnd.IntN(len(want) - len(p))
				must(t, w.WriteAt(ctx, p, int64(off)))
				copy(want[off:], p)
			}
			must(t, w.Zero(ctx, testChunk+10, 2*testChunk-20, true))
			clear(want[testChunk+10 : 3*testChunk-10])
			if _, err := m.BeginCommit(ctx, info.ID); KindOf(err) != InUse {
				t.Fatalf("commit with a connection: %v", err)
			}
			e.Close()

			commit, err := m.BeginCommit(ctx, info.ID)
			must(t, err)
			if _, err := m.Served().Open(ctx, local, info.ID); kindOf(err) != nbd.KindShutdown {
				t.Fatalf("open while it is committed: %v", err)
			}
			if err := m.Drop(ctx, info.ID, true); KindOf(err) != InUse {
				t.Fatalf("drop while it is committed: %v", err)
			}
			sink, keys := r.begin(r.saveset)
			var told int64
			ref, err := commit.Build(ctx, sink, keys, func(n int64) { told = n })
			must(t, err)
			old := commit.Manifest()
			next, err := sink.run.Commit(ctx, dedup.Draft{Root: ref, Client: old.Client, Task: old.Task, TaskType: old.TaskType, Level: "COPY"})
			must(t, err)
			commit.End()
			if c.disk == "vda.raw" && sink.frames > 40 {
				t.Fatalf("%d chunks were sent", sink.frames)
			}
			if told == 0 {
				t.Fatal("no progress was told")
			}
			if next.Entries != old.Entries || next.Logical != old.Logical {
				t.Fatalf("%d entries of %d bytes, were %d of %d", next.Entries, next.Logical, old.Entries, old.Logical)
			}
			for disk, content := range map[string][]byte{c.disk: want, other: otherDisk, "notes.txt": []byte("a note")} {
				i, err := m.Create(ctx, Spec{Saveset: next.ID, Disk: disk})
				must(t, err)
				if !bytes.Equal(read(t, openExport(t, m, local, i.ID).Device), content) {
					t.Fatalf("%s of the new saveset differs", disk)
				}
			}
			again := openExport(t, m, local, info.ID)
			if !bytes.Equal(read(t, again.Device), want) {
				t.Fatal("the overlay changed by its commit")
			}
		})
	}
}

func TestSealedNeedsItsKey(t *testing.T) {
	r := newRig(t, true)
	r.haveKey = false
	m := r.manager()
	if _, err := m.Create(t.Context(), Spec{Saveset: r.saveset}); KindOf(err) != Sealed {
		t.Fatalf("made without the key: %v", err)
	}
	r.haveKey = true
	info, err := m.Create(t.Context(), Spec{Saveset: r.saveset})
	must(t, err)
	if !bytes.Equal(read(t, openExport(t, m, local, info.ID).Device), r.disk) {
		t.Fatal("a sealed disk reads otherwise")
	}
	r.haveKey = false
	if got, _ := m.Get(info.ID); got.State != KeyNeeded || !strings.Contains(got.Problem, "encrypted") {
		t.Fatalf("%+v", got)
	}
	if _, err := m.Served().Open(t.Context(), local, info.ID); kindOf(err) != nbd.KindShutdown {
		t.Fatalf("opened without the key: %v", err)
	}
}

// TestFoldersAtEachPoint fails, and crashes at, every operation of a creation and a drop: at the next start there is a whole
// export or nothing.
func TestFoldersAtEachPoint(t *testing.T) {
	r := newRig(t, false)
	for _, overlaid := range []bool{false, true} {
		for i := int64(0); ; i++ {
			mem := vfs.NewMem()
			must(t, mem.MkdirAll("/data/overlays"))
			must(t, mem.SyncDir("/"))
			must(t, mem.SyncDir("/data"))
			fail := errorfs.FailAt(i)
			var crashed []*vfs.Mem
			armed := false
			m := r.unattached(errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, name string) error {
				if !armed {
					return nil
				}
				if op.Changes() {
					crashed = append(crashed, mem.Crash(vfs.CrashOptions{}), mem.Crash(vfs.CrashOptions{Entries: vfs.Kept}))
				}
				return fail.Before(op, name)
			})))
			m.Attach(t.Context(), r)
			armed = true
			info, err := m.Create(t.Context(), Spec{Saveset: r.saveset, Disk: "images/plain.img", Overlay: overlaid})
			if err != nil && len(m.List()) != 0 {
				t.Fatalf("a creation that failed left an export: %v", err)
			}
			if err == nil {
				crashed = append(crashed, mem.Crash(vfs.CrashOptions{}))
				if again := r.unattached(mem.Crash(vfs.CrashOptions{})); len(again.List()) != 1 {
					t.Fatal("an export that was made is lost")
				}
				err := m.Drop(t.Context(), info.ID, false)
				if err != nil { // a second try finds the disk well again
					err = m.Drop(t.Context(), info.ID, false)
				}
				must(t, err)
				if names, _ := mem.Crash(vfs.CrashOptions{}).List("/data/overlays"); len(names) != 0 {
					t.Fatalf("a drop left %q", names)
				}
			}
			must(t, m.Close())
			for _, c := range crashed {
				again := r.unattached(c)
				list := again.List()
				names, _ := c.List("/data/overlays")
				if len(list) != len(names) || len(list) > 1 || len(list) == 1 && list[0].State == IsBroken {
					t.Fatalf("crash: %d exports in %q: %+v", len(list), names, list)
				}
				must(t, again.Close())
			}
			if !fail.Reached() {
				break
			}
		}
	}
}

func TestBroken(t *testing.T) {
	r := newRig(t, false)
	m := r.manager()
	one, err := m.Create(t.Context(), Spec{Saveset: r.saveset, Overlay: true})
	must(t, err)
	two, err := m.Create(t.Context(), Spec{Saveset: r.saveset})
	must(t, err)
	three, err := m.Create(t.Context(), Spec{Saveset: r.saveset, Overlay: true})
	must(t, err)
	must(t, m.Close())
	must(t, r.fs.Remove("/data/overlays/"+one.ID+"/map"))
	must(t, vfs.WriteFileSync(r.fs, "/data/overlays/"+two.ID+"/export.json", []byte(`{"version": 2}`)))
	must(t, r.store.Delete(t.Context(), r.saveset, "nobody has a lease"))
	m = r.manager()
	for id, why := range map[string]string{one.ID: "cannot be opened", two.ID: "newer version", three.ID: "is gone"} {
		i, err := m.Get(id)
		must(t, err)
		if i.State != IsBroken || !strings.Contains(i.Problem, why) {
			t.Errorf("%+v", i)
		}
		must(t, m.Drop(t.Context(), id, false))
	}
	if names, _ := r.fs.List("/data/overlays"); len(names) != 0 {
		t.Fatalf("left: %q", names)
	}
}
