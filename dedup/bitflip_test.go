package dedup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// flipClass is a kind of place in a store, and how many flips it gets. Of 200 flips in all, most go where most bytes are.
type flipClass struct {
	name string
	n    int
	// where lists the places: bytes from..to of a blob, or of a file of the index.
	where func(w *flipWorld) []flipRange
	// unread: nobody reads the object, its name is what counts.
	unread bool
	// version is where the version stands: the first flip is there. It must not pass for a newer store.
	version int64
}

type flipRange struct {
	blob, file string
	from, to   int64 // to 0: the end
}

var flipClasses = []flipClass{
	{name: "data header", n: 10, where: containerPart(container.Data, "header")},
	{name: "data records", n: 44, where: containerPart(container.Data, "records")},
	{name: "unneeded records", n: 4, where: func(w *flipWorld) []flipRange { return []flipRange{w.unneeded} }},
	{name: "data directory", n: 20, where: containerPart(container.Data, "directory")},
	{name: "data footer", n: 14, where: containerPart(container.Data, "footer"), version: 8},
	{name: "node header", n: 6, where: containerPart(container.Node, "header"), version: 8},
	{name: "node records", n: 24, where: containerPart(container.Node, "records")},
	{name: "node directory", n: 12, where: containerPart(container.Node, "directory")},
	{name: "node footer", n: 8, where: containerPart(container.Node, "footer")},
	{name: "index", n: 24, where: func(w *flipWorld) []flipRange { return w.indexFiles }},
	{name: "manifest", n: 10, where: prefix(manifestPrefix), version: 4},
	{name: "state", n: 8, where: prefix(statePrefix), version: 4},
	{name: "second copy", n: 8, where: prefix(copyPrefix), version: 4},
	{name: "keyring", n: 6, where: prefix("keys/"), version: 8},
	{name: "domain", n: 4, where: prefix(domainPrefix)},
	{name: "epoch", n: 2, where: prefix(epochPrefix), unread: true},
	{name: "tombstones", n: 4, where: prefix(tombstonePrefix)},
	{name: "damage list, checks", n: 4, where: func(w *flipWorld) []flipRange {
		return append(prefix(damagePrefix)(w), prefix(checkPrefix)(w)...)
	}},
}

// flipWorld is a store with a bit of everything, closed, and a second one of the same domain to heal from.
type flipWorld struct {
	fs         *vfs.Mem
	index      string
	options    Options
	source     *Source
	trees      map[SavesetID]testTree
	blobs      []blob.Info
	parts      map[string]map[string]flipRange // of containers
	kinds      map[string]container.Kind
	indexFiles []flipRange
	damaged    string    // the container with the bad place that is on the list already
	unneeded   flipRange // a frame of which only a deleted saveset had something, in a container that stays
}

func prefix(p string) func(w *flipWorld) []flipRange {
	return func(w *flipWorld) (out []flipRange) {
		for _, b := range w.blobs {
			if strings.HasPrefix(b.Name, p) {
				out = append(out, flipRange{blob: b.Name, to: b.Size})
			}
		}
		return out
	}
}

func containerPart(kind container.Kind, part string) func(w *flipWorld) []flipRange {
	return func(w *flipWorld) (out []flipRange) {
		for _, b := range w.blobs {
			if w.kinds[b.Name] == kind && b.Name != w.damaged {
				out = append(out, w.parts[b.Name][part])
			}
		}
		return out
	}
}

