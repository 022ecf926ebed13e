package nbd

import (
	"errors"
	"time"
)

// task is one request in flight.
type task struct {
	t       *transmission
	r       request
	refusal Errno
	buf     *buffer // a write's payload
	send    func(packet)
	yield   func() // called before a wait for memory
}

func newTask(t *transmission, r request) *task { return &task{t: t, r: r, yield: func() {}} }

// reply is a packet of the server with what it gives back once sent.
type reply struct {
	t    *transmission
	buf  *buffer // nil: none
	last bool    // of its request: the slot is free
}

func (p *reply) sent(error) {
	if p.buf != nil {
		p.t.mem.put(p.buf)
	}
	if p.last {
		<-p.t.slots
	}
}

// check validates a request before anything else is done with it: no device ever sees a range outside of it.
func (t *transmission) check(r request) Errno {
	c, e := command(r.Type), t.exp
	known, ok := t.allowed(c)
	switch {
	case !ok:
		return EINVAL
	case r.CommandFlags&^known != 0:
		return EINVAL
	case c == cmdFlush:
		if r.Offset != 0 || r.Length != 0 {
			return EINVAL
		}
		return 0
	case e.w == nil && (c == cmdWrite || c == cmdTrim || c == cmdWriteZeroes):
		return EPERM
	case r.Offset > e.size || uint64(r.Length) > e.size-r.Offset:
		if c == cmdWrite || c == cmdWriteZeroes {
			return ENOSPC
		}
		return EINVAL
	case r.Offset%uint64(e.min) != 0 || r.Length%e.min != 0:
		return EINVAL
	case r.Length > e.max && (c == cmdRead || c == cmdWrite):
		if c == cmdRead && r.CommandFlags&cmdFlagDF != 0 {
			return EOVERFLOW
		}
		return EINVAL
	case r.Length == 0 && c == cmdBlockStatus:
		return EINVAL
	}
	return 0
}

// allowed says which flags a command may have here, and whether it is known at all (proto.md, "Command flags").
func (t *transmission) allowed(c command) (flags uint16, ok bool) {
	if t.exp.allFlags&txFUA != 0 {
		flags = cmdFlagFUA // valid for all commands once offered
	}
	switch c {
	case cmdRead:
		if t.structured {
			flags |= cmdFlagDF
		}
		return flags, true
	case cmdWrite, cmdTrim, cmdFlush:
		return flags, true
	case cmdWriteZeroes:
		return flags | cmdFlagNoHole, true
	case cmdCache:
		return flags, t.exp.allFlags&txCache != 0
	case cmdBlockStatus:
		return flags | cmdFlagReqOne, t.status
	}
	return 0, false
}

// serve does what was asked and sends the reply.
func (k *task) serve(send func(packet)) {
	k.send = send
	switch c := command(k.r.Type); {
	case k.refusal != 0:
		k.fail(k.refusal)
	case c == cmdRead:
		k.read()
	case c == cmdBlockStatus:
		k.blockStatus()
	default:
		k.finish(k.change(c))
	}
}

// change serves the commands whose reply has no payload.
func (k *task) change(c command) error {
	t, off, n := k.t, int64(k.r.Offset), int64(k.r.Length)
	var err error
	switch {
	case c == cmdWrite:
		return k.write()
	case c == cmdCache:
		return t.exp.Device.(Cacher).Cache(t.ctx, off, n)
	case c == cmdFlush:
		if t.exp.w == nil {
			return nil
		}
		return t.exp.w.Flush(t.ctx)
	case n == 0:
		return nil
	case c == cmdTrim:
		err = t.exp.w.Trim(t.ctx, off, n)
	case c == cmdWriteZeroes:
		err = t.exp.w.Zero(t.ctx, off, n, k.r.CommandFlags&cmdFlagNoHole == 0)
	}
	if err == nil && k.r.CommandFlags&cmdFlagFUA != 0 {
		err = t.exp.w.Flush(t.ctx)
	}
	return err
}

