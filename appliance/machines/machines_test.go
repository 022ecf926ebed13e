package machines

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/appliance/exports"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
	"coffer/dedup/vfs"
	"coffer/nbd/overlay"
)

const testUUID = "5b7b1a54-0d5e-4a3f-9d5b-0e7c1f2a3b4c"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rig is a store with a saveset of a machine with two disks, and one of files.
type rig struct {
	t              *testing.T
	store          *dedup.Store
	exports        *exports.Manager
	host           *host
	dir            string
	machine, files dedup.SavesetID
	mu             sync.Mutex
	ended          []Info
}

func newRig(t *testing.T) *rig {
	t.Helper()
	mem := vfs.NewMem()
	b, err := blob.OpenDir(mem, "/store")
	must(t, err)
	store, err := dedup.Create(t.Context(), dedup.Options{Blob: b, FS: mem, SpoolDir: "/spool", IndexDir: filepath.Join(t.TempDir(), "index"),
		Key: keys.None(), IndexMemory: 8 << 20, LocalityMemory: 4 << 20, FrameMemory: 4 << 20, NodeMemory: 2 << 20, Reserve: -1,
		IndexReserve: 1, IndexFree: func(string) (int64, error) { return 1 << 40, nil }, ContainerSize: 1 << 20, Owner: "test"})
	must(t, err)
	t.Cleanup(func() { _ = store.Close() })
	r := &rig{t: t, store: store, dir: filepath.Join(t.TempDir(), "machines"), host: &host{online: true}}
	r.exports = exports.New(exports.Options{FS: vfs.NewMem(), Dir: "/overlays", BootID: overlay.BootID{1}, Reserve: 1})
	must(t, r.exports.Load(t.Context()))
	r.exports.Attach(t.Context(), r)
	r.machine = r.save(map[string]string{"backup.json": `{"version": 1, "uuid": "` + testUUID + `", "name": "shop", "nvram": "/x", "tpm": "/t", "disks": [
		{"target": "vda", "file": "vda.raw"}, {"target": "vdb", "file": "vdb.raw"}]}`, "domain.xml": "<domain/>", "nvram": "variables", "tpm": "secrets",
		"vda.raw": "a disk", "vdb.raw": "another disk"})
	r.files = r.save(map[string]string{"notes": "a note"})
	return r
}

// nodeSink collects nodes.
type nodeSink struct{ p frame.Packer }

func (n *nodeSink) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	n.p.Add(d, rec)
	return nil
}

// save stores files of one chunk; "tpm" is a directory with one of this content.
func (r *rig) save(files map[string]string) dedup.SavesetID {
	r.t.Helper()
	ctx := r.t.Context()
	run, err := r.store.Begin(ctx, dedup.RunOptions{ID: "run"})
	must(r.t, err)
	lane, err := run.Lane(dedup.LaneOptions{})
	must(r.t, err)
	hash := r.store.Domain().Keys
	data := digest.NewHasher(hash.Data)
	var nodes nodeSink
	var chunks frame.Packer
	root := recipe.NewDirBuilder(&nodes, digest.NewHasher(hash.Node))
	entry := func(name, content string) recipe.Entry {
		d := data.Sum([]byte(content))
		chunks.Add(d, []byte(content))
		return recipe.Entry{Name: name, Mode: recipe.ModeRegular | 0o600, Size: uint64(len(content)), Content: recipe.Content{Kind: recipe.OneChunk, Digest: d}}
	}
	folder := func(name string, e recipe.Entry, t recipe.Totals) (recipe.Entry, recipe.Totals) {
		b := recipe.NewDirBuilder(&nodes, digest.NewHasher(hash.Node))
		must(r.t, b.Add(ctx, e, t))
		ref, err := b.Finish(ctx)
		must(r.t, err)
		return recipe.Entry{Name: name, Mode: recipe.ModeDir | 0o700, Content: recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}}, ref.Totals
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		e, t := entry(name, files[name]), recipe.Totals{}
		if name == "tpm" {
			e.Name = "tpm2-00.permall"
			e, t = folder("tpm2", e, t)
			e, t = folder("tpm", e, t)
		}
		must(r.t, root.Add(ctx, e, t))
	}
	ref, err := root.Finish(ctx)
	must(r.t, err)
	_, err = lane.PutFrame(ctx, chunks.Encode(frame.NewEncoder(), nil))
	must(r.t, err)
	must(r.t, run.PutNodes(ctx, nodes.p.Encode(frame.NewEncoder(), nil)))
	m, err := run.Commit(ctx, dedup.Draft{Root: ref, Client: "shop", Task: "shop", TaskType: "libvirt", Level: "FULL"})
	must(r.t, err)
	return m.ID
}

