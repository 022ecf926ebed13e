package relay_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/nbd"
	"coffer/nbd/relay"
)

// memory is a disk in memory. It outlives the servers that serve it, as an overlay outlives cofferd.
type memory struct {
	mu      sync.Mutex
	b       []byte
	flushes int
	begun   chan struct{} // guarded by mu; not nil: the next write closes it and waits for hold
	hold    chan struct{}
}

// holdNextWrite makes the next write wait, before it changes anything.
func (m *memory) holdNextWrite(until chan struct{}) (begun chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun, m.hold = make(chan struct{}), until
	return m.begun
}

func (m *memory) Size() int64 { return int64(len(m.b)) }

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.b[off:])
	return nil
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	begun := m.begun
	m.begun = nil
	m.mu.Unlock()
	if begun != nil {
		close(begun)
		<-m.hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.b[off:], p)
	return nil
}

func (m *memory) Zero(_ context.Context, off, n int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.b[off : off+n])
	return nil
}

func (m *memory) Trim(context.Context, int64, int64) error { return nil }

func (m *memory) Flush(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	return nil
}

func (m *memory) Extents(_ context.Context, _, n int64, yield func(int64, nbd.ExtentFlags) bool) error {
	for n > 0 && yield(min(n, 4096), 0) {
		n -= min(n, 4096)
	}
	return nil
}

// far is a server that can be killed and started again.
type far struct {
	t      *testing.T
	path   string
	disk   atomic.Pointer[memory]
	refuse atomic.Bool

	mu    sync.Mutex
	conns map[net.Conn]bool
	kill  context.CancelFunc
	l     net.Listener

	serving sync.WaitGroup
	turns   relay.Turns
}

func newFar(t *testing.T, size int) *far {
	f := &far{t: t, path: filepath.Join(t.TempDir(), "far.sock"), conns: map[net.Conn]bool{}}
	f.disk.Store(&memory{b: make([]byte, size)})
	f.start()
	t.Cleanup(f.stop)
	return f
}

func (f *far) List(context.Context, nbd.Peer) ([]nbd.ExportInfo, error) { return nil, nil }

func (f *far) Open(_ context.Context, _ nbd.Peer, name string) (nbd.Export, error) {
	if f.refuse.Load() {
		return nbd.Export{}, &nbd.Error{Kind: nbd.KindPolicy, Op: "open", Name: name}
	}
	if name, relayed := relay.Named(name); name != "disk" || !relayed {
		return nbd.Export{}, &nbd.Error{Kind: nbd.KindUnknownExport, Op: "open", Name: name}
	}
	return nbd.Export{Name: name, Device: inTurn{f.disk.Load(), f.turns.Next()}, MultiConn: true}, nil
}

// inTurn is one connection to the disk.
type inTurn struct {
	*memory
	turn relay.Turn
}

func (d inTurn) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.turn.Take(func() error { return d.memory.WriteAt(ctx, p, off) })
}

func (f *far) start() {
	f.t.Helper()
	l, err := net.Listen("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := nbd.NewServer(f, nbd.ServerOptions{})
	f.mu.Lock()
	f.kill, f.l = cancel, l
	f.mu.Unlock()
	f.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[c] = true
			f.mu.Unlock()
			f.serving.Go(func() { _ = s.ServeConn(ctx, c) })
		}
	})
}

// stop ends everything at once, as a kill does: nothing of the server runs any more when it returns.
func (f *far) stop() {
	f.mu.Lock()
	_ = f.l.Close()
	f.kill()
	f.mu.Unlock()
	f.cut()
	f.serving.Wait()
}

// cut loses the connections; the server goes on, and with what it has begun.
func (f *far) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.Close()
	}
	clear(f.conns)
}

func (f *far) options() relay.Options {
	return relay.Options{
		Export: "disk", MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond,
		Dial: func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", f.path) },
	}
}

