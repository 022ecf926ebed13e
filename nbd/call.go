package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// call is one request of a client. It ends when its request was sent and its reply has come, or neither can be any more.
type call struct {
	op    command
	flags uint16
	off   int64
	n     int64
	from  []byte // what a write sends

	context uint32       // whose block status is wanted
	status  []descriptor // of that context

	c      *Client
	handle uint64
	head   [requestHeaderSize]byte
	gone   chan struct{} // closed when the request was sent
	ended  chan struct{} // closed when it was sent and answered
	got    int64         // bytes that content chunks brought
	err    error         // of the first error chunk

	mu   sync.Mutex // guards into; held while it is filled
	into []byte     // where a read goes; nil when the caller has gone
}

type descriptor struct{ length, flags uint32 }

// do sends a request and waits for its reply.
func (c *Client) do(ctx context.Context, k *call) error {
	if err := ctx.Err(); err != nil {
		return rangeError(k.op, k.off, k.n, err)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return rangeError(k.op, k.off, k.n, ctx.Err())
	case <-c.gone:
		return c.Err()
	}
	k.c, k.gone, k.ended = c, make(chan struct{}), make(chan struct{})
	if err := c.register(k); err != nil {
		<-c.slots
		return err
	}
	r := request{CommandFlags: k.flags, Type: uint16(k.op), Handle: k.handle, Offset: uint64(k.off), Length: uint32(k.n)}
	c.out.put(packet{head: appendRequest(k.head[:0], r), body: k.from, owner: k})
	select {
	case <-k.ended:
		return k.result()
	case <-ctx.Done():
	}
	k.abandon()
	return rangeError(k.op, k.off, k.n, ctx.Err())
}

func (k *call) result() error {
	var gone *Error
	if k.err == nil || errors.As(k.err, &gone) {
		return k.err
	}
	return rangeError(k.op, k.off, k.n, k.err)
}

// abandon takes the caller's buffers back.
func (k *call) abandon() {
	k.mu.Lock()
	k.into = nil
	k.mu.Unlock()
	if k.from != nil {
		<-k.gone
	}
}

func (c *Client) register(k *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.handle++
	k.handle = c.handle
	c.pending[k.handle] = k
	return nil
}

// sent implements sentinel.
func (k *call) sent(error) { close(k.gone) }

// answered ends a call; its request may still be on its way out when a server answers before it has read it.
func (k *call) answered() {
	<-k.gone
	<-k.c.slots
	close(k.ended)
}

// broken notes the first failure and wakes the reader, which ends the calls.
func (c *Client) broken(err error) {
	c.mu.Lock()
	if c.err == nil {
		var known *Error
		if !errors.As(err, &known) {
			err = &Error{Kind: kindOf(err), Op: "nbd client", Err: err}
		}
		c.err = err
	}
	c.mu.Unlock()
	_ = c.conn.Close() // the failure is noted
}

// receive takes replies until the connection ends, then ends what is pending.
func (c *Client) receive() {
	var err error
	for err == nil {
		err = c.reply()
	}
	c.broken(err)
	c.mu.Lock()
	pending := c.pending
	c.pending = nil
	c.mu.Unlock()
	for _, k := range pending {
		k.err = c.Err()
		k.answered()
	}
	close(c.gone)
}

func invalidReply(format string, args ...any) error {
	return &Error{Kind: KindProtocol, Op: "nbd client", Err: fmt.Errorf(format, args...)}
}

// reply takes one reply or chunk.
func (c *Client) reply() error {
	if c.br.Buffered() < simpleReplySize {
		if err := c.conn.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		if _, err := c.br.Peek(1); err != nil {
			return err
		}
	}
	var b [chunkHeaderSize]byte
	if err := c.read(b[:simpleReplySize]); err != nil {
		return err
	}
	switch be.Uint32(b[:]) {
	case simpleReplyMagic:
		return c.simpleReply(Errno(be.Uint32(b[4:])), be.Uint64(b[8:]))
	case structuredReplyMagic:
		if !c.structured {
			return invalidReply("a structured reply that was not agreed on")
		}
		if err := c.read(b[simpleReplySize:]); err != nil {
			return err
		}
		return c.chunk(decodeChunk(b[4:]))
	}
	return invalidReply("wrong reply magic %#x", be.Uint32(b[:]))
}

// read fills p; the server may not stall within.
func (c *Client) read(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), payloadStep)
		if c.br.Buffered() < n {
			if err := c.conn.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
				return err
			}
		}
		if _, err := io.ReadFull(c.br, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (c *Client) discard(n int64) error {
	for n > 0 {
		d := min(n, payloadStep)
		if err := c.conn.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
			return err
		}
		if _, err := c.br.Discard(int(d)); err != nil {
			return err
		}
		n -= d
	}
	return nil
}

func (c *Client) find(handle uint64, done bool) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.pending[handle]
	if k == nil {
		return nil, invalidReply("a reply to no request: handle %#x", handle)
	}
	if done {
		delete(c.pending, handle)
	}
	return k, nil
}

func (c *Client) simpleReply(e Errno, handle uint64) error {
	k, err := c.find(handle, false)
	if err != nil {
		return err
	}
	if c.structured && (k.op == cmdRead || k.op == cmdBlockStatus && e == 0) {
		return invalidReply("a simple reply to a %v", k.op)
	}
	if e != 0 {
		k.err = e
	} else if k.op == cmdRead {
		if err := k.fill(0, k.n); err != nil {
			return err
		}
	}
	return c.finish(k)
}

