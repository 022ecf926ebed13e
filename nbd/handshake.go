package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"slices"
	"time"
)

const readBuffer = 64 << 10

// session is one connection at the server. Its handshake is spoken by one goroutine.
//
//	greeting → option* → EXPORT_NAME or GO      → transmission
//	                   → ABORT, EOF, violation  → end
//	           STARTTLS: forget what was agreed, take the options anew
type session struct {
	s    *Server
	conn net.Conn // the TLS connection once there is one
	br   *bufio.Reader
	bw   *bufio.Writer
	peer Peer

	forceTLS   bool // FORCEDTLS (proto.md, "Server-side requirements")
	fixed      bool
	noZeroes   bool
	structured bool
	// contexts is the export whose base:allocation was selected; nil: none.
	contexts *string
	// open is the export that the last option opened: most clients name it in three options.
	open *openExport
}

// openExport is an export with what is told of it.
type openExport struct {
	asked string
	Export
	w        Writer // nil: read-only
	min      uint32
	pref     uint32
	max      uint32
	size     uint64
	allFlags uint16 // transmission flags but DF
}

func newSession(s *Server, conn net.Conn, peer Peer) *session {
	n := &session{s: s, conn: conn, peer: peer}
	n.wrap(conn)
	n.forceTLS = !peer.TLS && s.o.RequireTLS(peer)
	return n
}

func (n *session) wrap(conn net.Conn) {
	n.conn, n.br, n.bw = conn, bufio.NewReaderSize(conn, readBuffer), bufio.NewWriterSize(conn, 4096)
}

func violation(format string, args ...any) error {
	return &Error{Kind: KindProtocol, Op: "negotiate", Err: fmt.Errorf(format, args...)}
}

// errLeft ends a negotiation that the client ended, as it may.
var errLeft = errors.New("the client left")

// negotiate returns the export that was agreed on, or nil and nil when the client left.
func (n *session) negotiate(ctx context.Context) (*openExport, error) {
	if err := n.conn.SetDeadline(time.Now().Add(n.s.o.NegotiationTimeout)); err != nil {
		return nil, err
	}
	e, err := n.haggle(ctx)
	if err != nil {
		n.release()
		if errors.Is(err, errLeft) {
			return nil, nil
		}
		return nil, err
	}
	return e, n.conn.SetDeadline(time.Time{})
}

func (n *session) haggle(ctx context.Context) (*openExport, error) {
	if err := n.greet(); err != nil {
		return nil, err
	}
	for range maxOptions {
		o, data, err := n.option()
		if err != nil {
			return nil, err
		}
		e, err := n.answer(ctx, o, data)
		if err == nil {
			err = n.bw.Flush()
		}
		if err != nil || e != nil {
			return e, err
		}
	}
	return nil, violation("more than %d options", maxOptions)
}

func (n *session) greet() error {
	b := be.AppendUint64(nil, serverMagic)
	b = be.AppendUint64(b, optionMagic)
	b = be.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := n.conn.Write(b); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	var flags [4]byte
	if _, err := io.ReadFull(n.br, flags[:]); err != nil {
		return left(err)
	}
	f := be.Uint32(flags[:])
	n.fixed, n.noZeroes = f&clientFixed != 0, f&clientNoZeroes != 0
	if f&^(clientFixed|clientNoZeroes) != 0 {
		return violation("unknown client flags %#x", f)
	}
	return nil
}

// left tells the end of a connection between two messages from one within.
func left(err error) error {
	if errors.Is(err, io.EOF) {
		return errLeft
	}
	return fmt.Errorf("negotiate: %w", err)
}