func open(t *testing.T, o relay.Options) *relay.Device {
	t.Helper()
	d, err := relay.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// Requests from several sides go on while the far server is killed and started again; none fails, and none is forgotten.
func TestGoesOn(t *testing.T) {
	f := newFar(t, 4<<20)
	d := open(t, f.options())
	ctx := t.Context()
	deadline := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	const part = 1 << 20
	want := make([][]byte, 4)
	for i := range want {
		want[i] = make([]byte, part)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for time.Now().Before(deadline) {
				off, n := r.IntN(part-5000), 1+r.IntN(5000)
				for j := range n {
					want[i][off+j] = byte(r.Uint32())
				}
				if err := d.WriteAt(ctx, want[i][off:off+n], int64(i*part+off)); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				got := make([]byte, n)
				if err := d.ReadAt(ctx, got, int64(i*part+off)); err != nil || !bytes.Equal(got, want[i][off:off+n]) {
					t.Errorf("read: %v; equal: %v", err, bytes.Equal(got, want[i][off:off+n]))
					return
				}
				if r.IntN(20) == 0 {
					if err := d.Flush(ctx); err != nil {
						t.Errorf("flush: %v", err)
						return
					}
				}
			}
		})
	}
	for range 8 {
		time.Sleep(75 * time.Millisecond)
		f.cut()
		time.Sleep(75 * time.Millisecond)
		f.stop()
		time.Sleep(20 * time.Millisecond)
		f.start()
	}
	wg.Wait()
	if err := d.Flush(ctx); err != nil {
		t.Error(err)
	}
	n := int64(0)
	if err := d.Extents(ctx, 0, d.Size(), func(l int64, _ nbd.ExtentFlags) bool { n += l; return true }); err != nil || n != d.Size() {
		t.Errorf("extents of %d bytes, %v", n, err)
	}
	f.stop() // lost connections may have something under way even now
	if m := f.disk.Load(); !bytes.Equal(m.b, bytes.Join(want, nil)) || m.flushes == 0 {
		t.Errorf("the disk differs, or was never flushed (%d)", m.flushes)
	}
}

// What a lost connection left under way in the far server's device never comes after what the next one wrote.
func TestLateWriteOfALostConnection(t *testing.T) {
	f := newFar(t, 4096)
	slow := make(chan struct{})
	begun := f.disk.Load().holdNextWrite(slow)
	d := open(t, f.options())
	first := make(chan error, 1)
	go func() { first <- d.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 0) }()
	<-begun
	f.cut()
	time.AfterFunc(100*time.Millisecond, func() { close(slow) })
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(t.Context(), bytes.Repeat([]byte{2}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	<-slow
	f.stop()
	if b := f.disk.Load().b; !bytes.Equal(b, bytes.Repeat([]byte{2}, 4096)) {
		t.Error("an older write came after the newer one")
	}
}

// A server that does not come back ends requests when patience does; one that comes later is found by the next request.
func TestPatience(t *testing.T) {
	f := newFar(t, 4096)
	o := f.options()
	o.Patience = 2 * time.Second
	d := open(t, o)
	f.stop()
	if err := d.Flush(t.Context()); err == nil || nbd.ErrnoOf(err) != nbd.EIO {
		t.Errorf("%v is told as %v", err, nbd.ErrnoOf(err))
	}
	f.start()
	if err := d.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// An export that refuses, because it lost what was acknowledged, or that has become another one, is not used again.
func TestForGood(t *testing.T) {
	for name, change := range map[string]func(*far){
		"refused":      func(f *far) { f.refuse.Store(true) },
		"another size": func(f *far) { f.disk.Store(&memory{b: make([]byte, 8192)}) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFar(t, 4096)
			d := open(t, f.options())
			f.stop()
			change(f)
			f.start()
			if err := d.Flush(t.Context()); nbd.ErrnoOf(err) != nbd.EIO {
				t.Fatalf("%v", err)
			}
			f.refuse.Store(false)
			f.disk.Store(&memory{b: make([]byte, 4096)})
			if err := d.WriteAt(t.Context(), []byte{1}, 0); err == nil {
				t.Error("a write after the disk had forgotten others")
			}
		})
	}
}

// What the far server answers is the answer; what the caller ends, ends.
func TestAnswersAndEnds(t *testing.T) {
	f := newFar(t, 4096)
	if _, err := relay.Open(t.Context(), relay.Options{Export: "none", Dial: f.options().Dial}); err == nil {
		t.Error("an export that is not there was opened")
	}
	d := open(t, f.options())
	if err := d.ReadAt(t.Context(), make([]byte, 10), 4090); err == nil {
		t.Error("a read past the end")
	}
	f.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Flush(context.WithoutCancel(t.Context())) }()
	time.Sleep(10 * time.Millisecond)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("a request outlived the relay")
	}
}
