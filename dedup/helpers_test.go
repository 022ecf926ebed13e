package dedup

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/index"
	"coffer/dedup/keys"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// testKey is one key file for all stores of a test run: making one costs nothing, but crash clones need the same.
func testKey(t testing.TB) keys.Source {
	t.Helper()
	data, err := keys.NewKeyFile(bytes.NewReader(bytes.Repeat([]byte{7}, 256)))
	if err != nil {
		t.Fatal(err)
	}
	src, err := keys.KeyFile(data)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// memOptions are those of a small store on fsys (with all under root) and an index in dir.
func testOptions(t testing.TB, fsys vfs.FS, root, indexDir string) Options {
	t.Helper()
	b, err := blob.OpenDir(fsys, path.Join(root, "store"))
	for range 3 {
		if !errors.Is(err, errorfs.ErrInjected) {
			break
		}
		b, err = blob.OpenDir(fsys, path.Join(root, "store")) // its faults are the blob package's to test
	}
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Blob: b, FS: fsys, SpoolDir: path.Join(root, "spool"), IndexDir: indexDir, Key: testKey(t),
		IndexMemory: 8 << 20, LocalityMemory: 4 << 20, FrameMemory: 4 << 20, NodeMemory: 2 << 20,
		Reserve: -1, IndexReserve: 1, IndexFree: func(string) (int64, error) { return 1 << 40, nil },
		ContainerSize: 128 << 10, Owner: "test",
	}
}

func newMem(t testing.TB) *vfs.Mem {
	t.Helper()
	return vfs.NewMem()
}

func memOptions(t testing.TB) Options {
	t.Helper()
	return testOptions(t, newMem(t), "/", filepath.Join(t.TempDir(), "index"))
}

func mustCreate(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func wantKind(t testing.TB, err error, k Kind) {
	t.Helper()
	if err == nil || KindOf(err) != k {
		t.Fatalf("error %v, want kind %v", err, k)
	}
}

// testTree is files by path "dir/name"; the content of a file is its chunks one after the other.
type testTree map[string][][]byte

// randomTree makes files whose bytes compress a little.
func randomTree(r *mathrand.Rand, files int) testTree {
	t := make(testTree)
	for i := range files {
		name := fmt.Sprintf("d%02d/f%04d", i%7, i)
		chunks := 1
		if r.IntN(8) == 0 {
			chunks = 2 + r.IntN(5)
		}
		for range chunks {
			t[name] = append(t[name], randomBytes(r, 1+r.IntN(12<<10)))
		}
	}
	return t
}

func randomBytes(r *mathrand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32() & 0x3f)
	}
	return b
}

// mutate returns a tree with some files changed, removed and added; what stays is shared.
func (t testTree) mutate(r *mathrand.Rand) testTree {
	out := make(testTree, len(t))
	for _, name := range t.names() {
		if isDisk(name) {
			out[name] = mutateDisk(r, t[name])
			continue
		}
		switch r.IntN(20) {
		case 0:
		case 1:
			out[name] = [][]byte{randomBytes(r, 1+r.IntN(8<<10))}
		default:
			out[name] = t[name]
		}
	}
	out[fmt.Sprintf("d00/new%d", r.Uint32())] = [][]byte{randomBytes(r, 1+r.IntN(8<<10))}
	return out
}