// option reads one option. Data longer than any option of ours needs is not worth reading.
func (n *session) option() (option, []byte, error) {
	var h [optionHeaderSize]byte
	if _, err := io.ReadFull(n.br, h[:]); err != nil {
		return 0, nil, left(err)
	}
	o, size := option(be.Uint32(h[8:])), be.Uint32(h[12:])
	if be.Uint64(h[:]) != optionMagic {
		return 0, nil, violation("wrong option magic %#x", be.Uint64(h[:]))
	}
	if size > maxOption {
		if err := n.reply(o, repErrTooBig, nil); err == nil {
			_ = n.bw.Flush() // the connection ends in any case
		}
		return 0, nil, violation("%v of %d bytes", o, size)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(n.br, data); err != nil {
		return 0, nil, fmt.Errorf("negotiate: read %v: %w", o, err)
	}
	return o, data, nil
}

// answer serves one option; it returns the export when the transmission phase begins.
func (n *session) answer(ctx context.Context, o option, data []byte) (*openExport, error) {
	switch {
	case o == optExportName:
		return n.exportName(ctx, data)
	case !n.fixed:
		return nil, violation("%v from a client without fixed newstyle", o)
	case o == optAbort:
		if err := n.reply(o, repAck, nil); err == nil {
			_ = n.bw.Flush() // a client may leave without waiting for the answer
		}
		return nil, errLeft
	case o == optStartTLS:
		return nil, n.startTLS(ctx, data)
	case n.forceTLS && n.s.o.TLS == nil:
		return nil, n.refuse(o, repErrPolicy, "TLS is required here, and the server has none")
	case n.forceTLS:
		return nil, n.refuse(o, repErrTLSReqd, "TLS is required")
	}
	return n.answerFree(ctx, o, data)
}

// answerFree serves the options that need whatever encryption is required.
func (n *session) answerFree(ctx context.Context, o option, data []byte) (*openExport, error) {
	switch o {
	case optList:
		return nil, n.list(ctx, data)
	case optInfo, optGo:
		return n.info(ctx, o, data)
	case optStructuredReply:
		if n.s.o.SimpleReplies {
			return nil, n.refuse(o, repErrUnsup, "not served here")
		}
		if len(data) != 0 {
			return nil, n.refuse(o, repErrInvalid, "has no data")
		}
		n.structured = true
		return nil, n.reply(o, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return nil, n.metaContext(ctx, o, data)
	}
	return nil, n.refuse(o, repErrUnsup, "not known here")
}

func (n *session) reply(o option, r optReply, data []byte) error {
	var h [optReplyHeaderSize]byte
	be.PutUint64(h[:], replyMagic)
	be.PutUint32(h[8:], uint32(o))
	be.PutUint32(h[12:], uint32(r))
	be.PutUint32(h[16:], uint32(len(data)))
	if _, err := n.bw.Write(h[:]); err != nil {
		return err
	}
	_, err := n.bw.Write(data)
	return err
}

func (n *session) refuse(o option, r optReply, text string) error { return n.reply(o, r, []byte(text)) }

// refuseOpen tells why an export was not opened. What the peer may not know is only logged.
func (n *session) refuseOpen(o option, name string, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		n.s.log.Warn("open export", "name", name, "peer", n.peer.Remote, "err", err)
		return n.refuse(o, repErrUnknown, KindUnknownExport.String())
	}
	if e.Kind == KindTLSRequired && n.peer.TLS { // never once TLS is on (proto.md, "FORCEDTLS mode")
		return n.refuse(o, repErrPolicy, KindPolicy.String())
	}
	return n.refuse(o, replyOf(e.Kind), e.Kind.String())
}

func (n *session) exportName(ctx context.Context, data []byte) (*openExport, error) {
	switch {
	case len(data) > maxString:
		return nil, violation("an export name of %d bytes", len(data))
	case n.forceTLS:
		return nil, &Error{Kind: KindTLSRequired, Op: "open"}
	}
	e, err := n.openExport(ctx, string(data))
	if err != nil {
		return nil, err // this option has no error answer
	}
	b := be.AppendUint64(nil, e.size)
	b = be.AppendUint16(b, n.flags(e))
	if !n.noZeroes {
		b = append(b, make([]byte, exportNameReserved)...)
	}
	_, err = n.bw.Write(b)
	return e, err
}

// startTLS upgrades the connection. What was agreed before came over a wire that anybody could write on, so that it is
// forgotten; bytes that came behind the option in plain are an injection.
func (n *session) startTLS(ctx context.Context, data []byte) error {
	switch {
	case len(data) != 0:
		return n.refuse(optStartTLS, repErrInvalid, "has no data")
	case n.peer.TLS:
		return n.refuse(optStartTLS, repErrInvalid, "TLS is on already")
	case n.s.o.TLS == nil:
		return n.refuse(optStartTLS, repErrPolicy, "the server has no TLS")
	case n.br.Buffered() > 0:
		return violation("data in plain behind STARTTLS")
	}
	if err := n.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	if err := n.bw.Flush(); err != nil {
		return err
	}
	conn := tls.Server(n.conn, n.s.o.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	n.release()
	n.structured, n.contexts, n.forceTLS = false, nil, false
	n.peer = withTLS(n.peer, conn)
	n.wrap(conn)
	return nil
}

func withTLS(p Peer, conn *tls.Conn) Peer {
	p.TLS = true
	if chains := conn.ConnectionState().VerifiedChains; len(chains) > 0 {
		p.Cert = chains[0][0]
	}
	return p
}

func (n *session) list(ctx context.Context, data []byte) error {
	if len(data) != 0 {
		return n.refuse(optList, repErrInvalid, "has no data")
	}
	infos, err := n.s.exports.List(ctx, n.peer)
	if err != nil {
		return n.refuseList(err)
	}
	for _, i := range infos {
		if len(i.Name) > maxString {
			continue
		}
		b := append(appendString(nil, i.Name), i.Description[:min(len(i.Description), maxString)]...)
		if err := n.reply(optList, repServer, b); err != nil {
			return err
		}
	}
	return n.reply(optList, repAck, nil)
}

func (n *session) refuseList(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Kind != KindUnknownExport {
		return n.refuseOpen(optList, "", err)
	}
	n.s.log.Warn("list exports", "peer", n.peer.Remote, "err", err)
	return n.refuse(optList, repErrPolicy, "no list")
}

// info serves INFO and GO (proto.md, "INFO extension").
func (n *session) info(ctx context.Context, o option, data []byte) (*openExport, error) {
	f := fields{b: data}
	name := f.str()
	asked := make([]uint16, f.u16())
	for i := range asked {
		asked[i] = f.u16()
	}
	if !f.done() {
		return nil, n.refuse(o, repErrInvalid, "malformed")
	}
	e, err := n.openExport(ctx, name)
	if err != nil {
		return nil, n.refuseOpen(o, name, err)
	}
	if o == optGo && e.min > 1 && !slices.Contains(asked, infoBlockSize) {
		return nil, n.refuse(o, repErrBlockSizeReqd, "ask for the block sizes and keep to them")
	}
	if err := n.tell(o, e, asked); err != nil {
		return nil, err
	}
	if err := n.reply(o, repAck, nil); err != nil || o == optInfo {
		return nil, err
	}
	return e, nil
}

func (n *session) tell(o option, e *openExport, asked []uint16) error {
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, e.size)
	if err := n.reply(o, repInfo, be.AppendUint16(b, n.flags(e))); err != nil {
		return err
	}
	b = be.AppendUint16(nil, infoBlockSize)
	b = be.AppendUint32(b, e.min)
	b = be.AppendUint32(b, e.pref)
	if err := n.reply(o, repInfo, be.AppendUint32(b, e.max)); err != nil {
		return err
	}
	for _, text := range []struct {
		what uint16
		s    string
	}{{infoName, e.Name}, {infoDescription, e.Description}} {
		if !slices.Contains(asked, text.what) || text.s == "" {
			continue
		}
		b := be.AppendUint16(nil, text.what)
		if err := n.reply(o, repInfo, append(b, text.s[:min(len(text.s), maxString)]...)); err != nil {
			return err
		}
	}
	return nil
}

// metaContext serves LIST_META_CONTEXT and SET_META_CONTEXT. There is one context: base:allocation.
func (n *session) metaContext(ctx context.Context, o option, data []byte) error {
	if o == optSetMetaContext {
		n.contexts = nil
	}
	if !n.structured {
		return n.refuse(o, repErrInvalid, "only with structured replies")
	}
	f := fields{b: data}
	name := f.str()
	count := f.u32()
	match := count == 0 && o == optListMetaContext
	for range min(count, maxOption/4) {
		match = matchAllocation(o, f.str()) || match
	}
	if !f.done() {
		return n.refuse(o, repErrInvalid, "malformed")
	}
	if _, err := n.openExport(ctx, name); err != nil {
		return n.refuseOpen(o, name, err)
	}
	if match {
		id := uint32(0)
		if o == optSetMetaContext {
			id, n.contexts = metaAllocationID, &name
		}
		if err := n.reply(o, repMetaContext, append(be.AppendUint32(nil, id), ContextAllocation...)); err != nil {
			return err
		}
	}
	return n.reply(o, repAck, nil)
}

// matchAllocation: the name itself, or for a list its namespace alone.
func matchAllocation(o option, query string) bool {
	return query == ContextAllocation || o == optListMetaContext && query == metaNamespaceBase
}

// openExport opens an export, or returns it when it is the one that is open.
func (n *session) openExport(ctx context.Context, name string) (*openExport, error) {
	if n.open != nil && n.open.asked == name {
		return n.open, nil
	}
	n.release()
	x, err := n.s.exports.Open(ctx, n.peer, name)
	if err != nil {
		return nil, err
	}
	e := &openExport{asked: name, Export: x}
	if err := e.examine(n.s.o.MaxRequest); err != nil {
		e.close()
		return nil, err
	}
	n.open = e
	return e, nil
}

func (n *session) release() {
	if n.open != nil {
		n.open.close()
		n.open = nil
	}
}

func (e *openExport) close() {
	if e.Close != nil {
		e.Close()
	}
}

// flags are the transmission flags on this connection (proto.md, "Transmission flags").
func (n *session) flags(e *openExport) uint16 {
	if n.structured {
		return e.allFlags | txDF
	}
	return e.allFlags
}

// examine finds out what the export's device can do.
func (e *openExport) examine(maxRequest int) error {
	if e.Device == nil || e.Device.Size() < 0 {
		return fmt.Errorf("export %q: no device, or one of negative size", e.Name)
	}
	e.size = uint64(e.Device.Size())
	e.min, e.pref, e.max = 1, defaultPreferredBlock, 0
	if b, ok := e.Device.(BlockSizer); ok {
		e.min, e.pref, e.max = b.BlockSizes()
	}
	if e.min == 0 || e.min > maxMinimumBlock || e.pref < e.min || bits.OnesCount32(e.min) != 1 || bits.OnesCount32(e.pref) != 1 {
		return fmt.Errorf("export %q: block sizes %d, %d", e.Name, e.min, e.pref)
	}
	if e.max == 0 || e.max > uint32(maxRequest) {
		e.max = uint32(maxRequest)
	}
	e.max = max(e.max-e.max%e.min, e.min)
	e.allFlags = txHasFlags | txFlush
	w, ok := e.Device.(Writer)
	if ok && !e.ReadOnly {
		e.w = w
		e.allFlags |= txFUA | txTrim | txWriteZeroes
	} else {
		e.allFlags |= txReadOnly
	}
	if e.MultiConn {
		e.allFlags |= txMultiConn
	}
	if _, ok := e.Device.(Cacher); ok {
		e.allFlags |= txCache
	}
	return nil
}
