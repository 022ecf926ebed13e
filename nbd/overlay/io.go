package overlay

import (
	"context"
	"fmt"
	"math"

	"coffer/dedup/vfs"
	"coffer/nbd"
)

// creditStep is how many bytes are written between two questions for the free space.
const creditStep = 8 << 20

// Size of the disk in bytes.
func (o *Overlay) Size() int64 { return o.size }

// BlockSizes implements nbd.BlockSizer: any request will do, whole blocks are best.
func (o *Overlay) BlockSizes() (minimum, preferred, maximum uint32) { return 1, blockSize, 0 }

// usable refuses where the overlay is closed or has failed. logging is held.
func (o *Overlay) usable(op string) error {
	if o.closed {
		return &Error{Kind: Closed, Op: op, Object: o.dir}
	}
	return o.failure
}

// fail makes the overlay refuse all later changes, and says so in the map as far as that can be written. logging is held.
func (o *Overlay) fail(op string, err error) error {
	if o.failure == nil {
		o.failure = &Error{Kind: Failed, Op: op, Object: o.dir, Err: err}
		if o.log.add(record{kind: kindFailed}) == nil {
			_ = o.log.file.Sync()
		}
		o.unclean = true
	}
	return o.failure
}

// run returns the state at an offset, and how many bytes from there on, at most n, have it.
func (o *Overlay) run(off, n int64) (state, int64) {
	first := off / blockSize
	last := (off + n - 1) / blockSize
	o.viewing.RLock()
	defer o.viewing.RUnlock()
	st, blocks := o.states.run(first, last-first+1)
	return st, min(n, (first+blocks)*blockSize-off)
}

func (o *Overlay) inside(op string, off, n int64) error {
	if off < 0 || n < 0 || off > o.size-n {
		return &Error{Kind: Invalid, Op: op, Object: fmt.Sprintf("%d bytes at %d", n, off), Err: nbd.EINVAL}
	}
	return nil
}

