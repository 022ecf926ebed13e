package dedup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/frame"
)

// TestCheckGoesOnWhereItStopped: shares make a round together, also when the store is opened anew between them.
func TestCheckGoesOnWhereItStopped(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	mustBackup(t, s, randomTree(newRand(t), 300), 2)
	all := len(s.containers.without(nil))
	if all < 5 {
		t.Fatalf("%d containers", all)
	}
	seen, calls := 0, 0
	for s.CheckState().Round < 2 {
		rep, err := s.Check(t.Context(), CheckOptions{Deep: true, Share: 0.3})
		if err != nil || rep.Containers > (all+2)/3+1 {
			t.Fatalf("%+v, %v", rep, err)
		}
		if seen += rep.Containers; rep.Complete != (seen == all) {
			t.Fatalf("%d of %d containers: %+v", seen, all, rep)
		}
		if calls++; calls > 10 {
			t.Fatal("the round does not end")
		}
		if st := s.CheckState(); !rep.Complete && (st.Done != seen || !st.Deep.IsZero()) {
			t.Fatalf("%d containers: %+v", seen, st)
		}
		s = reopen(t, s, o)
	}
	if st := s.CheckState(); seen != all || st.Deep.IsZero() || st.Pages.IsZero() || !st.Objects.IsZero() {
		t.Fatalf("%d of %d containers, %+v", seen, all, st)
	}
	mustCheck(t, s)
	if st := s.CheckState(); st.Objects.IsZero() || st.Round != 3 {
		t.Fatalf("%+v", st)
	}
}

// TestCheckIsCancelled: a slow check stops when it is told to.
func TestCheckIsCancelled(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	mustBackup(t, s, randomTree(newRand(t), 100), 1)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Check(ctx, CheckOptions{Pages: true, Rate: 64 << 10, Progress: func(p Progress) {
		if p.Phase == "pages" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	wantKind(t, CheckOptions{}.Validate(), Invalid)
	wantKind(t, CheckOptions{Pages: true, Share: 2, Rate: -1}.Validate(), Invalid)
}

// badSectors fails the reading of a part of one blob.
type badSectors struct {
	blob.Store
	name     string
	from, to int64
}

func (b *badSectors) ReadRange(ctx context.Context, name string, p []byte, off int64) error {
	if name == b.name && off < b.to && off+int64(len(p)) > b.from {
		return syscall.EIO
	}
	return b.Store.ReadRange(ctx, name, p, off)
}

func (b *badSectors) Adopt(ctx context.Context, name, path string) error {
	return b.Store.(blob.Adopter).Adopt(ctx, name, path)
}

// TestCheckListsBadSectors: what the disk does not give is damage, of the frames that lie there.
func TestCheckListsBadSectors(t *testing.T) {
	o := memOptions(t)
	bad := &badSectors{Store: o.Blob}
	o.Blob = bad
	s := mustCreate(t, o)
	tree := randomTree(newRand(t), 50)
	mustBackup(t, s, tree, 1)
	id := containersOf(t, o, container.Data)[0]
	dir, err := container.OpenDirectory(t.Context(), o.Blob, id, s.ring)
	if err != nil {
		t.Fatal(err)
	}
	f := dir.Frame(1)
	bad.name, bad.from, bad.to = id.Name(), f.Offset+10, f.Offset+20
	rep := mustCheck(t, s)
	if len(rep.Found) != 1 || rep.Found[0].Frame != 1 || !strings.Contains(rep.Found[0].Reason, "input/output error") {
		t.Fatalf("%+v", rep.Found)
	}
	m := mustBackup(t, s, tree, 1) // sends it again
	if got := s.Damage(); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	mustCompare(t, s, m.ID, tree)
}

// TestCheckRecomputesDigests: a frame that is authentic and does not hold what its digests name, as a machine whose memory
// fails might have stored it, is found by the check, and a backup heals it. Reading does not compute digests again.
func TestCheckRecomputesDigests(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	tree := randomTree(newRand(t), 50)
	m := mustBackup(t, s, tree, 1)
	id := containersOf(t, o, container.Data)[0]
	lie(t, s, o, id, 1)
	s = reopen(t, s, o)
	rep := mustCheck(t, s)
	if len(rep.Found) != 1 || rep.Found[0].Frame != 1 || !strings.Contains(rep.Found[0].Reason, "wrong digest") {
		t.Fatalf("%+v", rep.Found)
	}
	m = mustBackup(t, s, tree, 1) // sends it again
	if got := s.Damage(); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	mustCompare(t, s, m.ID, tree)
}

// lie writes a container anew, with another byte in a frame, and everything around it as if that were right.
func lie(t *testing.T, s *Store, o Options, id container.ID, in uint32) {
	t.Helper()
	dir, err := container.OpenDirectory(t.Context(), o.Blob, id, s.ring)
	if err != nil {
		t.Fatal(err)
	}
	w, err := container.NewWriter(o.FS, s.spoolPath("lie"), container.Header{ID: id, Kind: dir.Kind(), Domain: dir.Domain(), Keys: s.ring, Created: dir.Created()})
	if err != nil {
		t.Fatal(err)
	}
	var buf container.Buffer
	for i := range uint32(dir.Frames()) {
		f, err := container.ReadFrame(t.Context(), o.Blob, dir, i, &buf)
		if err != nil {
			t.Fatal(err)
		}
		if i == in {
			plain, err := frame.NewDecoder().Decode(f, nil)
			if err != nil {
				t.Fatal(err)
			}
			plain[len(plain)/2] ^= 1
			f = frame.NewEncoder().Encode(slices.Clone(f.Refs), plain, nil)
		}
		if _, err := w.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := w.Seal(t.Context())
	if err == nil {
		err = o.Blob.Delete(t.Context(), id.Name())
	}
	if err == nil {
		err = container.Store(t.Context(), o.FS, o.Blob, sealed)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hiccup fails the first reading of every place, and gives it at the second.
type hiccup struct {
	badSectors
	met map[string]bool
}

func (h *hiccup) ReadRange(ctx context.Context, name string, p []byte, off int64) error {
	if h.fails(name, fmt.Sprint(name, " ", off, " ", len(p))) {
		return syscall.EIO
	}
	return h.Store.ReadRange(ctx, name, p, off)
}

func (h *hiccup) Size(ctx context.Context, name string) (int64, error) {
	if h.fails(name, name) {
		return 0, syscall.EIO
	}
	return h.Store.Size(ctx, name)
}

func (h *hiccup) fails(name, at string) bool {
	if !strings.HasPrefix(name, container.Prefix) || h.met == nil || h.met[at] {
		return false
	}
	h.met[at] = true
	return true
}

// TestCheckReadsTwice: what the disk gives at the second try is no damage.
func TestCheckReadsTwice(t *testing.T) {
	o := memOptions(t)
	h := &hiccup{badSectors: badSectors{Store: o.Blob}}
	o.Blob = h
	s := mustCreate(t, o)
	mustBackup(t, s, randomTree(newRand(t), 50), 1)
	h.met = make(map[string]bool)
	rep, err := s.Check(t.Context(), CheckOptions{Pages: true, Deep: true})
	if err != nil || len(rep.Found) != 0 || len(h.met) == 0 {
		t.Fatalf("%+v, %v after %d failed reads", rep.Found, err, len(h.met))
	}
}