type reading struct{ *dedup.View }

func (reading) Key() (*seal.Key, error) { return nil, nil }

func (r *rig) View(ctx context.Context, id dedup.SavesetID) (exports.Reading, error) {
	v, err := r.store.View(ctx, id)
	if err != nil {
		return nil, err
	}
	return reading{v}, nil
}

// manager returns one as after a start.
func (r *rig) manager() *Manager {
	r.t.Helper()
	m := New(Options{Dir: r.dir, Exports: r.exports, Agents: r.host, View: r.View, Ended: func(i Info) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = append(r.ended, i)
	}, Pace: Pace{Running: 5 * time.Millisecond, Job: time.Millisecond, Retry: time.Millisecond}})
	must(r.t, m.Load())
	m.Start()
	r.t.Cleanup(m.Close)
	return m
}

// await waits until a machine is as it should be.
func (r *rig) await(m *Manager, id string, what string, is func(Info) bool) Info {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		i, err := m.Get(id)
		if err == nil && is(i) {
			return i
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not %s: %+v, %v; orders %v", what, i, err, r.host.verbs())
		}
		time.Sleep(time.Millisecond)
	}
}

func (r *rig) awaitState(m *Manager, id string, s State) Info {
	r.t.Helper()
	return r.await(m, id, string(s), func(i Info) bool { return i.State == s && (!s.ending() || i.Over) })
}

// nothingLeft checks that neither exports nor records are left.
func (r *rig) nothingLeft() {
	r.t.Helper()
	if left := r.exports.List(); len(left) > 0 {
		r.t.Errorf("exports are left: %+v", left)
	}
	if files, err := os.ReadDir(r.dir); err != nil || len(files) > 0 {
		r.t.Errorf("records are left: %v, %v", files, err)
	}
}

// host is an agent with a libvirtd.
type host struct {
	mu      sync.Mutex
	online  bool
	known   bool // the agent has the machine's exports
	state   string
	job     *sms.MachineJob
	refuse  map[sms.MachineVerb]error
	orders  []sms.MachineOrder
	hold    chan struct{} // boots wait for it
	booting chan struct{}
}

func (h *host) Online(string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.online
}

func (h *host) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *host) verbs() (out []sms.MachineVerb) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.orders {
		if o.Verb != sms.MachineState {
			out = append(out, o.Verb)
		}
	}
	return out
}

func (h *host) last(v sms.MachineVerb) (last sms.MachineOrder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.orders {
		if o.Verb == v {
			last = o
		}
	}
	return last
}

