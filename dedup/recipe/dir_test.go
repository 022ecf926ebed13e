package recipe_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

func readDir(t *testing.T, it *DirIter) []Entry {
	t.Helper()
	var out []Entry
	for {
		e, _, err := it.Next(t.Context())
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
}

// everyField is a directory whose entries have every field there is.
func everyField(sub Ref) []Entry {
	return []Entry{
		{Name: "\xff\xfe not utf-8", Mode: ModeRegular | 0o4755, UID: 1000, GID: 0xfffffffe, MTime: Time{Sec: -5, Nsec: 999999999}},
		{Name: ".hidden", Mode: ModeRegular, MTime: Time{Sec: 1 << 40}, Size: 17, LinkGroup: 0xfedcba9876543210,
			Flags: 0x10, Content: Content{Kind: OneChunk, Digest: fileDigest("hidden")},
			Xattrs: []Xattr{
				{Name: "security.capability", Value: []byte{1, 2, 3}},
				{Name: "user.big", Chunk: fileDigest("xattr"), Size: 60000},
				{Name: "user.empty", Value: []byte{}},
			}},
		{Name: "...", Mode: ModeFifo | 0o600},
		{Name: "block", Mode: ModeBlock | 0o660, GID: 6, Rdev: 8<<8 | 1},
		{Name: "char", Mode: ModeChar | 0o666, Rdev: 1<<8 | 3},
		dir("dir", sub),
		{Name: "link", Mode: ModeSymlink | 0o777, Target: "../somewhere/\xff"},
		{Name: "sock", Mode: ModeSocket | 0o755, Xattrs: []Xattr{{Name: "user.a", Value: []byte("b")}}},
		{Name: "sparse", Mode: ModeRegular | 0o644, Size: 1 << 40,
			Content: Content{Kind: StreamTree, Digest: fileDigest("sparse")}},
	}
}

func sorted(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries
}

func TestDirReturnsEveryField(t *testing.T) {
	m := newMemory()
	sub := buildDir(t, m, bigDir(3))
	want := sorted(everyField(sub))
	b := NewDirBuilder(m, testHasher())
	for _, e := range want {
		if err := b.Add(t.Context(), e, sub.Totals); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (Totals{Entries: 9 + 3, Bytes: 17 + 1<<40 + 0 + 1 + 2}); ref.Totals != want {
		t.Errorf("totals %v, want %v", ref.Totals, want)
	}
	if got := readDir(t, NewDirIter(m, ref.Digest)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, e := range want {
		got, below, err := Lookup(t.Context(), m, ref.Digest, e.Name)
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("lookup %q: %+v, %v, want %+v", e.Name, got, err, e)
		}
		if e.IsDir() != (below == sub.Totals) {
			t.Errorf("lookup %q: below %v", e.Name, below)
		}
	}
	m.check(t)
}

func TestEmptyDir(t *testing.T) {
	m := newMemory()
	a, b := buildDir(t, m, nil), buildDir(t, m, nil)
	if a != b || a.Digest.IsZero() || a.Totals != (Totals{}) {
		t.Errorf("empty directories %v and %v", a, b)
	}
	if got := readDir(t, NewDirIter(m, a.Digest)); got != nil {
		t.Errorf("empty directory has %v", got)
	}
	if _, _, err := Lookup(t.Context(), m, a.Digest, "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("lookup: %v", err)
	}
	m.check(t)
}

func TestBigDir(t *testing.T) {
	m := newMemory()
	want := bigDir(100_000)
	ref := buildDir(t, m, want)
	m.check(t)
	got := readDir(t, NewDirIter(m, ref.Digest))
	if !reflect.DeepEqual(got, want) {
		t.Fatal("entries differ")
	}
	t.Logf("%d nodes, %d entries a node", m.puts, len(want)/m.puts)
	if m.puts > 1500 || m.puts < 250 {
		t.Errorf("%d nodes for 100,000 entries", m.puts)
	}
	largest := 0
	for _, rec := range m.nodes {
		largest = max(largest, len(rec))
	}
	if largest > 66<<10 {
		t.Errorf("largest node has %d bytes", largest)
	}
	for range 200 {
		i := rand.IntN(len(want))
		m.reads = 0
		e, _, err := Lookup(t.Context(), m, ref.Digest, want[i].Name)
		if err != nil || !reflect.DeepEqual(e, want[i]) {
			t.Fatalf("lookup %q: %v", want[i].Name, err)
		}
		if m.reads > 4 {
			t.Fatalf("lookup read %d nodes", m.reads)
		}
	}
}

func TestLookupOfMissingNames(t *testing.T) {
	m := newMemory()
	ref := buildDir(t, m, bigDir(20_000))
	for _, name := range []string{"", ".", "..", "a", "file-", "file-0000000.txt ", "file-0009999.txu", "file-0019999.txt\x00", "zzz", "\xff"} {
		if _, _, err := Lookup(t.Context(), m, ref.Digest, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("lookup %q: %v", name, err)
		}
	}
}

func TestSeekAfter(t *testing.T) {
	for _, n := range []int{0, 1, 5, 30_000} {
		m := newMemory()
		want := bigDir(n)
		ref := buildDir(t, m, want)
		it := NewDirIter(m, ref.Digest)
		for _, name := range []string{"", "file-", "file-0000000.txt", "file-0000003.tx", "file-0012345.txt", "file-0012345.txt0", "file-0029999.txt", "z"} {
			m.reads = 0
			if err := it.SeekAfter(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if m.reads > 4 {
				t.Errorf("seek after %q read %d nodes", name, m.reads)
			}
			i, found := slices.BinarySearchFunc(want, name, func(e Entry, s string) int { return strings.Compare(e.Name, s) })
			if found {
				i++
			}
			for j := i; j < min(len(want), i+700); j++ {
				e, _, err := it.Next(t.Context())
				if err != nil || e.Name != want[j].Name {
					t.Fatalf("%d entries, after %q: %q, %v; want %q", n, name, e.Name, err, want[j].Name)
				}
			}
			if i == len(want) {
				if _, _, err := it.Next(t.Context()); err != io.EOF {
					t.Errorf("after %q: %v", name, err)
				}
			}
		}
	}
}

// TestChangeCostsFewNodes is the promise that incremental backups live on.
func TestChangeCostsFewNodes(t *testing.T) {
	base := bigDir(100_000)
	m := newMemory()
	buildDir(t, m, base)
	rng := rand.New(rand.NewPCG(1, 2))
	changes := map[string]func(int) []Entry{
		"insert": func(i int) []Entry { return slices.Insert(slices.Clone(base), i+1, file(base[i].Name+"x", 7)) },
		"delete": func(i int) []Entry { return slices.Delete(slices.Clone(base), i, i+1) },
		"change": func(i int) []Entry {
			c := slices.Clone(base)
			c[i] = file(c[i].Name, 4_000_000)
			return c
		},
		"long name": func(i int) []Entry {
			return slices.Insert(slices.Clone(base), i+1, file(base[i].Name+strings.Repeat("y", 250), 7))
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			worst, sum := 0, 0
			const rounds = 10
			for range rounds {
				before := len(m.nodes)
				buildDir(t, m, change(rng.IntN(len(base))))
				worst, sum = max(worst, len(m.nodes)-before), sum+len(m.nodes)-before
			}
			t.Logf("%.1f new nodes on average, %d at worst", float64(sum)/rounds, worst)
			if worst > 16 || sum > 5*rounds {
				t.Errorf("%.1f new nodes on average, %d at worst", float64(sum)/rounds, worst)
			}
		})
	}
}

func TestRefusedEntryChangesNothing(t *testing.T) {
	chunk := Content{Kind: OneChunk, Digest: fileDigest("x")}
	tooMany := make([]Xattr, 200)
	for i := range tooMany {
		tooMany[i] = Xattr{Name: fmt.Sprintf("user.%03d", i), Value: make([]byte, MaxInline)}
	}
	reg := func(f func(e *Entry)) Entry {
		e := Entry{Name: "m", Mode: ModeRegular | 0o644}
		f(&e)
		return e
	}
	cases := map[string]struct {
		kind ErrorKind
		e    Entry
	}{
		"empty name":             {BadName, reg(func(e *Entry) { e.Name = "" })},
		"dot":                    {BadName, reg(func(e *Entry) { e.Name = "." })},
		"dot dot":                {BadName, reg(func(e *Entry) { e.Name = ".." })},
		"slash":                  {BadName, reg(func(e *Entry) { e.Name = "n/m" })},
		"nul":                    {BadName, reg(func(e *Entry) { e.Name = "n\x00m" })},
		"long name":              {BadName, reg(func(e *Entry) { e.Name = "n" + strings.Repeat("m", MaxName) })},
		"same name":              {BadOrder, reg(func(e *Entry) { e.Name = "a" })},
		"earlier name":           {BadOrder, reg(func(e *Entry) { e.Name = "A" })},
		"no type":                {BadEntry, reg(func(e *Entry) { e.Mode = 0o644 })},
		"high mode bit":          {BadEntry, reg(func(e *Entry) { e.Mode |= 1 << 16 })},
		"size without content":   {BadEntry, reg(func(e *Entry) { e.Size = 1 })},
		"content without size":   {BadEntry, reg(func(e *Entry) { e.Content = chunk })},
		"chunk too long":         {BadEntry, reg(func(e *Entry) { e.Content, e.Size = chunk, MaxChunkLen+1 })},
		"content without digest": {BadEntry, reg(func(e *Entry) { e.Content, e.Size = Content{Kind: OneChunk}, 1 })},
		"file with dir content":  {BadEntry, reg(func(e *Entry) { e.Content = Content{Kind: DirTree, Digest: chunk.Digest} })},
		"dir without content":    {BadEntry, reg(func(e *Entry) { e.Mode = ModeDir })},
		"fifo with content":      {BadEntry, reg(func(e *Entry) { e.Mode, e.Content, e.Size = ModeFifo, chunk, 1 })},
		"link without target":    {BadEntry, reg(func(e *Entry) { e.Mode = ModeSymlink })},
		"file with target":       {BadEntry, reg(func(e *Entry) { e.Target = "x" })},
		"target with nul":        {BadEntry, reg(func(e *Entry) { e.Mode, e.Target = ModeSymlink, "a\x00" })},
		"file with rdev":         {BadEntry, reg(func(e *Entry) { e.Rdev = 1 })},
		"nanoseconds":            {BadEntry, reg(func(e *Entry) { e.MTime.Nsec = 1e9 })},
		"xattr order":            {BadEntry, reg(func(e *Entry) { e.Xattrs = []Xattr{{Name: "b"}, {Name: "a"}} })},
		"xattr twice":            {BadEntry, reg(func(e *Entry) { e.Xattrs = []Xattr{{Name: "b"}, {Name: "b"}} })},
		"xattr without name":     {BadEntry, reg(func(e *Entry) { e.Xattrs = []Xattr{{}} })},
		"xattr too long":         {BadEntry, reg(func(e *Entry) { e.Xattrs = []Xattr{{Name: "a", Value: make([]byte, MaxInline+1)}} })},
		"xattr chunk, no size":   {BadEntry, reg(func(e *Entry) { e.Xattrs = []Xattr{{Name: "a", Chunk: chunk.Digest}} })},
		"entry too long":         {TooLong, reg(func(e *Entry) { e.Xattrs = tooMany })},
	}
	want := buildDir(t, newMemory(), []Entry{file("a", 1), file("z", 2)})
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := NewDirBuilder(newMemory(), testHasher())
			mustAdd(t, b, file("a", 1))
			var typed *Error
			if err := b.Add(t.Context(), c.e, Totals{}); !errors.As(err, &typed) || typed.Kind != c.kind {
				t.Fatalf("got %v, want kind %v", err, c.kind)
			}
			if err := c.e.Validate(); (err == nil) != (c.kind == BadOrder || c.e.IsDir()) {
				t.Errorf("Validate: %v", err)
			}
			mustAdd(t, b, file("z", 2))
			if ref, err := b.Finish(t.Context()); err != nil || ref != want {
				t.Errorf("directory changed: %v, %v", ref, err)
			}
		})
	}
}