func (c *Client) finish(k *call) error {
	if _, err := c.find(k.handle, true); err != nil {
		return err
	}
	if k.op == cmdRead && k.err == nil && k.got != k.n {
		k.err = EIO
		defer c.broken(invalidReply("%d of %d bytes of a read", k.got, k.n))
	}
	if k.op == cmdBlockStatus && k.err == nil && len(k.status) == 0 {
		k.err = EIO // the server granted the context and tells nothing of it
	}
	k.answered()
	return nil
}

// chunk takes one chunk of a structured reply (proto.md, "Structured reply types").
func (c *Client) chunk(h chunkHeader) error {
	k, err := c.find(h.Handle, false)
	if err != nil {
		return err
	}
	switch {
	case h.Type == chunkNone:
		if h.Length != 0 || h.Flags&chunkDone == 0 {
			err = invalidReply("a %v chunk of %d bytes", h.Type, h.Length)
		}
	case h.Type == chunkOffsetData && k.op == cmdRead:
		err = c.offsetData(k, h)
	case h.Type == chunkOffsetHole && k.op == cmdRead:
		err = c.offsetHole(k, h)
	case h.Type == chunkBlockStatus && k.op == cmdBlockStatus:
		err = c.blockStatus(k, h)
	case h.Type&chunkErrorBit != 0:
		err = c.errorChunk(k, h)
	default:
		err = invalidReply("a %v chunk in reply to a %v", h.Type, k.op)
	}
	if err != nil || h.Flags&chunkDone == 0 {
		return err
	}
	return c.finish(k)
}

// place checks where a content chunk belongs: inside the request, and no more bytes in all than were asked for.
func (k *call) place(h chunkHeader, off uint64, n int64) (int64, error) {
	at := int64(off) - k.off
	if off > 1<<63-1 || n <= 0 || at < 0 || at > k.n || n > k.n-at || k.got+n > k.n {
		return 0, invalidReply("a %v chunk of %d bytes at %d to a read of %d bytes at %d", h.Type, n, off, k.n, k.off)
	}
	return at, nil
}

func (c *Client) offsetData(k *call, h chunkHeader) error {
	if h.Length <= offsetSize {
		return invalidReply("a %v chunk of %d bytes", h.Type, h.Length)
	}
	var b [offsetSize]byte
	if err := c.read(b[:]); err != nil {
		return err
	}
	n := int64(h.Length) - offsetSize
	at, err := k.place(h, be.Uint64(b[:]), n)
	if err != nil {
		return err
	}
	return k.fill(at, n)
}

// fill reads data into the caller's buffer, or past it when the caller has gone.
func (k *call) fill(at, n int64) error {
	k.got += n
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.into == nil {
		return k.c.discard(n)
	}
	return k.c.read(k.into[at : at+n])
}

func (c *Client) offsetHole(k *call, h chunkHeader) error {
	if h.Length != holePayload {
		return invalidReply("a %v chunk of %d bytes", h.Type, h.Length)
	}
	var b [holePayload]byte
	if err := c.read(b[:]); err != nil {
		return err
	}
	n := int64(be.Uint32(b[offsetSize:]))
	at, err := k.place(h, be.Uint64(b[:]), n)
	if err != nil {
		return err
	}
	k.got += n
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.into != nil {
		clear(k.into[at : at+n])
	}
	return nil
}

func (c *Client) blockStatus(k *call, h chunkHeader) error {
	if h.Length < 4+descriptorSize || (h.Length-4)%descriptorSize != 0 || h.Length > maxStatusPayload {
		return invalidReply("a %v chunk of %d bytes", h.Type, h.Length)
	}
	var b [descriptorSize]byte
	if err := c.read(b[:4]); err != nil {
		return err
	}
	left := int64(h.Length) - 4
	if be.Uint32(b[:]) != k.context {
		return c.discard(left)
	}
	if k.status != nil {
		return invalidReply("two %v chunks of one context", h.Type)
	}
	for ; left > 0; left -= descriptorSize { // grows as it arrives
		if err := c.read(b[:]); err != nil {
			return err
		}
		d := descriptor{be.Uint32(b[:]), be.Uint32(b[4:])}
		if d.length == 0 {
			return invalidReply("an extent of no bytes")
		}
		k.status = append(k.status, d)
	}
	return nil
}

// errorChunk takes any error chunk, known or not: all begin alike. The first one is the request's.
func (c *Client) errorChunk(k *call, h chunkHeader) error {
	var b [errorPayload]byte
	if h.Length < errorPayload || h.Length > maxErrorChunk {
		return invalidReply("a %v chunk of %d bytes", h.Type, h.Length)
	}
	if err := c.read(b[:]); err != nil {
		return err
	}
	left, n := int64(h.Length)-errorPayload, int64(be.Uint16(b[4:]))
	if n > left {
		return invalidReply("a %v chunk of %d bytes with a message of %d", h.Type, h.Length, n)
	}
	text := make([]byte, n)
	if err := c.read(text); err != nil {
		return err
	}
	e := Errno(be.Uint32(b[:]))
	if e == 0 {
		return invalidReply("an error chunk without an error")
	}
	if k.err == nil {
		k.err = e
		if n > 0 && string(text) != e.Error() {
			k.err = fmt.Errorf("%w: %.200q", e, text)
		}
	}
	return c.discard(left - n)
}