func (h *host) Order(ctx context.Context, client string, o sms.MachineOrder) (*sms.MachineReply, error) {
	if client != "kvm1" {
		return nil, fmt.Errorf("an order to %s", client)
	}
	h.mu.Lock()
	hold, booting := h.hold, h.booting
	h.mu.Unlock()
	if o.Verb == sms.MachineBoot && hold != nil {
		close(booting)
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.orders = append(h.orders, o)
	if err := h.refuse[o.Verb]; err != nil {
		return nil, err
	}
	switch o.Verb {
	case sms.MachineBoot:
		h.known, h.state, h.job = true, "running", nil
	case sms.MachineAttach:
		h.known = true
	case sms.MachineMove, sms.MachineRestore:
		if o.Verb == sms.MachineMove && !h.known {
			return nil, sms.Errorf(sms.CodeRefused, "the machine does not run from exports of this agent")
		}
		h.job = &sms.MachineJob{Verb: o.Verb, Disk: "vda", Done: 1, Total: 2}
	case sms.MachineDrop:
		h.known, h.state, h.job = false, "", nil
	case sms.MachineRelease:
		h.known, h.job = false, nil
	}
	reply := &sms.MachineReply{State: h.state}
	if h.state != "" {
		reply.UUID, reply.Name = testUUID, "shop"
	}
	if h.job != nil {
		j := *h.job
		reply.Job = &j
	}
	return reply, nil
}

func refused(text string) error { return sms.Errorf(sms.CodeRefused, "%s", text) }

func (r *rig) boot(m *Manager) Info {
	r.t.Helper()
	i, err := m.Boot(r.t.Context(), Spec{Saveset: r.machine, Host: "kvm1", By: "admin", Definition: Definition{NoNetwork: true}})
	must(r.t, err)
	return i
}

// A machine boots, is attached again after a restart of the appliance and of the agent, and moves.
func TestBootAndMove(t *testing.T) {
	r := newRig(t)
	m := r.manager()
	i := r.boot(m)
	i = r.awaitState(m, i.ID, Running)
	if i.UUID != testUUID || i.Client != "shop" || i.HostState != "running" || len(i.Disks) != 2 {
		t.Errorf("%+v", i)
	}
	o := r.host.last(sms.MachineBoot)
	if d := o.Definition; d == nil || d.XML != "<domain/>" || string(d.NVRAM) != "variables" || !d.NoNetwork || d.Name != "shop" ||
		len(d.TPM) != 1 || d.TPM[0].Path != "tpm2/tpm2-00.permall" || string(d.TPM[0].Data) != "secrets" {
		t.Errorf("ordered %+v", d)
	}
	for n, d := range i.Disks {
		e, err := r.exports.Get(d.Export)
		if err != nil || !e.Overlay || !slices.Equal(e.Allow, []string{"kvm1"}) || e.Disk != d.File || o.Disks[n] != (sms.MachineDisk{Target: d.Target, Export: d.Export}) {
			t.Errorf("disk %+v is export %+v, %v; ordered %+v", d, e, err, o.Disks)
		}
		if held, ok := m.Holder(e); !ok || held.ID != i.ID {
			t.Errorf("export %s is held by %+v, %v", e.ID, held, ok)
		}
	}
	if _, err := m.Boot(t.Context(), Spec{Saveset: r.machine, Host: "kvm1", Name: "other"}); KindOf(err) != Conflict {
		t.Errorf("twice of one identity: %v", err)
	}
	m.Close()
	r.host.set(func() { r.host.known = false })
	m = r.manager()
	r.await(m, i.ID, "attached", func(Info) bool { return slices.Contains(r.host.verbs(), sms.MachineAttach) })
	if o := r.host.last(sms.MachineAttach); o.UUID != testUUID || len(o.Disks) != 2 {
		t.Errorf("attached by %+v", o)
	}
	// The agent is away for a while, and knows nothing when it is back.
	r.host.set(func() { r.host.online = false })
	r.await(m, i.ID, "in trouble", func(i Info) bool { return i.Problem != "" && i.State == Running })
	r.host.set(func() { r.host.online, r.host.known = true, false })
	m.Connected("kvm1")
	r.await(m, "shop", "attached again", func(i Info) bool {
		r.host.mu.Lock()
		defer r.host.mu.Unlock()
		return r.host.known && i.Problem == ""
	})
	// A move that fails leaves it running.
	_, err := m.Move(t.Context(), "shop", "ssd", "raw")
	must(t, err)
	r.await(m, i.ID, "moving", func(i Info) bool { return i.State == Moving && i.Job != nil && i.Job.Total == 2 })
	r.host.set(func() { r.host.job.Finished, r.host.job.Error = true, "no space" })
	r.await(m, i.ID, "back", func(i Info) bool { return i.State == Running && strings.Contains(i.Problem, "no space") })
	_, err = m.Move(t.Context(), i.ID, "ssd", "")
	must(t, err)
	// The appliance dies while it moves.
	m.Close()
	m = r.manager()
	r.host.set(func() { r.host.job.Finished = true })
	r.awaitState(m, i.ID, Moved)
	r.nothingLeft()
	if v := r.host.verbs(); v[len(v)-1] != sms.MachineRelease || slices.Contains(v, sms.MachineDrop) {
		t.Errorf("orders %v", v)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ended) != 1 || r.ended[0].State != Moved || len(m.List()) != 0 {
		t.Errorf("ended %+v, listed %+v", r.ended, m.List())
	}
}

// The agent is killed while it moves or boots a machine, and knows nothing of it in its next life: it is told what was going on.
func TestAgentKilled(t *testing.T) {
	r := newRig(t)
	m := r.manager()
	i := r.awaitState(m, r.boot(m).ID, Running)
	_, err := m.Move(t.Context(), "shop", "ssd", "raw")
	must(t, err)
	r.host.set(func() { r.host.known, r.host.job = false, nil })
	m.Connected("kvm1")
	r.await(m, i.ID, "attached again", func(Info) bool { return slices.Contains(r.host.verbs(), sms.MachineAttach) })
	if o := r.host.last(sms.MachineAttach); o.Expect != sms.MachineMove || o.Pool != "ssd" || o.Format != "raw" || len(o.Disks) != 2 {
		t.Errorf("attached by %+v", o)
	}
	// The host has stopped meanwhile: what became of the move is not forgotten, and the machine can be dropped.
	r.host.set(func() {
		r.host.state, r.host.job = "", &sms.MachineJob{Verb: sms.MachineMove, Finished: true, Error: "the machine stopped"}
	})
	r.await(m, i.ID, "stopped", func(i Info) bool { return i.State == Stopped && strings.Contains(i.Problem, "the machine stopped") })
	must(t, m.Drop(t.Context(), i.ID, false))
	if o := r.host.last(sms.MachineDrop); o.Pool != "ssd" {
		t.Errorf("dropped by %+v", o)
	}
	r.nothingLeft()
	// A move that the agent refuses leaves the machine as it was.
	i = r.awaitState(m, r.boot(m).ID, Running)
	r.host.set(func() { r.host.refuse = map[sms.MachineVerb]error{sms.MachineMove: refused("no such pool")} })
	if _, err := m.Move(t.Context(), i.ID, "nil", ""); err == nil || m.List()[0].State != Running {
		t.Errorf("moved: %v, %+v", err, m.List())
	}
}

// What fails leaves nothing, on the host too, also where the host is away when it fails.
func TestFailedBoot(t *testing.T) {
	r := newRig(t)
	m := r.manager()
	if _, err := m.Boot(t.Context(), Spec{Saveset: r.files, Host: "kvm1"}); KindOf(err) != Invalid {
		t.Errorf("files: %v", err)
	}
	if _, err := m.Restore(t.Context(), Spec{Saveset: r.machine, Host: "kvm1", Pool: "p", Format: "vmdk"}); KindOf(err) != Invalid {
		t.Errorf("format: %v", err)
	}
	r.nothingLeft()
	r.host.set(func() { r.host.refuse = map[sms.MachineVerb]error{sms.MachineBoot: refused("no such machine type")} })
	i := r.awaitState(m, r.boot(m).ID, Failed)
	if !strings.Contains(i.Problem, "no such machine type") {
		t.Errorf("%+v", i)
	}
	r.nothingLeft()
	r.host.set(func() {
		r.host.refuse = map[sms.MachineVerb]error{sms.MachineBoot: errors.New("the connection is lost"), sms.MachineDrop: errors.New("the connection is lost")}
	})
	id := r.boot(m).ID
	r.await(m, id, "failed", func(i Info) bool { return i.State == Failed })
	m.Close()
	m = r.manager()
	r.await(m, id, "failed still", func(i Info) bool { return i.State == Failed && !i.Over })
	r.host.set(func() { r.host.refuse = nil })
	r.awaitState(m, id, Failed)
	r.nothingLeft()
}

// The appliance dies while the host boots a machine: the next start finds it running, or takes everything back.
func TestKilledWhileBooting(t *testing.T) {
	for _, runs := range []bool{true, false} {
		t.Run(fmt.Sprintf("runs %v", runs), func(t *testing.T) {
			r := newRig(t)
			m := r.manager()
			r.host.set(func() { r.host.hold, r.host.booting = make(chan struct{}), make(chan struct{}) })
			i := r.boot(m)
			<-r.host.booting
			m.Close()
			r.host.set(func() {
				if r.host.hold = nil; runs {
					r.host.known, r.host.state = true, "running"
				}
			})
			m = r.manager()
			if runs { // the agent may be a new one
				r.awaitState(m, i.ID, Running)
				r.await(m, i.ID, "attached", func(Info) bool { return slices.Contains(r.host.verbs(), sms.MachineAttach) })
				must(t, m.Drop(t.Context(), i.ID, false))
			}
			r.await(m, i.ID, "over", func(i Info) bool { return i.Over })
			r.nothingLeft()
		})
	}
}

// A guest that shuts down keeps its overlays, gives them back, and can be booted again; drop ends it.
func TestStopResetDrop(t *testing.T) {
	r := newRig(t)
	m := r.manager()
	i := r.awaitState(m, r.boot(m).ID, Running)
	r.host.set(func() { r.host.state = "" })
	r.awaitState(m, i.ID, Stopped)
	r.await(m, i.ID, "released", func(Info) bool { v := r.host.verbs(); return v[len(v)-1] == sms.MachineRelease })
	if len(r.exports.List()) != 2 {
		t.Errorf("exports %+v", r.exports.List())
	}
	if _, err := m.Move(t.Context(), i.ID, "ssd", ""); KindOf(err) != Conflict {
		t.Errorf("moved: %v", err)
	}
	_, err := m.Reset(t.Context(), i.ID)
	must(t, err)
	if o := r.host.last(sms.MachineDrop); o.UUID != "" { // another may run with this identity by now
		t.Errorf("a machine that has stopped was ended: %+v", o)
	}
	r.awaitState(m, i.ID, Running)
	r.host.set(func() {
		r.host.refuse = map[sms.MachineVerb]error{sms.MachineDrop: refused("it has been made to stay")}
	})
	if err := m.Drop(t.Context(), i.ID, false); sms.CodeOf(err) != sms.CodeRefused {
		t.Errorf("drop: %v", err)
	}
	if len(r.exports.List()) != 2 {
		t.Error("a drop that was refused dropped exports")
	}
	must(t, m.Drop(t.Context(), i.ID, true))
	r.awaitState(m, i.ID, Dropped)
	r.nothingLeft()
	if err := m.Drop(t.Context(), i.ID, false); KindOf(err) != NotFound {
		t.Errorf("drop again: %v", err)
	}
}

func TestRestore(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(h *host)
		want State
		verb sms.MachineVerb
	}{
		"done":      {func(h *host) { h.job.Finished, h.job.UUID, h.job.Name = true, testUUID, "shop2" }, Restored, sms.MachineRelease},
		"failed":    {func(h *host) { h.job.Finished, h.job.Error = true, "no space" }, Failed, sms.MachineDrop},
		"forgotten": {func(h *host) { h.job = nil }, Failed, sms.MachineDrop},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			m := r.manager()
			i, err := m.Restore(t.Context(), Spec{Saveset: r.machine, Host: "kvm1", Name: "shop2", Pool: "ssd", Definition: Definition{Overwrite: true, Start: true}})
			must(t, err)
			r.await(m, i.ID, "working", func(i Info) bool { return i.Job != nil && i.Job.Done == 1 })
			for _, e := range r.exports.List() {
				if e.Overlay {
					t.Errorf("export %+v", e)
				}
			}
			if o := r.host.last(sms.MachineRestore); o.Pool != "ssd" || !o.Definition.Overwrite || !o.Definition.Start || o.Definition.Name != "shop2" {
				t.Errorf("ordered %+v", o)
			}
			r.host.set(func() { c.end(r.host) })
			i = r.awaitState(m, i.ID, c.want)
			r.nothingLeft()
			if v := r.host.verbs(); v[len(v)-1] != c.verb || c.want == Restored && (i.UUID != testUUID || i.Name != "shop2") {
				t.Errorf("%+v after %v", i, v)
			}
		})
	}
}

