package overlay

import (
	"bufio"
	"errors"
	"io"
)

// replayed is what a map says.
type replayed struct {
	header    header
	states    *states  // by all records that are known to describe synced bytes
	pending   []record // data and zero records behind the last commit
	seq       uint64   // of the last record
	committed uint64
	end       int64  // of the last record
	torn      bool   // something lies behind the last record
	open      bool   // it was not closed
	boot      BootID // of who had it open
	failed    bool   // a sync failed while it was open
	unclean   bool   // and nobody took notice
}

// replay reads a map of a disk. It stops at what is no record: a loss of power leaves the last records torn. Where a later
// record says that what is missing had been synced, the map is Damaged instead.
func replay(r io.Reader, size int64) (*replayed, error) {
	in := bufio.NewReaderSize(r, 2*maxRecord)
	head := make([]byte, headerSize)
	if n, err := io.ReadFull(in, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	} else {
		head = head[:n]
	}
	h, err := decodeHeader(head)
	if err != nil {
		return nil, err
	}
	p := &replayed{header: h, states: newStates(blocksOf(h.size)), end: headerSize}
	for {
		rec, n, err := p.next(in)
		if errors.Is(err, errRecord) {
			break
		}
		if err != nil {
			return nil, err
		}
		if rec.seq != p.seq+1 {
			break
		}
		p.seq = rec.seq
		p.end += int64(n)
		if _, err := in.Discard(n); err != nil {
			return nil, err
		}
		p.take(rec)
	}
	p.torn = p.end != size
	return p, p.search(in)
}

func blocksOf(size int64) int64 { return (size + blockSize - 1) / blockSize }

// next looks at the record that in is at. errRecord where there is none.
func (p *replayed) next(in *bufio.Reader) (rec record, n int, err error) {
	head, err := in.Peek(recordHead)
	if err != nil {
		return rec, 0, endIsNoRecord(err)
	}
	b, err := in.Peek(max(recordLength(head), recordHead))
	if err != nil {
		return rec, 0, endIsNoRecord(err)
	}
	return decodeRecord(b, p.header.salt, p.states.blocks)
}

func endIsNoRecord(err error) error {
	if errors.Is(err, io.EOF) {
		return errRecord
	}
	return err
}

// search looks behind the last record for one that says that more had been synced.
func (p *replayed) search(in *bufio.Reader) error {
	for {
		rec, _, err := p.next(in)
		switch {
		case err == nil && rec.kind == kindCommit && rec.durable > p.seq:
			return errMissing
		case err != nil && !errors.Is(err, errRecord):
			return err
		}
		if _, err := in.Discard(recordAlign); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// take follows one record.
func (p *replayed) take(r record) {
	switch r.kind {
	case kindOpen:
		p.open, p.boot, p.failed = true, r.boot, false
	case kindClosed:
		p.open, p.failed = false, false
	case kindData, kindZero:
		p.pending = append(p.pending, r)
	case kindCommit:
		p.commit(r.upto)
	case kindRuns:
		for _, e := range r.runs {
			p.states.set(e.first, e.n, e.state)
		}
	case kindUnclean:
		p.unclean = true
	case kindSettled:
		p.unclean = false
	case kindFailed:
		p.failed = true
	}
}

// commit applies the pending records up to a number.
func (p *replayed) commit(upto uint64) {
	n := 0
	for n < len(p.pending) && p.pending[n].seq <= upto {
		r := p.pending[n]
		st := isZero
		if r.kind == kindData {
			st = inData
		}
		p.states.set(r.first, r.n, st)
		n++
	}
	p.pending = p.pending[n:]
	p.committed = max(p.committed, upto)
}

// lostPower tells whether writes that were not flushed may be lost: the machine was started again since, or could not sync.
func (p *replayed) lostPower(boot BootID) bool { return p.open && (p.failed || p.boot != boot) }

// verify applies the pending records as far as the bytes in data are those that they were written for; read fills a block.
func (p *replayed) verify(read func(i int64) ([]byte, error)) error {
	sums := map[int64]uint32{}
	for _, r := range p.pending {
		for i := range r.n {
			if r.kind == kindData {
				sums[r.first+i] = r.crcs[i]
			} else if len(sums) > 0 {
				delete(sums, r.first+i)
			}
		}
		if r.kind == kindZero {
			p.states.set(r.first, r.n, isZero)
		}
	}
	p.pending = nil
	for i, sum := range sums {
		b, err := read(i)
		if err != nil {
			return err
		}
		if checksum(b) == sum {
			p.states.set(i, 1, inData)
		}
	}
	return nil
}