func (t testTree) names() []string {
	names := make([]string, 0, len(t))
	for n := range t {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// agent is the client's end of a backup, cut to what the engine must be tested with.
type agent struct {
	run   *Run
	lanes []*Lane
	keys  digest.Keys
	key   *seal.Key // nil: nothing is sealed
	base  base      // disks are taken over from there
	nodes []struct {
		d   digest.Digest
		rec []byte
	}
}

func (a *agent) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	a.nodes = append(a.nodes, struct {
		d   digest.Digest
		rec []byte
	}{d, bytes.Clone(rec)})
	return nil
}

func newAgent(run *Run, s *Store, lanes int) (*agent, error) {
	a := &agent{run: run, keys: run.domain.Keys}
	for range lanes {
		l, err := run.Lane(LaneOptions{})
		if err != nil {
			return nil, err
		}
		a.lanes = append(a.lanes, l)
	}
	return a, nil
}

// backup sends what the store lacks of a tree, and returns its root and side stream.
func (a *agent) backup(ctx context.Context, t testTree) (root, side recipe.Ref, err error) {
	if err := a.sendData(ctx, t); err != nil {
		return root, side, err
	}
	if root, side, err = a.build(ctx, t); err != nil {
		return root, side, err
	}
	return root, side, a.sendNodes(ctx)
}

// into is the sink of the builders.
func (a *agent) into() recipe.Sink {
	if a.key == nil {
		return a
	}
	return seal.NewSink(a, *a.key)
}

// stored is a chunk as the store has it.
func (a *agent) stored(c []byte) []byte {
	if a.key == nil {
		return c
	}
	box, err := seal.NewSealer(*a.key).SealChunk(nil, c)
	if err != nil {
		panic(err)
	}
	return box
}

func (a *agent) sendData(ctx context.Context, t testTree) error {
	h := digest.NewHasher(a.keys.Data)
	enc := frame.NewEncoder()
	packers := make([]frame.Packer, len(a.lanes))
	put := func(i int) error {
		if packers[i].Empty() {
			return nil
		}
		_, err := a.lanes[i].PutFrame(ctx, packers[i].Encode(enc, nil))
		packers[i].Reset()
		return err
	}
	lane := 0
	for _, name := range t.names() {
		var chunks [][]byte
		var ds []digest.Digest
		for i, c := range t[name] {
			if c == nil || a.takes(name, t[name], i) {
				continue
			}
			c = a.stored(c)
			chunks, ds = append(chunks, c), append(ds, h.Sum(c))
		}
		have := make([]bool, len(ds))
		if err := a.run.Have(ctx, ds, have); err != nil {
			return err
		}
		for i, c := range chunks {
			if have[i] {
				continue
			}
			p := &packers[lane]
			if !p.Fits(len(c)) || p.Len() > 24<<10 {
				if err := put(lane); err != nil {
					return err
				}
				lane = (lane + 1) % len(a.lanes)
				p = &packers[lane]
				if !p.Fits(len(c)) {
					if err := put(lane); err != nil {
						return err
					}
				}
			}
			p.Add(ds[i], c)
		}
	}
	for i := range packers {
		if err := put(i); err != nil {
			return err
		}
	}
	return nil
}

// build makes the nodes of a tree of two levels.
func (a *agent) build(ctx context.Context, t testTree) (root, side recipe.Ref, err error) {
	data, node := digest.NewHasher(a.keys.Data), digest.NewHasher(a.keys.Node)
	into := a.into()
	disks := recipe.NewImageBuilder(into, node)
	top, sides := recipe.NewDirBuilder(into, node), recipe.NewSideBuilder(into, node)
	dirs := make(map[string][]string)
	for _, name := range t.names() {
		d, f := path.Split(name)
		d = strings.TrimSuffix(d, "/")
		dirs[d] = append(dirs[d], f)
	}
	row := func(name string) error { return sides.Add(ctx, recipe.SideRow{Dev: 1, Ino: 2, Captured: true}, name) }
	for _, d := range sortedKeys(dirs) {
		if err := row(d); err != nil {
			return root, side, err
		}
		b := recipe.NewDirBuilder(into, node)
		for _, f := range dirs[d] {
			e := recipe.Entry{Name: f, Mode: recipe.ModeRegular | 0o644}
			if name := d + "/" + f; isDisk(f) {
				e.Size = uint64(diskSize(t[name]))
				e.Content, err = a.disk(ctx, disks, data, name, t[name])
			} else {
				e.Size, e.Content, err = a.stream(ctx, recipe.NewStreamBuilder(into, node), data, t[name])
			}
			if err != nil {
				return root, side, err
			}
			if err := b.Add(ctx, e, recipe.Totals{}); err != nil {
				return root, side, err
			}
			if err := row(f); err != nil {
				return root, side, err
			}
		}
		ref, err := b.Finish(ctx)
		if err != nil {
			return root, side, err
		}
		e := recipe.Entry{Name: d, Mode: recipe.ModeDir | 0o755, Content: recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}}
		if err := top.Add(ctx, e, ref.Totals); err != nil {
			return root, side, err
		}
	}
	if root, err = top.Finish(ctx); err != nil {
		return root, side, err
	}
	side, err = sides.Finish(ctx)
	return root, side, err
}