// Variables too large for an order go packed.
func TestLargeNVRAM(t *testing.T) {
	for _, size := range []int{0, maxPlainNVRAM, maxPlainNVRAM + 1, 4 << 20} {
		plain, packed, err := orderable(make([]byte, size))
		must(t, err)
		if len(packed) == 0 {
			if len(plain) != size || size > maxPlainNVRAM {
				t.Errorf("of %d bytes %d go as they are", size, len(plain))
			}
			continue
		}
		r, err := gzip.NewReader(bytes.NewReader(packed))
		must(t, err)
		n, err := io.Copy(io.Discard, r)
		if err != nil || n != int64(size) || len(plain) > 0 || len(packed) > 128<<10 {
			t.Errorf("%d bytes packed to %d, %d plain; %v", size, len(packed), len(plain), err)
		}
	}
}

func TestRecordsOfOthers(t *testing.T) {
	good := `{"version": 1, "id": "0123456789ab", "state": "running", "saveset": "` + strings.Repeat("1", 32) + `", "client": "c", "task": "t", "host": "kvm1", "definition": {}, "created": "2026-01-02T03:04:05Z"}`
	if r, err := decodeRecord([]byte(good)); err != nil || r.State != Running {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, change := range map[string][2]string{
		"newer":        {`"version": 1`, `"version": 2`},
		"member":       {`"task": "t"`, `"task": "t", "more": 1`},
		"state":        {`"running"`, `"flying"`},
		"id":           {`0123456789ab`, `../../../etc`},
		"no host":      {`"kvm1"`, `""`},
		"no version":   {`"version": 1, `, ``},
		"not a object": {good, `[]`},
	} {
		if _, err := decodeRecord([]byte(strings.Replace(good, change[0], change[1], 1))); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version": 1, "id": "0123456789ab", "state": "running"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil && r.check() != nil {
			t.Errorf("taken: %+v", r)
		}
	})
}