func newFlipWorld(t *testing.T, r *mathrand.Rand) *flipWorld {
	t.Helper()
	w := &flipWorld{fs: newMem(t), index: filepath.Join(t.TempDir(), "index"), trees: make(map[SavesetID]testTree),
		parts: make(map[string]map[string]flipRange), kinds: make(map[string]container.Kind)}
	o := testOptions(t, w.fs, "/", w.index)
	s := mustCreate(t, o)
	p := memOptions(t)
	p.Join = s.Domain()
	pair := mustCreate(t, p)
	var last Manifest
	var first base
	tree := randomTree(r, 60).withDisk(r)
	kept := [][]byte{randomBytes(r, 20<<10)}
	gone := [][]byte{randomBytes(r, 40<<10), randomBytes(r, 40<<10)} // the second is in a frame of its own
	for i := range 3 {
		last = mustBackupOn(t, s, tree, 1, first)
		mustBackup(t, pair, tree, 1)
		if i == 0 {
			first = base{id: last.ID, tree: tree}
		}
		if i == 1 {
			mustDelete(t, s, last.ID)
		} else {
			w.trees[last.ID] = tree
		}
		tree = tree.mutate(r)
		tree["kept/file"] = kept
		if delete(tree, "gone/file"); i == 0 {
			tree["gone/file"] = gone
		}
	}
	for range 2 {
		if _, err := s.SetState(t.Context(), last.ID, func(st State) State {
			st.EOL, st.Cause = time.Now().Add(time.Hour), "test"
			return st
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Collect(t.Context(), CollectOptions{Sparse: 0.01}); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, s)
	w.dormantDamage(t, s, o)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.options = o
	var err error
	if w.source, err = OpenSource(t.Context(), Options{Blob: p.Blob, Key: p.Key}); err != nil {
		t.Fatal(err)
	}
	w.survey(t, s)
	if w.findUnneeded(t, s, digest.NewHasher(s.domain.Keys.Data).Sum(gone[1])); w.unneeded.blob == "" {
		t.Fatal("the frame that nobody needs is gone")
	}
	return w
}

// dormantDamage leaves a row on the list that harms nobody: a bad place in what no saveset refers to.
func (w *flipWorld) dormantDamage(t *testing.T, s *Store, o Options) {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "garbage"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.sendData(t.Context(), testTree{"x/y": {[]byte("what a broken run left")}}); err != nil {
		t.Fatal(err)
	}
	if err := run.Abort(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	ids := containersOf(t, o, container.Data)
	w.damaged = ids[len(ids)-1].Name()
	harmFrame(t, s, o, ids[len(ids)-1], 0)
	mustCheck(t, s)
	if _, err := s.Heal(t.Context(), nil, nil); err != nil || len(s.Damage()) != 0 {
		t.Fatalf("%v, %+v", err, s.Damage())
	}
}

// survey lists what there is to flip.
func (w *flipWorld) survey(t *testing.T, s *Store) {
	t.Helper()
	for info, err := range w.options.Blob.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		w.blobs = append(w.blobs, info)
		id, ok := container.ParseName(info.Name)
		if !ok {
			continue
		}
		dir, err := container.OpenDirectory(t.Context(), w.options.Blob, id, s.ring)
		if err != nil {
			t.Fatal(err)
		}
		f := dir.Frame(uint32(dir.Frames() - 1))
		end := f.Offset + int64(f.Size)
		w.kinds[info.Name] = dir.Kind()
		part := func(from, to int64) flipRange { return flipRange{blob: info.Name, from: from, to: to} }
		w.parts[info.Name] = map[string]flipRange{"header": part(0, 128), "records": part(128, end),
			"directory": part(end, info.Size-84), "footer": part(info.Size-84, info.Size)}
	}
	err := filepath.WalkDir(w.index, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 || d.Name() == "LOCK" {
			return err
		}
		rel, err := filepath.Rel(w.index, p)
		w.indexFiles = append(w.indexFiles, flipRange{file: rel, to: min(info.Size(), 64<<10)}) // the rest is unwritten
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// findUnneeded finds the frame that holds a chunk and nothing else.
func (w *flipWorld) findUnneeded(t *testing.T, s *Store, d digest.Digest) {
	t.Helper()
	for _, id := range containersOf(t, w.options, container.Data) {
		dir, err := container.OpenDirectory(t.Context(), w.options.Blob, id, s.ring)
		if err != nil {
			t.Fatal(err)
		}
		for slot := range uint32(dir.Rows()) {
			if f := dir.Frame(dir.Row(slot).Frame); dir.Digest(slot) == d && f.Chunks == 1 {
				w.unneeded = flipRange{blob: id.Name(), from: f.Offset, to: f.Offset + int64(f.Size)}
			}
		}
	}
}

// logged collects what a store said.
type logged struct {
	slog.Handler
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Message)
	return nil
}

func (l *logged) said(words string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.lines, func(s string) bool { return strings.Contains(s, words) })
}

// TestBitFlips flips one bit in each of 200 places of a store and its index. Each is detected, or lies in bytes that nobody
// reads; files that it harms are named; it is healed from a second copy where one exists; and never is anything else read
// than what was written.
func TestBitFlips(t *testing.T) {
	r := newRand(t)
	w := newFlipWorld(t, r)
	table := make(map[string]map[string]int)
	total := 0
	for _, class := range flipClasses {
		table[class.name] = make(map[string]int)
		places := class.where(w)
		if len(places) == 0 {
			t.Fatalf("nothing to flip for %s", class.name)
		}
		for i := range flipsOf(class) {
			p := places[i%len(places)]
			off := p.from + r.Int64N(p.to-p.from)
			bit := byte(1) << r.IntN(8)
			if i == 0 && class.version > 0 {
				off, bit = p.from+class.version, 2
			}
			how := w.flip(t, class, p, off, bit)
			for _, h := range how {
				table[class.name][h]++
			}
			total++
		}
	}
	t.Logf("%d flips:\n%s", total, printFlips(table))
}

// flipsOf is a third of the flips where tests must be quick.
func flipsOf(class flipClass) int {
	if os.Getenv("COFFER_LONG") == "" {
		return (class.n + 2) / 3
	}
	return class.n
}

func printFlips(table map[string]map[string]int) string {
	var b strings.Builder
	for _, class := range flipClasses {
		fmt.Fprintf(&b, "%-20s %3d ", class.name, flipsOf(class))
		for _, how := range sortedKeys(table[class.name]) {
			fmt.Fprintf(&b, "  %s %d", how, table[class.name][how])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// flip tries one place, and returns who detected it and what became of it.
func (w *flipWorld) flip(t *testing.T, class flipClass, p flipRange, off int64, bit byte) (how []string) {
	t.Helper()
	at := fmt.Sprintf("%s: %s%s byte %d bit %#x", class.name, p.blob, p.file, off, bit)
	log := &logged{}
	o := w.clone(t, log)
	if p.blob != "" {
		data, err := blob.ReadAll(t.Context(), o.Blob, p.blob, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		data[off] ^= bit
		replaceBlob(t, o.Blob, p.blob, data)
	} else {
		name := filepath.Join(o.IndexDir, p.file)
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		data[off] ^= bit
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Errorf("%s: the store does not open: %v", at, err)
		return nil
	}
	defer s.Close()
	if log.said("rebuilt") {
		how = append(how, "open rebuilds the index")
	}
	if class.name == "keyring" {
		w.mended(t, o, at)
		how = append(how, "open mends it")
	}
	if len(s.Damage()) > 0 {
		how = append(how, "open lists it")
	}
	bad := w.unreadable(t, s, at)
	if len(bad) > 0 {
		how = append(how, "read")
	}
	rep, err := s.Check(t.Context(), CheckOptions{Objects: true, Deep: true})
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	if len(rep.Found) > 0 {
		how = append(how, "check")
	}
	w.named(t, s, at, bad)
	if len(how) == 0 && w.listedUnneeded(s, p) {
		return []string{"listed, and no saveset needs it"}
	}
	detected := len(how) > 0
	if class.name == "tombstones" {
		if _, err := s.Collect(t.Context(), CollectOptions{Sparse: 0.01}); err != nil {
			t.Fatalf("%s: collect: %v", at, err)
		}
	}
	if _, err := s.Heal(t.Context(), []ChunkSource{w.source}, nil); err != nil {
		t.Fatalf("%s: heal: %v", at, err)
	}
	left := s.Damage()
	switch {
	case len(left) == 0 && detected:
		how = append(how, "healed")
	case len(left) > 0:
		t.Errorf("%s: not healed: %+v", at, left)
	}
	if still := w.unreadable(t, s, at); len(still) > 0 {
		t.Errorf("%s: after healing: %v", at, still)
	}
	if detected {
		return how
	}
	if p.blob != "" && !class.unread {
		t.Errorf("%s: nobody noticed", at)
	}
	return append(how, "in bytes that no reader uses")
}

// listedUnneeded reports whether a container's frame is on the damage list, beside the one that was there before, with
// nothing that a saveset misses: a deleted one did, say. Nobody's files are harmed, so that no check reports it as found.
func (w *flipWorld) listedUnneeded(s *Store, p flipRange) bool {
	s.damage.mu.Lock()
	defer s.damage.mu.Unlock()
	return slices.ContainsFunc(s.damage.rows, func(r *damageRow) bool {
		return r.sort == damagedFrame && r.Container.Name() == p.blob && !r.open()
	})
}

// mended tests that all copies of the keyring are whole.
func (w *flipWorld) mended(t *testing.T, o Options, at string) {
	t.Helper()
	for info, err := range o.Blob.List(t.Context(), keys.Prefix, "") {
		if err == nil {
			err = keys.Verify(t.Context(), o.Blob, info.Name)
		}
		if err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// clone is the world's store in a place of its own.
func (w *flipWorld) clone(t *testing.T, log slog.Handler) Options {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "index")
	copyDir(t, w.index, dir)
	o := testOptions(t, w.fs.Crash(vfs.CrashOptions{Data: vfs.Kept, Entries: vfs.Kept}), "/", dir)
	o.Logger = slog.New(log)
	return o
}

// unreadable reads all savesets and returns the files that do not read, by "saveset/path". Wrong bytes fail the test.
func (w *flipWorld) unreadable(t *testing.T, s *Store, at string) map[string]bool {
	t.Helper()
	bad := make(map[string]bool)
	for id, tree := range w.trees {
		v, err := s.View(t.Context(), id)
		for _, name := range tree.names() {
			if err != nil {
				bad[path.Join(id.String(), name)] = true
				continue
			}
			e, err := lookupPath(t.Context(), v, v.Manifest().Root.Digest, name)
			if err == nil {
				err = compareFile(t.Context(), v, &e, tree[name])
			}
			if errors.Is(err, errDiffers) {
				t.Fatalf("%s: %s reads wrong bytes: %v", at, name, err)
			}
			if err != nil {
				bad[path.Join(id.String(), name)] = true
			}
		}
		if err == nil {
			v.Close()
		}
	}
	return bad
}

// named holds the files that the damage list names against those that do not read.
func (w *flipWorld) named(t *testing.T, s *Store, at string, bad map[string]bool) {
	t.Helper()
	list, err := s.Affected(t.Context(), 1000)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	says := func(file string) bool {
		return slices.ContainsFunc(list, func(a Affected) bool {
			if rest, ok := strings.CutPrefix(file, a.Saveset.String()+"/"); ok {
				return strings.HasPrefix(a.Object, manifestPrefix) ||
					slices.ContainsFunc(a.Paths, func(p string) bool { return p == "" || p == rest || strings.HasPrefix(rest, p+"/") })
			}
			return false
		})
	}
	for id, tree := range w.trees {
		for _, name := range tree.names() {
			file := path.Join(id.String(), name)
			if says(file) != bad[file] {
				t.Errorf("%s: %s is named %v, and does not read %v", at, file, says(file), bad[file])
				return
			}
		}
	}
}
