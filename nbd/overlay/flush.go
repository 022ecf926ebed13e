package overlay

import (
	"context"
	"errors"
)

// Flush implements nbd.Writer. Those who come while one is flushing share the next flush.
func (o *Overlay) Flush(ctx context.Context) error {
	want := o.acked.Load()
	o.flushing.Lock()
	defer o.flushing.Unlock()
	return o.flush(ctx, want)
}

// flush makes durable what was acknowledged when it begins, unless a flush since has done so much. flushing is held.
func (o *Overlay) flush(ctx context.Context, want int64) error {
	covers := o.acked.Load() // before all else: what is acknowledged later may have no record below
	o.logging.Lock()
	err := o.usable("flush overlay")
	upto, fresh := o.log.changed, o.fresh
	o.logging.Unlock()
	if err != nil || o.flushed >= want {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := o.data.Sync(); err != nil {
		return o.failed(err)
	}
	if err := o.commit(upto); err != nil {
		return err
	}
	o.flushed = covers
	o.logging.Lock()
	defer o.logging.Unlock()
	o.fresh -= fresh
	if o.log.long(o.slack) {
		return o.compact()
	}
	return nil
}

func (o *Overlay) failed(err error) error {
	o.logging.Lock()
	defer o.logging.Unlock()
	return o.fail("flush overlay", err)
}

// commit says in the map, durably, that the data of the records up to a number was synced. flushing is held.
func (o *Overlay) commit(upto uint64) error {
	o.logging.Lock()
	if upto <= o.log.committed {
		o.logging.Unlock()
		return nil
	}
	err := o.log.add(record{kind: kindCommit, upto: upto, durable: o.log.durable})
	seq := o.log.seq
	o.logging.Unlock()
	if err != nil {
		return &Error{Op: "flush overlay", Object: o.dir, Err: err}
	}
	if err := o.log.file.Sync(); err != nil { // others may add records meanwhile; the file is replaced under flushing alone
		return o.failed(err)
	}
	o.logging.Lock()
	defer o.logging.Unlock()
	o.log.committed = upto
	o.log.durable = max(o.log.durable, seq)
	return nil
}

// compact makes the map anew. Where it cannot be written the old one goes on. flushing and logging are held: who writes new
// blocks waits, who writes in place or reads does not.
func (o *Overlay) compact() error {
	if err := o.data.Sync(); err != nil {
		return o.fail("compact overlay", err)
	}
	placed, err := o.rewrite()
	switch {
	case err != nil && placed:
		return o.fail("compact overlay", err)
	case err != nil:
		o.log.compact = o.log.end // the next try comes when it has doubled
		return nil
	}
	o.fresh = 0
	return nil
}

// Close makes all durable, says so in the map, and closes. An overlay that failed is closed as it is.
func (o *Overlay) Close() error {
	o.flushing.Lock()
	defer o.flushing.Unlock()
	o.logging.Lock()
	o.closing = true
	o.logging.Unlock()
	o.stripes.lock(0, stripes*stripeBlocks)() // those who change something are done then, and no more come
	err := o.flush(context.Background(), o.acked.Load())
	o.logging.Lock()
	defer o.logging.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	if err == nil && o.session {
		if err = o.log.add(record{kind: kindClosed}); err == nil {
			err = o.log.file.Sync()
		}
	}
	err = errors.Join(err, o.log.file.Close(), o.data.Close())
	if err != nil {
		return &Error{Op: "close overlay", Object: o.dir, Err: err}
	}
	return nil
}