// stream makes the nodes of a file.
func (a *agent) stream(ctx context.Context, s *recipe.StreamBuilder, h *digest.Hasher, chunks [][]byte) (size uint64, content recipe.Content, err error) {
	for _, c := range chunks {
		if err := s.Add(ctx, recipe.Extent{Length: uint64(len(c)), Digest: h.Sum(a.stored(c))}); err != nil {
			return 0, content, err
		}
		size += uint64(len(c))
	}
	content, _, err = s.Finish(ctx)
	return size, content, err
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// sendNodes sends the nodes that the store lacks, in small frames.
func (a *agent) sendNodes(ctx context.Context) error {
	ds := make([]digest.Digest, len(a.nodes))
	for i := range a.nodes {
		ds[i] = a.nodes[i].d
	}
	have := make([]bool, len(ds))
	if err := a.run.Have(ctx, ds, have); err != nil {
		return err
	}
	enc := frame.NewEncoder()
	var p frame.Packer
	put := func() error {
		if p.Empty() {
			return nil
		}
		err := a.run.PutNodes(ctx, p.Encode(enc, nil))
		p.Reset()
		return err
	}
	for i, n := range a.nodes {
		if have[i] {
			continue
		}
		if !p.Fits(len(n.rec)) || p.Len() > 8<<10 {
			if err := put(); err != nil {
				return err
			}
		}
		p.Add(n.d, n.rec)
	}
	a.nodes = nil
	return put()
}

// backup runs a whole backup of a tree. On an error the run is aborted.
func backup(ctx context.Context, s *Store, t testTree, lanes int, parents ...SavesetID) (Manifest, error) {
	run, err := s.Begin(ctx, RunOptions{ID: "run", Parents: parents})
	if err != nil {
		return Manifest{}, err
	}
	m, err := backupInto(ctx, s, run, t, lanes)
	if err != nil {
		_ = run.Abort(ctx, "test: "+err.Error())
	}
	return m, err
}

// backupOn is backup with a parent, if b names one, whose disks are taken over as far as they are the same.
func backupOn(ctx context.Context, s *Store, t testTree, lanes int, b base) (Manifest, error) {
	if b.tree == nil {
		return backup(ctx, s, t, lanes)
	}
	run, err := s.Begin(ctx, RunOptions{ID: "run", Parents: []SavesetID{b.id}})
	if err != nil {
		return Manifest{}, err
	}
	m, err := backupFrom(ctx, s, run, t, lanes, b)
	if err != nil {
		_ = run.Abort(ctx, "test: "+err.Error())
	}
	return m, err
}

func backupInto(ctx context.Context, s *Store, run *Run, t testTree, lanes int) (Manifest, error) {
	return backupFrom(ctx, s, run, t, lanes, base{})
}

func backupFrom(ctx context.Context, s *Store, run *Run, t testTree, lanes int, b base) (Manifest, error) {
	a, err := newAgent(run, s, lanes)
	if err != nil {
		return Manifest{}, err
	}
	done, err := a.use(ctx, s, b)
	if err != nil {
		return Manifest{}, err
	}
	defer done()
	root, side, err := a.backup(ctx, t)
	if err != nil {
		return Manifest{}, err
	}
	return run.Commit(ctx, Draft{Root: root, Side: side, Client: "web1", Task: "web1-etc", TaskType: "path", Level: "FULL",
		Started: time.Unix(1, 0), Finished: time.Unix(2, 0), Sources: []string{"/etc"}, Meta: []byte(`{"a":1}`)})
}

func mustBackupOn(t testing.TB, s *Store, tree testTree, lanes int, b base) Manifest {
	t.Helper()
	m, err := backupOn(t.Context(), s, tree, lanes, b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustBackup(t testing.TB, s *Store, tree testTree, lanes int) Manifest {
	t.Helper()
	m, err := backup(t.Context(), s, tree, lanes)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// compare reads a saveset back and holds it against a tree.
func compare(ctx context.Context, s *Store, id SavesetID, want testTree) error {
	v, err := s.View(ctx, id)
	if err != nil {
		return err
	}
	defer v.Close()
	return compareTree(ctx, v, v.Manifest(), want)
}

// contents is a saveset that can be read.
type contents interface {
	recipe.Source
	Chunk(ctx context.Context, d digest.Digest) ([]byte, error)
}

func compareTree(ctx context.Context, v contents, m Manifest, want testTree) error {
	seen := 0
	err := recipe.Walk(ctx, v, m.Root.Digest, m.Side.Digest, func(p string, st recipe.Step) error {
		if st.Entry.IsDir() {
			return nil
		}
		seen++
		w, ok := want[p]
		if !ok {
			return fmt.Errorf("%s: not stored: %w", p, errDiffers)
		}
		if err := compareFile(ctx, v, &st.Entry, w); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		return nil
	})
	if err == nil && seen != len(want) {
		err = fmt.Errorf("%d files, want %d", seen, len(want))
	}
	return err
}

func readFile(ctx context.Context, v contents, e *recipe.Entry) ([]byte, error) {
	it := recipe.NewStreamIter(v, e.Content, e.Size)
	var out []byte
	for {
		x, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		b, err := v.Chunk(ctx, x.Digest)
		if err != nil {
			return nil, err
		}
		if uint64(len(b)) != x.Length {
			return nil, fmt.Errorf("chunk of %d bytes, want %d", len(b), x.Length)
		}
		out = append(out, b...)
	}
}

func mustCompare(t testing.TB, s *Store, id SavesetID, want testTree) {
	t.Helper()
	if err := compare(t.Context(), s, id, want); err != nil {
		t.Fatalf("saveset %v: %v", id, err)
	}
}

// newRand returns a source with a seed that a failing test shows; COFFER_SEED repeats it.
func newRand(t testing.TB) *mathrand.Rand {
	t.Helper()
	var seed [8]byte
	rand.Read(seed[:])
	n := uint64(0)
	for _, b := range seed {
		n = n<<8 | uint64(b)
	}
	if s := os.Getenv("COFFER_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("COFFER_SEED=%d", n)
	return mathrand.New(mathrand.NewPCG(n, 1))
}

// copyDir copies the files of an index.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func newEmptyIndex(t testing.TB, dir string, store digest.DomainID) {
	t.Helper()
	x, err := index.Open(dir, index.Options{Memory: 8 << 20, Reserve: -1, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}
