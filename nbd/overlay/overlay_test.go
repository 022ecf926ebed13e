package overlay

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
	"coffer/nbd"
)

const testSize = 40*blockSize + 700 // the last block is short

// TestModel holds an overlay against bytes in memory, through changes, deaths of the process, closings and compactions.
func TestModel(t *testing.T) {
	rnd := random(t)
	for _, on := range []string{"mem", "os"} {
		t.Run(on, func(t *testing.T) {
			var fsys vfs.FS = vfs.NewMem()
			dir := "/o"
			if on == "os" {
				fsys, dir = vfs.OS(), filepath.Join(t.TempDir(), "o")
			}
			base := testDisk(testSize)
			model := bytes.Clone(base)
			opts := Options{BootID: bootA}
			o, err := Create(t.Context(), fsys, dir, base, opts)
			must(t, err)
			for i := range 600 {
				o.slack = 2000
				step := randomOp(rnd, testSize)
				if err := step.do(t.Context(), o); err != nil {
					t.Fatalf("step %d, %+v: %v", i, step, err)
				}
				step.apply(model)
				switch rnd.IntN(40) {
				case 0: // the process dies
					o, err = Open(t.Context(), fsys, dir, base, opts)
					must(t, err)
				case 1:
					must(t, o.Close())
					opts.BootID[0]++ // closed: nothing to lose
					o, err = Open(t.Context(), fsys, dir, base, opts)
					must(t, err)
				}
				if o.Unclean() {
					t.Fatal("unclean without a loss of power")
				}
				wantContent(t, o, model)
			}
			checkStates(t, o, base, model)
			must(t, o.Close())
		})
	}
}

// checkStates holds what Changed, Extents and Usage say against the contents.
func checkStates(t *testing.T, o *Overlay, base, model []byte) {
	t.Helper()
	from := bytes.Clone(base)
	var data, zero int64
	o.Changed(func(off, n int64, z bool) bool {
		if z {
			zero += n
			clear(from[off : off+n])
		} else {
			data += n
			copy(from[off:off+n], model[off:])
		}
		return true
	})
	if !bytes.Equal(from, model) {
		t.Fatal("what Changed tells does not lead from the base to the contents")
	}
	u := o.Usage()
	if d := u.DataBytes - data; d < 0 || d >= blockSize {
		t.Fatalf("%d bytes of data are counted, %d are there", u.DataBytes, data)
	}
	if d := u.ZeroBytes - zero; d < 0 || d >= blockSize {
		t.Fatalf("%d bytes of zeros are counted, %d are there", u.ZeroBytes, zero)
	}
	at := int64(0)
	must(t, o.Extents(t.Context(), 0, o.Size(), func(n int64, f nbd.ExtentFlags) bool {
		if n <= 0 || f&nbd.Zero != 0 && !zeros(model[at:at+n]) {
			t.Fatalf("extent of %d bytes at %d, flags %v", n, at, f)
		}
		at += n
		return true
	}))
	if at != o.Size() {
		t.Fatalf("extents end at %d of %d", at, o.Size())
	}
}

func TestStates(t *testing.T) {
	rnd := random(t)
	const blocks = 2*pageBlocks + 1000
	s := newStates(blocks)
	model := make([]state, blocks)
	for range 400 {
		i := rnd.Int64N(blocks)
		n := 1 + rnd.Int64N(min(blocks-i, []int64{3, 100, blocks}[rnd.IntN(3)]))
		if rnd.IntN(4) == 0 {
			i, n = rnd.Int64N(2)*pageBlocks, pageBlocks
		}
		st := state(rnd.IntN(3))
		s.set(i, n, st)
		for k := range n {
			model[i+k] = st
		}
	}
	var data, zero int64
	for i, st := range model {
		if s.get(int64(i)) != st {
			t.Fatalf("block %d", i)
		}
		switch st {
		case inData:
			data++
		case isZero:
			zero++
		}
	}
	if s.data != data || s.zero != zero {
		t.Fatalf("counts %d, %d, want %d, %d", s.data, s.zero, data, zero)
	}
	for range 1000 {
		i := rnd.Int64N(blocks)
		limit := 1 + rnd.Int64N(blocks-i)
		st, n := s.run(i, limit)
		want := int64(1)
		for want < limit && model[i+want] == model[i] {
			want++
		}
		if st != model[i] || n != want {
			t.Fatalf("run at %d up to %d: %d of state %d, want %d of %d", i, limit, n, st, want, model[i])
		}
	}
}