func (k *task) write() error {
	t := k.t
	defer func() {
		t.mem.put(k.buf)
		k.buf = nil
	}()
	if k.r.Length == 0 {
		return nil
	}
	p, off := k.buf.data(int(k.r.Length)), int64(k.r.Offset)
	if k.r.CommandFlags&cmdFlagFUA == 0 {
		begun := time.Now()
		err := t.exp.w.WriteAt(t.ctx, p, off)
		if len(p) <= inlineLimit {
			t.paces[cmdWrite].note(time.Since(begun))
		}
		return err
	}
	if f, ok := t.exp.w.(FUAWriter); ok {
		return f.WriteFUA(t.ctx, p, off)
	}
	if err := t.exp.w.WriteAt(t.ctx, p, off); err != nil {
		return err
	}
	return t.exp.w.Flush(t.ctx)
}

// finish replies to a command without payload.
func (k *task) finish(err error) {
	if err != nil {
		k.t.report(k.r, err)
		k.fail(ErrnoOf(err))
		return
	}
	k.send(packet{head: appendSimpleReply(nil, k.r.Handle, 0), owner: &reply{t: k.t, last: true}})
}

// fail sends an error: as a chunk where the client takes them, since a read may have no simple reply then.
func (k *task) fail(e Errno) {
	var b []byte
	if k.t.structured {
		text := e.Error()
		b = appendChunk(b, chunkHeader{Flags: chunkDone, Type: chunkError, Handle: k.r.Handle, Length: errorPayload + uint32(len(text))})
		b = be.AppendUint32(b, uint32(e))
		b = be.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
	} else {
		b = appendSimpleReply(b, k.r.Handle, e)
	}
	k.send(packet{head: b, owner: &reply{t: k.t, last: true}})
}

// maxReports of one connection go to the log: a guest that reads a damaged place again and again would fill it.
const maxReports = 16

func (t *transmission) report(r request, err error) {
	if t.ctx.Err() != nil {
		return // the client is gone; what its requests met on the way out tells nothing
	}
	if n := t.told.Add(1); n <= maxReports {
		t.s.log.Warn("nbd request failed", "command", command(r.Type).String(), "export", t.exp.Name, "offset", r.Offset,
			"length", r.Length, "peer", t.remote, "err", err, "last_report", n == maxReports)
	}
}

// read serves a read: whole, or in fragments where the client takes them.
func (k *task) read() {
	off, n := int64(k.r.Offset), int(k.r.Length)
	if n == 0 {
		k.finishRead()
		return
	}
	whole := !k.t.structured || k.r.CommandFlags&cmdFlagDF != 0
	if whole || n < sparseRead || !k.t.maps() {
		k.readData(off, n, whole, true)
		return
	}
	if err := k.readSparse(off, n); err != nil {
		k.t.report(k.r, err)
		k.fail(ErrnoOf(err))
	}
}

func (k *task) finishRead() {
	if k.t.structured {
		b := appendChunk(nil, chunkHeader{Flags: chunkDone, Type: chunkNone, Handle: k.r.Handle})
		k.send(packet{head: b, owner: &reply{t: k.t, last: true}})
		return
	}
	k.finish(nil)
}

// readData sends a range as data. After a failure nothing more may be sent; it says whether that is so.
func (k *task) readData(off int64, n int, whole, last bool) bool {
	for n > 0 {
		piece := n
		if !whole {
			piece = min(n, fragment)
		}
		sent, err := 0, error(nil)
		if !whole && piece > inlineLimit {
			sent, err = k.lend(off, piece, last && piece == n)
		}
		if sent == 0 && err == nil {
			sent, err = piece, k.readPiece(off, piece, last && piece == n)
		}
		if err != nil {
			k.t.report(k.r, err)
			k.fail(ErrnoOf(err))
			return false
		}
		off, n = off+int64(sent), n-sent
	}
	return true
}

// lend sends the first bytes of a range out of the device's memory, and returns how many: 0 where they must be read. last is
// for the whole range.
func (k *task) lend(off int64, n int, last bool) (int, error) {
	t := k.t
	l, ok := t.exp.Device.(Lender)
	if !ok {
		return 0, nil
	}
	p, err := l.Lend(t.ctx, off, int64(n))
	if err != nil || len(p) == 0 {
		return 0, err
	}
	b, err := t.mem.charge(t.ctx, len(p), k.yield)
	if err != nil {
		return 0, err
	}
	k.send(packet{head: t.dataChunk(nil, k.r, off, len(p), last && len(p) == n), body: p, owner: &reply{t: t, buf: b, last: last && len(p) == n}})
	return len(p), nil
}

