package boottrace

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

// boot is the boot of the Debian guest (see package debian), recorded by nbdbench.
func boot(t testing.TB) *Trace {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "boot.trace.gz"))
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestFormat(t *testing.T) {
	tr := boot(t)
	reads, n, depth := tr.Totals(Read)
	if tr.Size != 768<<20 || reads < 1000 || n < 30<<20 || depth < 2 {
		t.Errorf("the recorded boot: a disk of %d bytes, %d reads of %d bytes, %d at once", tr.Size, reads, n, depth)
	}
	var b bytes.Buffer
	if err := tr.Encode(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Decode(&b)
	if err != nil || again.Size != tr.Size || !slices.Equal(again.Requests, tr.Requests) {
		t.Errorf("encoded and decoded it is another: %v", err)
	}
}

func packed(text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text)) // memory
	_ = z.Close()
	return b.Bytes()
}

func TestRefused(t *testing.T) {
	const head = "coffer boot trace 1\nsize 8192\n"
	if _, err := Decode(bytes.NewReader(packed(head + "r 0 4096 10 5\nf 0 0 10 0\nt 0 8192 11 1\n"))); err != nil {
		t.Fatal(err)
	}
	cut := packed(head + "r 0 4096 10 5\n")
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"no gzip":        []byte(head),
		"cut off":        cut[:len(cut)-6],
		"newer":          packed("coffer boot trace 2\nsize 8192\n"),
		"no size":        packed("coffer boot trace 1\n"),
		"negative size":  packed("coffer boot trace 1\nsize -1\n"),
		"unknown kind":   packed(head + "x 0 4096 10 5\n"),
		"past the end":   packed(head + "r 4096 8192 10 5\n"),
		"overflow":       packed(head + "r 9223372036854775807 1 10 5\n"),
		"negative":       packed(head + "r -1 1 10 5\n"),
		"too long":       packed("coffer boot trace 1\nsize 1000000000000\nr 0 100000000000 1 1\n"),
		"time runs back": packed(head + "r 0 4096 10 5\nr 0 4096 9 5\n"),
		"ends too early": packed(head + "r 0 4096 10 -5\n"),
		"a long line":    packed(head + string(bytes.Repeat([]byte("9"), 1000))),
	} {
		if tr, err := Decode(bytes.NewReader(b)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %+v, %v", name, tr, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("coffer boot trace 1\nsize 8192\nr 0 4096 10 5\nw 4096 512 12 9\nf 0 0 13 1\n")
	f.Add("coffer boot trace 1\nsize 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		tr, err := Decode(bytes.NewReader(packed(text)))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := tr.Encode(&b); err != nil {
			t.Fatal(err)
		}
		again, err := Decode(&b)
		if err != nil || again.Size != tr.Size || !slices.Equal(again.Requests, tr.Requests) {
			t.Fatalf("%q decodes to %+v, which decodes to %+v, %v", text, tr, again, err)
		}
		plan(tr)
	})
}

// disk serves bytes that tell where they are from, and may take its time.
type disk struct {
	size int64
	take func(off int64) error // may be nil
}

func (d disk) Size() int64 { return d.size }

func (d disk) ReadAt(_ context.Context, p []byte, off int64) error {
	fill(p, off)
	if d.take == nil {
		return nil
	}
	return d.take(off)
}

// pattern repeats on a disk: its length is odd, so that no two places that are read have the same.
var pattern = func() []byte {
	b := make([]byte, 262147)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	return b
}()

func fill(p []byte, off int64) {
	for n := 0; n < len(p); {
		n += copy(p[n:], pattern[(off+int64(n))%int64(len(pattern)):])
	}
}

