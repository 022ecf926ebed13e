// Package nbdtest has what tests of devices and servers need: a device in memory, exports made of a map, and the contract
// that every Device keeps.
package nbdtest

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"coffer/nbd"
)

// memBlock is the granularity of Mem's map, in bytes.
const memBlock = 4096

var (
	_ nbd.Device = (*Mem)(nil)
	_ nbd.Writer = (*Mem)(nil)
	_ nbd.Mapper = (*Mem)(nil)
	_ nbd.Cacher = (*Mem)(nil)
)

// Mem is a device in memory. The hooks may be set before it is used.
type Mem struct {
	// Before is called before every operation, by its name: "read", "write", "zero", "trim", "flush", "extents", "cache". Its
	// error is the operation's; it may block.
	Before func(ctx context.Context, op string, off, n int64) error

	mu        sync.RWMutex // guards what follows
	data      []byte
	allocated []bool // per block; others are holes
	flushes   atomic.Int64
}

// NewMem returns a device that is one hole.
func NewMem(size int64) *Mem {
	return &Mem{data: make([]byte, size), allocated: make([]bool, (size+memBlock-1)/memBlock)}
}

// Bytes is a copy of the contents.
func (m *Mem) Bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.data)
}

// Flushes counts them.
func (m *Mem) Flushes() int64 { return m.flushes.Load() }

func (m *Mem) before(ctx context.Context, op string, off, n int64) error {
	if m.Before == nil {
		return nil
	}
	return m.Before(ctx, op, off, n)
}

// Size implements nbd.Device.
func (m *Mem) Size() int64 { return int64(len(m.data)) }

// ReadAt implements nbd.Device.
func (m *Mem) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := m.before(ctx, "read", off, int64(len(p))); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:off+int64(len(p))])
	return nil
}

// WriteAt implements nbd.Writer.
func (m *Mem) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := m.before(ctx, "write", off, int64(len(p))); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:off+int64(len(p))], p)
	m.allocate(off, int64(len(p)))
	return nil
}

func (m *Mem) allocate(off, n int64) {
	for b := off / memBlock; b*memBlock < off+n; b++ {
		m.allocated[b] = true
	}
}

// Zero implements nbd.Writer.
func (m *Mem) Zero(ctx context.Context, off, n int64, mayPunch bool) error {
	if err := m.before(ctx, "zero", off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	if mayPunch {
		m.punch(off, n)
	} else {
		m.allocate(off, n)
	}
	return nil
}

// punch gives back the blocks that lie wholly inside.
func (m *Mem) punch(off, n int64) {
	end := off + n
	if end == m.Size() {
		end = int64(len(m.allocated)) * memBlock
	}
	for b := (off + memBlock - 1) / memBlock; (b+1)*memBlock <= end; b++ {
		m.allocated[b] = false
	}
}

// Trim implements nbd.Writer: what is trimmed reads as zeroes.
func (m *Mem) Trim(ctx context.Context, off, n int64) error {
	if err := m.before(ctx, "trim", off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	m.punch(off, n)
	return nil
}

// Flush implements nbd.Writer.
func (m *Mem) Flush(ctx context.Context) error {
	m.flushes.Add(1)
	return m.before(ctx, "flush", 0, 0)
}

// Cache implements nbd.Cacher.
func (m *Mem) Cache(ctx context.Context, off, n int64) error { return m.before(ctx, "cache", off, n) }

// Extents implements nbd.Mapper, block by block.
func (m *Mem) Extents(ctx context.Context, off, n int64, yield func(n int64, f nbd.ExtentFlags) bool) error {
	if err := m.before(ctx, "extents", off, n); err != nil {
		return err
	}
	for n > 0 {
		b := off / memBlock
		d := min(n, (b+1)*memBlock-off)
		m.mu.RLock()
		f := nbd.Hole | nbd.Zero
		if m.allocated[b] {
			f = 0
		}
		m.mu.RUnlock()
		if !yield(d, f) {
			return nil
		}
		off, n = off+d, n-d
	}
	return nil
}

// Exports are exports by name that everybody may open.
type Exports map[string]nbd.Export

// List implements nbd.Exports, sorted.
func (e Exports) List(context.Context, nbd.Peer) ([]nbd.ExportInfo, error) {
	var r []nbd.ExportInfo
	for name, x := range e {
		r = append(r, nbd.ExportInfo{Name: name, Description: x.Description})
	}
	slices.SortFunc(r, func(a, b nbd.ExportInfo) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return r, nil
}

// Open implements nbd.Exports.
func (e Exports) Open(_ context.Context, _ nbd.Peer, name string) (nbd.Export, error) {
	x, ok := e[name]
	if !ok {
		return x, &nbd.Error{Kind: nbd.KindUnknownExport, Op: "open", Name: name}
	}
	x.Name = name
	return x, nil
}

// Of is one export under a name and as the default.
func Of(name string, d nbd.Device) Exports {
	x := nbd.Export{Name: name, Description: "a test's disk", Device: d, MultiConn: true}
	return Exports{name: x, "": x}
}
