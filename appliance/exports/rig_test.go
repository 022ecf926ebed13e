package exports

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
	"coffer/dedup/vfs"
	"coffer/nbd"
	"coffer/nbd/overlay"
)

const (
	testChunk = 16 << 10
	diskSize  = 300*testChunk + 5000 // three leaves, a short last chunk
)

// rig is a store with a saveset that has vda.raw, images/plain.img (a stream), notes.txt and an empty file.
type rig struct {
	t        *testing.T
	store    *dedup.Store
	fs       *vfs.Mem // of the overlays
	key      *seal.Key
	haveKey  bool
	saveset  dedup.SavesetID
	disk     []byte // of vda.raw
	plain    []byte // of images/plain.img
	accesses []Access
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRig(t *testing.T, sealed bool) *rig {
	t.Helper()
	r := &rig{t: t, fs: vfs.NewMem(), haveKey: true}
	mem := vfs.NewMem()
	b, err := blob.OpenDir(mem, "/store")
	must(t, err)
	r.store, err = dedup.Create(t.Context(), dedup.Options{Blob: b, FS: mem, SpoolDir: "/spool", IndexDir: filepath.Join(t.TempDir(), "index"),
		Key: keys.None(), IndexMemory: 8 << 20, LocalityMemory: 4 << 20, FrameMemory: 4 << 20, NodeMemory: 2 << 20, Reserve: -1,
		IndexReserve: 1, IndexFree: func(string) (int64, error) { return 1 << 40, nil }, ContainerSize: 1 << 20, Owner: "test"})
	must(t, err)
	t.Cleanup(func() { _ = r.store.Close() })
	if sealed {
		key := seal.NewKey()
		r.key = &key
	}
	r.disk, r.plain = diskBytes(1, diskSize), diskBytes(2, 3*testChunk)
	r.saveset = r.save()
	return r
}

// diskBytes are bytes with holes and repetitions.
func diskBytes(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for at := 0; at < n; at += testChunk {
		part := b[at:min(at+testChunk, n)]
		switch rnd.IntN(5) {
		case 0: // a hole
		case 1:
			copy(part, "the same in many places")
		default:
			for i := range part {
				part[i] = byte(rnd.Uint32())
			}
		}
	}
	return b
}

// runSink writes into a run.
type runSink struct {
	run    *dedup.Run
	lane   *dedup.Lane
	frames int
}

func (s *runSink) Have(ctx context.Context, ds []digest.Digest, out []bool) error {
	return s.run.Have(ctx, ds, out)
}

func (s *runSink) PutFrame(ctx context.Context, f frame.Frame) error {
	s.frames += len(f.Refs)
	_, err := s.lane.PutFrame(ctx, f)
	return err
}

func (s *runSink) PutNodes(ctx context.Context, f frame.Frame) error { return s.run.PutNodes(ctx, f) }

// begin begins a run, in the domain of the rig's key.
func (r *rig) begin(parents ...dedup.SavesetID) (*runSink, digest.Keys) {
	r.t.Helper()
	d := r.store.Domain()
	o := dedup.RunOptions{ID: "run", Parents: parents}
	if r.key != nil {
		var err error
		if len(parents) == 0 {
			d, err = r.store.AddDomain(r.t.Context(), seal.MaxPlain)
		} else {
			var m dedup.Manifest
			m, err = r.store.Saveset(r.t.Context(), parents[0])
			must(r.t, err)
			d, err = r.store.DomainByID(m.Domain)
		}
		must(r.t, err)
		o.Domain, o.SealedBy = d.ID, r.key.ID()
	}
	run, err := r.store.Begin(r.t.Context(), o)
	must(r.t, err)
	lane, err := run.Lane(dedup.LaneOptions{})
	must(r.t, err)
	return &runSink{run: run, lane: lane}, d.Keys
}

func (r *rig) save() dedup.SavesetID {
	r.t.Helper()
	ctx := r.t.Context()
	sink, keys := r.begin()
	w := newWriter(sink, keys, r.key)
	node := digest.NewHasher(keys.Node)

	images := recipe.NewDirBuilder(w.sink(), node)
	must(r.t, images.Add(ctx, r.stream(w, node), recipe.Totals{}))
	dir, err := images.Finish(ctx)
	must(r.t, err)
	root := recipe.NewDirBuilder(w.sink(), node)
	add := func(e recipe.Entry, below recipe.Totals) { must(r.t, root.Add(ctx, e, below)) }
	add(recipe.Entry{Name: "empty", Mode: recipe.ModeRegular | 0o600}, recipe.Totals{})
	add(recipe.Entry{Name: "images", Mode: recipe.ModeDir | 0o755, Content: recipe.Content{Kind: recipe.DirTree, Digest: dir.Digest}}, dir.Totals)
	note, err := w.chunk(ctx, []byte("a note"))
	must(r.t, err)
	add(recipe.Entry{Name: "notes.txt", Mode: recipe.ModeRegular | 0o600, Size: 6, Content: recipe.Content{Kind: recipe.OneChunk, Digest: note}}, recipe.Totals{})
	add(r.image(w, node), recipe.Totals{})
	ref, err := root.Finish(ctx)
	must(r.t, err)
	must(r.t, w.flush(ctx))
	m, err := sink.run.Commit(ctx, dedup.Draft{Root: ref, Client: "kvm1", Task: "web", TaskType: "path", Level: "FULL"})
	must(r.t, err)
	return m.ID
}

func (r *rig) image(w *writer, node *digest.Hasher) recipe.Entry {
	b := recipe.NewImageBuilder(w.sink(), node)
	must(r.t, b.Start(uint64(len(r.disk)), testChunk))
	for part := range slices.Chunk(r.disk, testChunk) {
		if allZero(part) {
			must(r.t, b.Hole(r.t.Context(), 1))
			continue
		}
		d, err := w.chunk(r.t.Context(), bytes.Clone(part))
		must(r.t, err)
		must(r.t, b.Add(r.t.Context(), d))
	}
	c, _, err := b.Finish()
	must(r.t, err)
	return recipe.Entry{Name: "vda.raw", Mode: recipe.ModeRegular | 0o600, Size: uint64(len(r.disk)), Content: c}
}

func (r *rig) stream(w *writer, node *digest.Hasher) recipe.Entry {
	b := recipe.NewStreamBuilder(w.sink(), node)
	for part := range slices.Chunk(r.plain, 10000) {
		d, err := w.chunk(r.t.Context(), bytes.Clone(part))
		must(r.t, err)
		must(r.t, b.Add(r.t.Context(), recipe.Extent{Length: uint64(len(part)), Digest: d}))
	}
	c, _, err := b.Finish(r.t.Context())
	must(r.t, err)
	return recipe.Entry{Name: "plain.img", Mode: recipe.ModeRegular | 0o600, Size: uint64(len(r.plain)), Content: c}
}

// View implements Store.
func (r *rig) View(ctx context.Context, id dedup.SavesetID) (Reading, error) {
	v, err := r.store.View(ctx, id)
	if err != nil {
		return nil, err
	}
	return &reading{View: v, r: r}, nil
}

type reading struct {
	*dedup.View
	r *rig
}

var errNoKey = errors.New("the key is not here")

func (v *reading) Key() (*seal.Key, error) {
	if v.r.key != nil && !v.r.haveKey {
		return nil, errNoKey
	}
	return v.r.key, nil
}

func (v *reading) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	b, err := v.View.Node(ctx, d)
	if err == nil && v.r.key != nil {
		b, err = seal.NewOpener(*v.r.key).Node(b)
	}
	return b, err
}