func mustAdd(t *testing.T, b *DirBuilder, e Entry) {
	t.Helper()
	if err := b.Add(t.Context(), e, Totals{}); err != nil {
		t.Fatal(err)
	}
}

func TestSinkErrorLosesTheDirectoryOnly(t *testing.T) {
	m := newMemory()
	b := NewDirBuilder(m, testHasher())
	m.fail = errors.New("disk on fire")
	var err error
	for _, e := range bigDir(5000) {
		if err = b.Add(t.Context(), e, Totals{}); err != nil {
			break
		}
	}
	if !errors.Is(err, m.fail) {
		t.Fatalf("add: %v", err)
	}
	if _, err := b.Finish(t.Context()); !errors.Is(err, m.fail) {
		t.Fatalf("finish: %v", err)
	}
	m.fail = nil
	mustAdd(t, b, file("a", 1))
	if ref, err := b.Finish(t.Context()); err != nil || ref != buildDir(t, m, []Entry{file("a", 1)}) {
		t.Errorf("next directory: %v, %v", ref, err)
	}
}

func TestTotalsDoNotOverflow(t *testing.T) {
	b := NewDirBuilder(newMemory(), testHasher())
	var typed *Error
	for i, want := range []bool{true, false, false} {
		e := dir(fmt.Sprint(i), Ref{Digest: digest.Digest{1}})
		err := b.Add(t.Context(), e, Totals{Entries: MaxTotal - 1, Bytes: MaxTotal})
		if (err == nil) != want || err != nil && (!errors.As(err, &typed) || typed.Kind != TooLong) {
			t.Errorf("entry %d: %v", i, err)
		}
	}
}