// TestWritersInParallel changes neighbouring parts of blocks at the same time, with flushes and compactions between.
func TestWritersInParallel(t *testing.T) {
	const workers, piece, size = 8, 300, 256 * blockSize
	base := testDisk(size)
	o := create(t, vfs.NewMem(), base, Options{BootID: bootA})
	o.slack = 1000
	model := bytes.Clone(base)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards model
	for w := range workers {
		wg.Go(func() {
			for i := w; (i+1)*piece <= size; i += workers {
				step := op{kind: "write", off: int64(i * piece), n: piece, fill: byte(i)}
				if err := step.do(t.Context(), o); err != nil {
					t.Error(err)
					return
				}
				if i%50 < workers {
					if err := o.Flush(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
				mu.Lock()
				step.apply(model)
				mu.Unlock()
				if err := o.ReadAt(t.Context(), make([]byte, piece), step.off); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantContent(t, o, model)
	must(t, o.Close())
}

func TestLimit(t *testing.T) {
	base := testDisk(64 * blockSize)
	o := create(t, vfs.NewMem(), base, Options{BootID: bootA, Limit: 10 * blockSize})
	ctx := t.Context()
	must(t, o.WriteAt(ctx, make([]byte, 10*blockSize), 0))
	err := o.WriteAt(ctx, []byte("x"), 20*blockSize)
	if KindOf(err) != Full || nbd.ErrnoOf(err) != nbd.ENOSPC {
		t.Fatalf("beyond the limit: %v", err)
	}
	must(t, o.WriteAt(ctx, []byte("x"), 5*blockSize)) // in place
	must(t, o.Zero(ctx, 30*blockSize, 10*blockSize, true))
	must(t, o.Trim(ctx, blockSize-1, 2*blockSize+1))
	if u := o.Usage(); u.DataBytes != 8*blockSize || u.ZeroBytes != 12*blockSize || u.Limit != 10*blockSize || u.Size != o.Size() {
		t.Fatalf("usage %+v", u)
	}
	must(t, o.WriteAt(ctx, make([]byte, 2*blockSize), 20*blockSize))
	if err := o.WriteAt(ctx, []byte("x"), 50*blockSize); KindOf(err) != Full {
		t.Fatalf("beyond the limit: %v", err)
	}
}

// TestReserve: the disk fills up to the reserve and not beyond, what was trimmed is there again, and a flush needs none.
func TestReserve(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(100 * blockSize)
	base := testDisk(400 * blockSize)
	opts := Options{BootID: bootA, Reserve: 20 * blockSize}
	o := create(t, m, base, opts)
	ctx := t.Context()
	written := int64(0)
	var err error
	for written < 400 {
		if err = o.WriteAt(ctx, bytes.Repeat([]byte{1}, blockSize), written*blockSize); err != nil {
			break
		}
		written++
		o.credit = 0 // ask each time: the test's disk is smaller than what is written between two questions
	}
	if KindOf(err) != Full || !vfs.IsNoSpace(err) || written < 70 || written > 80 {
		t.Fatalf("%d blocks written, %v", written, err)
	}
	if free, _ := m.Free("/"); free < 19*blockSize {
		t.Fatalf("%d bytes of the reserve are left", free)
	}
	must(t, o.Flush(ctx))
	must(t, o.Trim(ctx, 0, 30*blockSize))
	if free, _ := m.Free("/"); free < 48*blockSize {
		t.Fatalf("trim left %d bytes free", free)
	}
	must(t, o.WriteAt(ctx, bytes.Repeat([]byte{2}, 20*blockSize), 200*blockSize))
	want := bytes.Clone(base)
	for i := range written * blockSize {
		want[i] = 1
	}
	clear(want[:30*blockSize])
	copy(want[200*blockSize:], bytes.Repeat([]byte{2}, 20*blockSize))
	wantContent(t, o, want)
	must(t, o.Close())
	wantContent(t, reopen(t, m, base, opts), want)
}

// TestNoSpaceAtEachPoint: whatever operation finds the disk full, the overlay keeps what it had acknowledged, goes on when
// there is space, and is the same after it was opened again.
func TestNoSpaceAtEachPoint(t *testing.T) {
	rnd := random(t)
	base := testDisk(16 * blockSize)
	var steps []op
	for len(steps) < 60 {
		steps = append(steps, randomOp(rnd, 16*blockSize))
	}
	isSpace := func(op errorfs.Op, _ string) bool {
		return op == errorfs.OpCreate || op == errorfs.OpWrite || op == errorfs.OpRename
	}
	for i := int64(0); ; i++ {
		mem := vfs.NewMem()
		must(t, mem.Mkdir("/o"))
		must(t, create(t, mem, base, Options{BootID: bootA}).Close())
		c := errorfs.FailAt(i)
		c.Only, c.Err = isSpace, syscall.ENOSPC
		fsys := errorfs.Wrap(mem, c)
		o := reopen(t, fsys, base, Options{BootID: bootA})
		o.slack = 300
		model := bytes.Clone(base)
		for _, step := range steps {
			if err := step.do(t.Context(), o); err != nil {
				if !vfs.IsNoSpace(err) {
					t.Fatalf("operation %d: %v", i, err)
				}
				must(t, step.do(t.Context(), o)) // there is space again
			}
			step.apply(model)
			wantContent(t, o, model)
		}
		wantContent(t, reopen(t, mem, base, Options{BootID: bootA}), model)
		if err := o.Close(); err != nil && !vfs.IsNoSpace(err) {
			t.Fatal(err)
		}
		if !c.Reached() {
			return
		}
	}
}

// TestFailedSync: after a sync that failed nothing is acknowledged, reads go on, and the next owner is told.
func TestFailedSync(t *testing.T) {
	for _, name := range []string{dataName, mapName} {
		mem := vfs.NewMem()
		base := testDisk(8 * blockSize)
		sick := false
		fsys := errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, n string) error {
			if sick && op == errorfs.OpSync && filepath.Base(n) == name {
				return syscall.EIO
			}
			return nil
		}))
		o, err := Create(t.Context(), fsys, "/o", base, Options{BootID: bootA})
		must(t, err)
		// A new overlay's map was opened under its temporary name.
		must(t, o.Close())
		o = reopen(t, fsys, base, Options{BootID: bootA})
		ctx := t.Context()
		must(t, o.WriteAt(ctx, []byte("one"), 0))
		sick = true
		if err := o.Flush(ctx); KindOf(err) != Failed {
			t.Fatalf("flush: %v", err)
		}
		sick = false
		if err := o.Flush(ctx); KindOf(err) != Failed || nbd.ErrnoOf(err) != nbd.EIO {
			t.Fatalf("second flush: %v", err)
		}
		if err := o.WriteAt(ctx, []byte("two"), 0); KindOf(err) != Failed {
			t.Fatalf("write: %v", err)
		}
		b := make([]byte, 3)
		must(t, o.ReadAt(ctx, b, 0))
		if string(b) != "one" {
			t.Fatalf("read %q", b)
		}
		if err := o.Close(); err == nil {
			t.Fatal("a failed overlay was closed as a good one")
		}
		o = reopen(t, mem, base, Options{BootID: bootA})
		if !o.Unclean() {
			t.Fatal("the next owner is not told")
		}
		must(t, o.WriteAt(ctx, []byte("three"), 0))
		must(t, o.Flush(ctx))
		must(t, o.Settle(ctx))
		must(t, o.Close())
		o = reopen(t, mem, base, Options{BootID: bootB})
		if o.Unclean() {
			t.Fatal("settled, closed, and told again")
		}
		must(t, o.Close())
	}
}

func TestUnclean(t *testing.T) {
	mem := vfs.NewMem()
	base := testDisk(8 * blockSize)
	ctx := t.Context()
	o := create(t, mem, base, Options{BootID: bootA})
	if reopen(t, mem.Crash(vfs.CrashOptions{}), base, Options{BootID: bootB}).Unclean() {
		t.Fatal("nothing was written")
	}
	must(t, o.WriteAt(ctx, []byte("x"), 0))
	if reopen(t, mem, base, Options{BootID: bootA}).Unclean() {
		t.Fatal("unclean in the same boot")
	}
	crashed := mem.Crash(vfs.CrashOptions{})
	for range 2 { // until somebody takes notice
		o := reopen(t, crashed, base, Options{BootID: bootB})
		if !o.Unclean() {
			t.Fatal("not told of a loss of power")
		}
		must(t, o.WriteAt(ctx, []byte("y"), blockSize))
		must(t, o.Close())
	}
	o = reopen(t, crashed, base, Options{BootID: bootB})
	must(t, o.Settle(ctx))
	if o.Unclean() || reopen(t, crashed, base, Options{BootID: bootB}).Unclean() {
		t.Fatal("settled, and told again")
	}
}

func TestRefusals(t *testing.T) {
	mem := vfs.NewMem()
	base := testDisk(8 * blockSize)
	ctx := t.Context()
	if _, err := Create(ctx, mem, "/o", base, Options{}); KindOf(err) != Invalid {
		t.Fatalf("without a boot id: %v", err)
	}
	o := create(t, mem, base, Options{BootID: bootA})
	for _, r := range [][2]int64{{-1, 1}, {8 * blockSize, 1}, {7*blockSize + 1, blockSize}, {0, -1}} {
		if err := o.Trim(ctx, r[0], r[1]); nbd.ErrnoOf(err) != nbd.EINVAL {
			t.Fatalf("range %v: %v", r, err)
		}
	}
	if _, err := Create(ctx, mem, "/o", base, Options{BootID: bootA}); KindOf(err) != Invalid {
		t.Fatalf("created twice: %v", err)
	}
	must(t, o.Close())
	must(t, o.Close())
	if err := o.WriteAt(ctx, []byte("x"), 0); KindOf(err) != Closed {
		t.Fatalf("write after close: %v", err)
	}
	if _, err := Open(ctx, mem, "/o", testDisk(9*blockSize), Options{BootID: bootA}); KindOf(err) != Mismatch {
		t.Fatalf("over another disk: %v", err)
	}
	change := func(at int64, b ...byte) error {
		c := mem.Crash(vfs.CrashOptions{Data: vfs.Kept, Entries: vfs.Kept})
		f, err := c.OpenReadWrite("/o/map")
		must(t, err)
		_, err = f.WriteAt(b, at)
		must(t, err)
		_, err = Open(ctx, c, "/o", base, Options{BootID: bootA})
		return err
	}
	if err := change(8, 2); KindOf(err) != NewerFormat {
		t.Fatalf("newer: %v", err)
	}
	if err := change(20, 1); KindOf(err) != Damaged {
		t.Fatalf("damaged header: %v", err)
	}
	if _, err := Open(ctx, mem, "/nothing", base, Options{BootID: bootA}); !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("open nothing: %v", err)
	}
}

// TestDamagedMiddle: a record that is missing is told from one that was never synced.
func TestDamagedMiddle(t *testing.T) {
	mem := vfs.NewMem()
	base := testDisk(8 * blockSize)
	ctx := t.Context()
	o := create(t, mem, base, Options{BootID: bootA})
	for i := range int64(4) {
		must(t, o.WriteAt(ctx, []byte("x"), i*blockSize))
		must(t, o.Flush(ctx))
	}
	end := o.log.end
	for at := int64(headerSize); at < end; at++ {
		c := mem.Crash(vfs.CrashOptions{})
		f, err := c.OpenReadWrite("/o/map")
		must(t, err)
		var b [1]byte
		_, err = f.ReadAt(b[:], at)
		must(t, err)
		b[0] ^= 0x10
		_, err = f.WriteAt(b[:], at)
		must(t, err)
		_, err = Open(ctx, c, "/o", base, Options{BootID: bootA})
		// The last flush's records are not named by a later one.
		if last := end - 2*(recordHead+8); at < last && KindOf(err) != Damaged {
			t.Fatalf("a wrong byte at %d of %d: %v", at, end, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	o := create(t, vfs.NewMem(), testDisk(8*blockSize), Options{BootID: bootA})
	ctx, cancel := context.WithCancel(t.Context())
	must(t, o.WriteAt(ctx, []byte("x"), 0))
	cancel()
	if err := o.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("flush: %v", err)
	}
	must(t, o.Flush(t.Context()))
}

// Writers go on while the overlay flushes by itself, up to a bound; what the flush meets, the next change tells.
func TestFlushesByItself(t *testing.T) {
	for name, sick := range map[string]error{"well": nil, "the disk fails": syscall.EIO} {
		t.Run(name, func(t *testing.T) {
			syncing, hold := make(chan struct{}), make(chan struct{})
			var once sync.Once
			started := false
			fsys := errorfs.Wrap(vfs.NewMem(), errorfs.Func(func(op errorfs.Op, n string) error {
				if !started || op != errorfs.OpSync || filepath.Base(n) != dataName {
					return nil
				}
				var err error
				once.Do(func() {
					close(syncing)
					<-hold
					err = sick
				})
				return err
			}))
			o := create(t, fsys, testDisk(testSize), Options{BootID: bootA})
			started = true
			o.every = 4
			write := func(i int64) error { return o.WriteAt(t.Context(), make([]byte, blockSize), i*blockSize) }
			const most = 4*aheadFactor - 1
			for i := range int64(most) {
				must(t, write(i))
			}
			<-syncing
			ended := make(chan error, 1)
			go func() { ended <- write(most) }()
			select {
			case err := <-ended:
				t.Fatalf("a write past the bound did not wait: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			close(hold)
			if err := <-ended; sick == nil && err != nil {
				t.Fatal(err)
			}
			err := write(most + 1)
			if KindOf(err) == Failed != (sick != nil) {
				t.Errorf("%v after a flush with %v", err, sick)
			}
			if err := o.Close(); (err != nil) != (sick != nil) {
				t.Errorf("%v at the end", err)
			}
		})
	}
}