// The recorded boot, over the protocol: everything that it read is read, once, and is what the disk has there.
func TestReplayOfABoot(t *testing.T) {
	tr := boot(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	recorder := NewRecorder(readable{disk{size: tr.Size}})
	go func() { served <- nbd.NewServer(nbdtest.Of("disk", recorder), nbd.ServerOptions{}).Serve(ctx, l) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	c, err := nbd.Dial(ctx, "unix", path, nbd.ClientOptions{Export: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := Replay(ctx, tr, c)
	if err != nil {
		t.Fatal(err)
	}
	reads, n, _ := tr.Totals(Read)
	if got.Requests != reads || got.Bytes != n || len(got.Waits) != reads || !slices.IsSorted(got.Waits) || got.Sum != sumOf(tr) {
		t.Errorf("replayed %d requests of %d bytes, sum %x; want %d of %d, %x", got.Requests, got.Bytes, got.Sum, reads, n, sumOf(tr))
	}
	ranges := func(t *Trace) (all [][2]int64) {
		for _, q := range t.Requests {
			if q.Kind == Read {
				all = append(all, [2]int64{q.Off, q.Len})
			}
		}
		slices.SortFunc(all, func(a, b [2]int64) int { return slices.Compare(a[:], b[:]) })
		return all
	}
	if !slices.Equal(ranges(recorder.Trace()), ranges(tr)) {
		t.Error("the server was asked for something else")
	}
}

// readable is a disk that takes no writes.
type readable struct{ disk }

func (readable) WriteAt(context.Context, []byte, int64) error   { return errors.ErrUnsupported }
func (readable) Zero(context.Context, int64, int64, bool) error { return errors.ErrUnsupported }
func (readable) Trim(context.Context, int64, int64) error       { return errors.ErrUnsupported }
func (readable) Flush(context.Context) error                    { return nil }

func sumOf(t *Trace) uint32 {
	var all []byte
	for _, q := range t.Requests {
		if q.Kind == Read {
			b := make([]byte, q.Len)
			fill(b, q.Off)
			s := crc32.Checksum(b, castagnoli)
			all = append(all, byte(s), byte(s>>8), byte(s>>16), byte(s>>24))
		}
	}
	return crc32.Checksum(all, castagnoli)
}

// Whatever time reads take, none begins before those have ended that had ended when it was recorded.
func TestReplayKeepsOrder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 50 {
		tr := randomTrace(rng)
		synctest.Test(t, func(t *testing.T) { keepsOrder(t, tr, rng) })
	}
}

func keepsOrder(t *testing.T, tr *Trace, rng *rand.Rand) {
	type span struct{ begin, end time.Duration }
	var mu sync.Mutex
	seen := map[int64]span{}
	begun := time.Now()
	_, err := Replay(t.Context(), tr, disk{tr.Size, func(off int64) error {
		s := span{begin: time.Since(begun)}
		mu.Lock()
		take := time.Duration(rng.IntN(1000)) * time.Microsecond
		mu.Unlock()
		time.Sleep(take)
		s.end = time.Since(begun)
		mu.Lock()
		defer mu.Unlock()
		seen[off] = s
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range tr.Requests {
		for _, b := range tr.Requests {
			if a.Kind == Read && b.Kind == Read && a.End < b.Begin && seen[a.Off].end > seen[b.Off].begin {
				t.Fatalf("%+v ended at %v, %+v began at %v", a, seen[a.Off].end, b, seen[b.Off].begin)
			}
		}
	}
}

// randomTrace has up to 60 requests, each at another place, some of which take no time or begin together.
func randomTrace(rng *rand.Rand) *Trace {
	tr := &Trace{Size: 1 << 20}
	at := time.Duration(0)
	for i := range rng.IntN(60) {
		at += time.Duration(rng.IntN(4)) * time.Microsecond
		q := Request{Kind: Read, Off: int64(i) * 4096, Len: 4096, Begin: at, End: at + time.Duration(rng.IntN(12))*time.Microsecond}
		if rng.IntN(5) == 0 {
			q.Kind = Write
		}
		tr.Requests = append(tr.Requests, q)
	}
	return tr
}

// What was in flight together is in flight together: three reads of a second each take one second, and three that waited for
// each other three. Writes do not count.
func TestReplayIsAsDeep(t *testing.T) {
	for name, c := range map[string]struct {
		ends [3]time.Duration
		want time.Duration
	}{
		"together":              {[3]time.Duration{90, 80, 70}, 1 * time.Second},
		"in turns":              {[3]time.Duration{5, 15, 25}, 3 * time.Second},
		"third waits for first": {[3]time.Duration{15, 90, 95}, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := &Trace{Size: 8192, Requests: []Request{{Kind: Write, Len: 512, End: 1}}}
				for i, end := range c.ends {
					tr.Requests = append(tr.Requests, Request{Kind: Read, Len: 4096, Begin: time.Duration(10 * i), End: end})
				}
				r, err := Replay(t.Context(), tr, disk{8192, func(int64) error { time.Sleep(time.Second); return nil }})
				if err != nil || r.Took != c.want || r.Requests != 3 {
					t.Errorf("%+v, %v; want %v", r, err, c.want)
				}
			})
		})
	}
}

// A read that fails ends the replay, and is what it says.
func TestReplayFails(t *testing.T) {
	tr := boot(t)
	bad := errors.New("bad sector")
	reads := 0
	var mu sync.Mutex
	_, err := Replay(t.Context(), tr, disk{tr.Size, func(int64) error {
		mu.Lock()
		defer mu.Unlock()
		if reads++; reads == 100 {
			return bad
		}
		return nil
	}})
	if total, _, _ := tr.Totals(Read); !errors.Is(err, bad) || reads > total/2 {
		t.Errorf("after %d reads: %v", reads, err)
	}
	if _, err := Replay(t.Context(), tr, disk{size: tr.Size - 1}); err == nil {
		t.Error("a disk that is too small is taken")
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Replay(ctx, tr, disk{size: tr.Size}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Every sort of request is noted with what it asked and how long it took, and is done.
func TestRecorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := nbdtest.NewMem(1 << 20)
		m.Before = func(context.Context, string, int64, int64) error { time.Sleep(3 * time.Millisecond); return nil }
		r := NewRecorder(m)
		ctx := t.Context()
		b := bytes.Repeat([]byte{7}, 4096)
		err := errors.Join(r.WriteAt(ctx, b, 8192), r.Flush(ctx), r.ReadAt(ctx, b, 0), r.Zero(ctx, 8192, 512, true), r.Trim(ctx, 16384, 4096))
		if err != nil {
			t.Fatal(err)
		}
		const ms = time.Millisecond
		want := []Request{{Write, 8192, 4096, 0, 3 * ms}, {Flush, 0, 0, 3 * ms, 6 * ms}, {Read, 0, 4096, 6 * ms, 9 * ms},
			{Zero, 8192, 512, 9 * ms, 12 * ms}, {Trim, 16384, 4096, 12 * ms, 15 * ms}}
		got := r.Trace()
		if got.Size != 1<<20 || !slices.Equal(got.Requests, want) {
			t.Errorf("recorded %+v", got)
		}
		if data := m.Bytes(); b[0] != 0 || data[8192] != 0 || data[8192+512] != 7 {
			t.Error("what was asked was not done")
		}
	})
}