// ReadAt implements nbd.Device.
func (o *Overlay) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := o.inside("read overlay", off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		st, n := o.run(off, int64(len(p)))
		if err := o.readRun(ctx, p[:n], off, st); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (o *Overlay) readRun(ctx context.Context, p []byte, off int64, st state) error {
	switch st {
	case inBase:
		return o.base.ReadAt(ctx, p, off)
	case isZero:
		clear(p)
		return nil
	}
	if _, err := o.data.ReadAt(p, off); err != nil {
		return &Error{Op: "read overlay", Object: o.dir, Err: err}
	}
	return nil
}

// Extents implements nbd.Mapper.
func (o *Overlay) Extents(ctx context.Context, off, n int64, yield func(n int64, f nbd.ExtentFlags) bool) error {
	if err := o.inside("map overlay", off, n); err != nil {
		return err
	}
	for n > 0 {
		st, part := o.run(off, n)
		more := true
		switch m, ok := o.base.(nbd.Mapper); {
		case st == isZero:
			more = yield(part, nbd.Hole|nbd.Zero)
		case st == inData || !ok:
			more = yield(part, 0)
		default:
			err := m.Extents(ctx, off, part, func(n int64, f nbd.ExtentFlags) bool {
				more = yield(n, f)
				return more
			})
			if err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		off, n = off+part, n-part
	}
	return nil
}

// change runs do with the blocks of a range locked, in a session, and counts it when it was good.
func (o *Overlay) change(op string, off, n int64, do func() error) error {
	if err := o.inside(op, off, n); err != nil || n == 0 {
		return err
	}
	first := off / blockSize
	unlock := o.stripes.lock(first, (off+n-1)/blockSize-first+1)
	err := o.begin(op)
	if err == nil {
		err = do()
	}
	unlock()
	if err != nil {
		return err
	}
	o.acked.Add(1)
	return nil
}

// begin says in the map, durably, that the overlay is open, before the first change.
func (o *Overlay) begin(op string) error {
	o.logging.Lock()
	defer o.logging.Unlock()
	if err := o.usable(op); err != nil {
		return err
	}
	if o.closing {
		return &Error{Kind: Closed, Op: op, Object: o.dir}
	}
	if o.session {
		return nil
	}
	if err := o.log.add(record{kind: kindOpen, boot: o.o.BootID}); err != nil {
		return &Error{Op: op, Object: o.dir, Err: err}
	}
	if err := o.log.file.Sync(); err != nil {
		return o.fail(op, err)
	}
	o.log.durable = o.log.seq
	o.session = true
	return nil
}

// WriteAt implements nbd.Writer.
func (o *Overlay) WriteAt(ctx context.Context, p []byte, off int64) error {
	err := o.change("write overlay", off, int64(len(p)), func() error { return o.write(ctx, p, off) })
	if err != nil {
		return err
	}
	return o.bound(ctx)
}

// write changes a range whose stripes are held.
func (o *Overlay) write(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		st, n := o.run(off, int64(len(p)))
		var err error
		if st == inData {
			if _, err = o.data.WriteAt(p[:n], off); err != nil {
				err = &Error{Op: "write overlay", Object: o.dir, Err: err}
			}
		} else {
			n, err = o.writeNew(ctx, p[:n], off, st)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// writeNew writes the first part of a range whose blocks are not in data: a block that is hit in part, made whole, or as many
// whole blocks as there are. It returns how much of p that was.
func (o *Overlay) writeNew(ctx context.Context, p []byte, off int64, st state) (int64, error) {
	i, in := off/blockSize, off%blockSize
	length := o.blockLength(i)
	if in == 0 && int64(len(p)) >= length {
		n := min(int64(len(p)), maxCRCs*blockSize)
		if off+n != o.size {
			n -= n % blockSize
		}
		return n, o.writeBlocks(p[:n], i)
	}
	whole := make([]byte, length)
	if err := o.readRun(ctx, whole, i*blockSize, st); err != nil {
		return 0, err
	}
	n := copy(whole[in:], p)
	return int64(n), o.writeBlocks(whole, i)
}

// writeBlocks writes whole blocks that are not in data yet.
func (o *Overlay) writeBlocks(p []byte, first int64) error {
	n := blocksOf(int64(len(p)))
	if err := o.claim(n); err != nil {
		return err
	}
	_, err := o.data.WriteAt(p, first*blockSize)
	if err != nil { // what was written of it is nobody's
		_ = vfs.PunchHole(o.data, first*blockSize, int64(len(p)))
	}
	r := record{kind: kindData, first: first, n: n, crcs: make([]uint32, n)}
	for i := range r.crcs {
		r.crcs[i] = checksum(p[i*blockSize : min((i+1)*blockSize, len(p))])
	}
	o.logging.Lock()
	defer o.logging.Unlock()
	o.inFlight -= n
	if err == nil {
		err = o.enter(r, inData)
	}
	if err != nil {
		return &Error{Op: "write overlay", Object: o.dir, Err: err}
	}
	o.fresh += n
	return nil
}

// enter adds a record and changes the states. logging is held.
func (o *Overlay) enter(r record, st state) error {
	if err := o.usable("write overlay"); err != nil {
		return err
	}
	if err := o.log.add(r); err != nil {
		return err
	}
	o.log.changed = o.log.seq
	o.viewing.Lock()
	defer o.viewing.Unlock()
	o.states.set(r.first, r.n, st)
	return nil
}

// claim counts blocks that are to be written against the limit and the free space.
func (o *Overlay) claim(n int64) error {
	o.logging.Lock()
	defer o.logging.Unlock()
	if err := o.usable("write overlay"); err != nil {
		return err
	}
	need := n * blockSize
	if o.limit() < o.size && (o.states.data+o.inFlight+n)*blockSize > o.limit() {
		return full("write overlay", fmt.Sprintf("%s: its limit of %d bytes is reached", o.dir, o.limit()))
	}
	if o.credit < need {
		free, err := o.fs.Free(o.dir)
		if err != nil {
			return &Error{Op: "write overlay", Object: o.dir, Err: err}
		}
		if free -= o.o.Reserve; free < need {
			o.credit = 0
			return full("write overlay", fmt.Sprintf("%s: the disk is full up to a reserve of %d bytes", o.dir, o.o.Reserve))
		}
		o.credit = min(free, creditStep+need)
	}
	o.credit -= need
	o.inFlight += n
	return nil
}

// bound flushes where much was written that is not committed. What a flush in the background meets is met by the next change.
func (o *Overlay) bound(ctx context.Context) error {
	o.logging.Lock()
	fresh := o.fresh
	o.logging.Unlock()
	switch {
	case fresh >= aheadFactor*o.every:
		return o.Flush(ctx)
	case fresh >= o.every && !o.behind.Swap(true):
		go func() {
			defer o.behind.Store(false)
			_ = o.Flush(context.WithoutCancel(ctx))
		}()
	}
	return nil
}

// Zero implements nbd.Writer. Without mayPunch the zeros take space, so that later writes there find it.
func (o *Overlay) Zero(ctx context.Context, off, n int64, mayPunch bool) error {
	if mayPunch {
		return o.change("zero overlay", off, n, func() error { return o.zero(ctx, off, n) })
	}
	if err := o.inside("zero overlay", off, n); err != nil {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if err := o.WriteAt(ctx, zeros[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// zero zeroes a range whose stripes are held: whole blocks by their states, the rest by writing.
func (o *Overlay) zero(ctx context.Context, off, n int64) error {
	first, last := o.whole(off, n)
	if first >= last {
		return o.zeroPart(ctx, off, n)
	}
	if err := o.zeroPart(ctx, off, first*blockSize-off); err != nil {
		return err
	}
	if err := o.zeroBlocks(first, last); err != nil {
		return err
	}
	tail := min(last*blockSize, o.size)
	return o.zeroPart(ctx, tail, off+n-tail)
}

// whole returns the blocks, first to below last, that lie inside a range.
func (o *Overlay) whole(off, n int64) (first, last int64) {
	first, last = (off+blockSize-1)/blockSize, (off+n)/blockSize
	if off+n == o.size {
		last = blocksOf(o.size)
	}
	return first, last
}

// zeroPart writes zeros to parts of blocks that are not zeros.
func (o *Overlay) zeroPart(ctx context.Context, off, n int64) error {
	for n > 0 {
		st, part := o.run(off, n)
		if st != isZero {
			if err := o.write(ctx, make([]byte, part), off); err != nil {
				return err
			}
		}
		off, n = off+part, n-part
	}
	return nil
}

// zeroBlocks makes zeros of blocks whose stripes are held, and gives back the space of those that were in data.
func (o *Overlay) zeroBlocks(first, last int64) error {
	for i := first; i < last; {
		st, n := o.blockRun(i, min(last-i, math.MaxUint32))
		if st != isZero {
			if err := o.zeroRun(i, n, st); err != nil {
				return &Error{Op: "zero overlay", Object: o.dir, Err: err}
			}
		}
		i += n
	}
	return nil
}

func (o *Overlay) blockRun(i, limit int64) (state, int64) {
	o.viewing.RLock()
	defer o.viewing.RUnlock()
	return o.states.run(i, limit)
}

func (o *Overlay) zeroRun(i, n int64, st state) error {
	o.logging.Lock()
	err := o.enter(record{kind: kindZero, first: i, n: n}, isZero)
	o.logging.Unlock()
	if err != nil || st != inData {
		return err
	}
	// The blocks are zeros already. Where the space does not come back (no holes in this file system) it is used again when
	// they are written.
	_ = vfs.PunchHole(o.data, i*blockSize, min(n*blockSize, o.size-i*blockSize))
	return nil
}

// Trim implements nbd.Writer: whole blocks in the range read as zeros from then on.
func (o *Overlay) Trim(ctx context.Context, off, n int64) error {
	return o.change("trim overlay", off, n, func() error {
		first, last := o.whole(off, n)
		return o.zeroBlocks(first, max(first, last))
	})
}