func (v *reading) Chunk(ctx context.Context, d digest.Digest) ([]byte, error) {
	b, err := v.View.Chunk(ctx, d)
	if err == nil && v.r.key != nil {
		b, err = seal.NewOpener(*v.r.key).Chunk(nil, b)
	}
	return b, err
}

// manager starts exports on the rig's disk.
func (r *rig) manager() *Manager {
	r.t.Helper()
	m := r.unattached(r.fs)
	m.Attach(r.t.Context(), r)
	return m
}

func (r *rig) unattached(fsys vfs.FS) *Manager {
	r.t.Helper()
	m := New(Options{FS: fsys, Dir: "/data/overlays", BootID: overlay.BootID{1}, Reserve: 1, Accessed: func(a Access) { r.accesses = append(r.accesses, a) },
		ClientOf: func(_ context.Context, c *x509.Certificate) (string, error) {
			if c.Subject.CommonName == "revoked" {
				return "", errors.New("it was revoked")
			}
			return c.Subject.CommonName, nil
		}})
	must(r.t, m.Load(r.t.Context()))
	return m
}

var local = nbd.Peer{Unix: true}

func client(name string) nbd.Peer {
	return nbd.Peer{Remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711}, TLS: true,
		Cert: &x509.Certificate{Subject: pkix.Name{CommonName: name}}}
}

func openExport(t *testing.T, m *Manager, p nbd.Peer, name string) nbd.Export {
	t.Helper()
	e, err := m.Served().Open(t.Context(), p, name)
	must(t, err)
	return e
}

func read(t *testing.T, d nbd.Device) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	must(t, d.ReadAt(t.Context(), b, 0))
	return b
}