// dataChunk appends the header of a chunk of data.
func (t *transmission) dataChunk(b []byte, r request, off int64, n int, last bool) []byte {
	h := chunkHeader{Type: chunkOffsetData, Handle: r.Handle, Length: offsetSize + uint32(n)}
	if last {
		h.Flags = chunkDone
	}
	return be.AppendUint64(appendChunk(b, h), uint64(off))
}

func (k *task) readPiece(off int64, n int, last bool) error {
	t := k.t
	b, err := t.mem.get(t.ctx, n, k.yield)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := t.exp.Device.ReadAt(t.ctx, b.data(n), off); err != nil {
		t.mem.put(b)
		return err
	}
	if n <= inlineLimit {
		t.paces[cmdRead].note(time.Since(begun))
	}
	var space [chunkHeaderSize + offsetSize]byte
	head := space[:0]
	if t.structured {
		head = t.dataChunk(head, k.r, off, n, last)
	} else {
		head = appendSimpleReply(head, k.r.Handle, 0)
	}
	k.send(packet{head: b.framed(head, n), owner: &reply{t: t, buf: b, last: last}})
	return nil
}

// sparseRead is the length from which on a read asks the map first: a hole is then 32 bytes on the wire.
const sparseRead = 64 << 10

func (t *transmission) maps() bool {
	_, ok := t.exp.Device.(Mapper)
	return ok
}

// extent is a part of a range with its flags.
type extent struct {
	n int64
	f ExtentFlags
}

var errUncovered = errors.New("device: the extents do not cover the range")

// extents asks the device's map, merges neighbours of equal flags, and stops at limit extents. What a device yields past
// the range is cut off.
func (t *transmission) extents(off, n int64, limit int) ([]extent, error) {
	m, ok := t.exp.Device.(Mapper)
	if !ok {
		return []extent{{n: n}}, nil
	}
	var r []extent
	left := n
	err := m.Extents(t.ctx, off, n, func(n int64, f ExtentFlags) bool {
		n = min(n, left)
		if n <= 0 {
			return false
		}
		if l := len(r); l > 0 && r[l-1].f == f {
			r[l-1].n += n
		} else if l == limit {
			return false
		} else {
			r = append(r, extent{n, f})
		}
		left -= n
		return left > 0
	})
	if err == nil && len(r) == 0 {
		err = errUncovered
	}
	return r, err
}

// readSparse sends a range as data and holes. An error means that nothing was sent.
func (k *task) readSparse(off int64, n int) error {
	list, err := k.t.extents(off, int64(n), maxStatusDescriptors)
	if err != nil {
		return err
	}
	for i := 0; n > 0; i++ {
		piece, hole := n, false // what the list does not cover is read
		if i < len(list) {
			piece, hole = int(list[i].n), list[i].f&Zero != 0
		}
		last := piece == n
		if hole {
			k.sendHole(off, piece, last)
		} else if !k.readData(off, piece, false, last) {
			return nil
		}
		off, n = off+int64(piece), n-piece
	}
	return nil
}

func (k *task) sendHole(off int64, n int, last bool) {
	h := chunkHeader{Type: chunkOffsetHole, Handle: k.r.Handle, Length: holePayload}
	if last {
		h.Flags = chunkDone
	}
	b := be.AppendUint64(appendChunk(nil, h), uint64(off))
	k.send(packet{head: be.AppendUint32(b, uint32(n)), owner: &reply{t: k.t, last: last}})
}

// blockStatus serves BLOCK_STATUS for base:allocation.
func (k *task) blockStatus() {
	limit := maxStatusDescriptors
	if k.r.CommandFlags&cmdFlagReqOne != 0 {
		limit = 1
	}
	list, err := k.t.extents(int64(k.r.Offset), int64(k.r.Length), limit)
	if err != nil {
		k.t.report(k.r, err)
		k.fail(ErrnoOf(err))
		return
	}
	size := 4 + descriptorSize*len(list)
	b := make([]byte, 0, chunkHeaderSize+size)
	b = appendChunk(b, chunkHeader{Flags: chunkDone, Type: chunkBlockStatus, Handle: k.r.Handle, Length: uint32(size)})
	b = be.AppendUint32(b, metaAllocationID)
	for _, e := range list {
		b = be.AppendUint32(b, uint32(e.n))
		b = be.AppendUint32(b, uint32(e.f&(Hole|Zero)))
	}
	k.send(packet{head: b, owner: &reply{t: k.t, last: true}})
}
