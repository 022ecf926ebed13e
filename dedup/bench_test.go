//go:build unix

package dedup

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/vfs"
)

// benchLoad is frames as an agent sends them: chunks of about 16 KiB that compress like source code, in frames of up to
// 256 KiB.
type benchLoad struct {
	frames []frame.Frame
	plain  int64
	chunks int
	stored int64
}

// makeLoad makes n frames under the domain's key. Text from a small vocabulary compresses about 5:1.
func makeLoad(k digest.Keys, n int) benchLoad {
	r := mathrand.New(mathrand.NewPCG(3, 4))
	words := make([][]byte, 3000)
	for i := range words {
		words[i] = make([]byte, 3+r.IntN(12))
		for j := range words[i] {
			words[i][j] = byte('a' + r.IntN(26))
		}
		words[i] = append(words[i], ' ')
	}
	var l benchLoad
	h, enc := digest.NewHasher(k.Data), frame.NewEncoder()
	var p frame.Packer
	buf := make([]byte, 0, 64<<10)
	for len(l.frames) < n {
		size := 1 + int(r.ExpFloat64()*14000)
		size = min(size, 60<<10)
		buf = buf[:0]
		for len(buf) < size {
			buf = append(buf, words[min(int(r.ExpFloat64()*300), len(words)-1)]...)
		}
		c := buf[:size]
		if !p.Fits(len(c)) {
			f := p.Encode(enc, nil)
			l.frames = append(l.frames, f)
			l.stored += int64(len(f.Stored))
			p.Reset()
		}
		p.Add(h.Sum(c), c)
		l.plain += int64(len(c))
		l.chunks++
	}
	return l
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// floor is the bare data path: decompress, hash, encrypt, write; no index, no directory, no durability.
func floor(tb testing.TB, l benchLoad, k digest.Keys, path string, workers int) {
	var wg sync.WaitGroup
	next := make(chan frame.Frame, workers)
	for i := range workers {
		wg.Go(func() {
			dec, h := frame.NewDecoder(), digest.NewHasher(k.Data)
			block, _ := aes.NewCipher(make([]byte, 32))
			gcm, _ := cipher.NewGCM(block)
			f, err := os.Create(fmt.Sprintf("%s%d", path, i))
			if err != nil {
				tb.Error(err)
				return
			}
			defer f.Close()
			var plain, out []byte
			nonce := make([]byte, 12)
			for fr := range next {
				if plain, err = dec.Decode(fr, plain[:0]); err != nil {
					tb.Error(err)
				}
				if err := fr.Verify(h, plain); err != nil {
					tb.Error(err)
				}
				out = gcm.Seal(out[:0], nonce, fr.Stored, nil)
				if _, err := f.Write(out); err != nil {
					tb.Error(err)
				}
			}
		})
	}
	for _, f := range l.frames {
		next <- f
	}
	close(next)
	wg.Wait()
}

// ingest is Have and PutFrame of every frame, and the sealing of all of it.
func ingest(ctx context.Context, s *Store, l benchLoad, workers int) error {
	run, err := s.Begin(ctx, RunOptions{ID: "bench"})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	next := make(chan frame.Frame, workers)
	for range workers {
		lane, err := run.Lane(LaneOptions{})
		if err != nil {
			return err
		}
		wg.Go(func() {
			var ds []digest.Digest
			for f := range next {
				ds = ds[:0]
				for _, ref := range f.Refs {
					ds = append(ds, ref.Digest)
				}
				have := make([]bool, len(ds))
				err := run.Have(ctx, ds, have)
				if err == nil && !have[0] {
					_, err = lane.PutFrame(ctx, f)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for _, f := range l.frames {
		next <- f
	}
	close(next)
	wg.Wait()
	if err := run.Abort(ctx, "measured"); err != nil { // seals as Commit does
		return err
	}
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// BenchmarkIngest measures the store against the floor: CPU and wall seconds for the whole load, and for the load again
// when all of it is there.
func BenchmarkIngest(b *testing.B) {
	for _, n := range []int{1000, 4000} {
		b.Run(fmt.Sprintf("frames=%d", n), func(b *testing.B) { benchIngest(b, n) })
	}
}

func benchIngest(b *testing.B, frames int) {
	for range b.N {
		b.StopTimer()
		root := b.TempDir()
		o := testOptions(b, vfs.OS(), root, filepath.Join(root, "index"))
		o.ContainerSize, o.IndexMemory, o.LocalityMemory = 0, 0, 0
		s := mustCreate(b, o)
		l := makeLoad(s.Domain().Keys, frames)
		b.StartTimer()
		phase := func(name string, f func()) {
			cpu, wall := cpuSeconds(), time.Now()
			f()
			b.ReportMetric(cpuSeconds()-cpu, name+"-cpu-s")
			b.ReportMetric(time.Since(wall).Seconds(), name+"-s")
		}
		ingestAll := func() {
			if err := ingest(b.Context(), s, l, 2); err != nil {
				b.Fatal(err)
			}
		}
		phase("floor", func() { floor(b, l, s.Domain().Keys, filepath.Join(root, "floor"), 2) })
		phase("ingest", ingestAll)
		phase("again", ingestAll)
		b.ReportMetric(float64(l.chunks), "chunks")
		b.ReportMetric(float64(l.plain)/1e6, "plain-MB")
		b.ReportMetric(float64(l.stored)/1e6, "stored-MB")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead measures reading everything back in order: frames as stored (restore) and chunks through the cache
// (mount), each after a restart.
func BenchmarkRead(b *testing.B) {
	root := b.TempDir()
	o := testOptions(b, vfs.OS(), root, filepath.Join(root, "index"))
	o.ContainerSize, o.IndexMemory, o.LocalityMemory, o.FrameMemory, o.NodeMemory = 0, 0, 0, 0, 0
	s := mustCreate(b, o)
	l := makeLoad(s.Domain().Keys, 4000)
	if err := ingest(b.Context(), s, l, 2); err != nil {
		b.Fatal(err)
	}
	m := mustBackup(b, s, testTree{"d/f": {[]byte("any saveset")}}, 1)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	var ds []digest.Digest
	for _, f := range l.frames {
		for _, ref := range f.Refs {
			ds = append(ds, ref.Digest)
		}
	}
	for name, read := range map[string]func(*View) error{
		"frames": func(v *View) error { return readFrames(b.Context(), v, ds) },
		"chunks": func(v *View) error { return readChunks(b.Context(), v, ds) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(l.plain)
			for range b.N {
				s := mustOpen(b, o)
				v, err := s.View(b.Context(), m.ID)
				if err != nil {
					b.Fatal(err)
				}
				cpu := cpuSeconds()
				if err := read(v); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(cpuSeconds()-cpu, "cpu-s")
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func readFrames(ctx context.Context, v *View, ds []digest.Digest) error {
	var buf FrameBuffer
	for len(ds) > 0 {
		n := min(len(ds), 2000)
		items, err := v.Plan(ctx, ds[:n])
		if err != nil {
			return err
		}
		for _, it := range items {
			if _, err := v.Frame(ctx, it.Loc, &buf); err != nil {
				return err
			}
		}
		ds = ds[n:]
	}
	return nil
}

func readChunks(ctx context.Context, v *View, ds []digest.Digest) error {
	for i, d := range ds {
		if i%64 == 0 {
			v.ReadAhead(ds[i:min(len(ds), i+192)])
		}
		if _, err := v.Chunk(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkSmallRun is Begin to Commit of a run with one new file: what an incremental run costs at least.
func BenchmarkSmallRun(b *testing.B) {
	root := b.TempDir()
	o := testOptions(b, vfs.OS(), root, filepath.Join(root, "index"))
	o.ContainerSize, o.IndexMemory, o.LocalityMemory = 0, 0, 0
	s := mustCreate(b, o)
	n := 0
	for b.Loop() {
		n++
		mustBackup(b, s, testTree{"d/f": {fmt.Appendf(nil, "generation %d", n)}}, 1)
	}
}
