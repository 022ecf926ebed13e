package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// agreed is what a client's negotiation came to.
type agreed struct {
	conn           net.Conn
	br             *bufio.Reader
	size           uint64
	flags          uint16
	min, pref, max uint32
	structured     bool
	contexts       []grantedContext
}

type grantedContext struct {
	id   uint32
	name string
}

// haggler is the client's side of a negotiation.
type haggler struct {
	agreed
	o        ClientOptions
	noZeroes bool
	fixed    bool
}

func (h *haggler) wrap(conn net.Conn) { h.conn, h.br = conn, bufio.NewReaderSize(conn, readBuffer) }

func (h *haggler) broken(format string, args ...any) error {
	return &Error{Kind: KindProtocol, Op: "negotiate", Name: h.o.Export, Err: fmt.Errorf(format, args...)}
}

// haggle runs f within the time and the context given, and closes the connection when it fails.
func haggle(ctx context.Context, conn net.Conn, o ClientOptions, f func(*haggler) error) (*haggler, error) {
	h := &haggler{o: o, agreed: agreed{min: 1, pref: defaultPreferredBlock, max: defaultMaxRequest}}
	h.wrap(conn)
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	undo := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes reads and writes
	err := h.start(ctx)
	if err == nil {
		err = f(h)
	}
	if !undo() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return h, nil
	}
	_ = h.conn.Close() // the negotiation's failure is what tells
	var known *Error
	if errors.As(err, &known) {
		return nil, err
	}
	kind := KindDisconnected
	if ctx.Err() != nil {
		kind, err = KindTimeout, fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return nil, &Error{Kind: kind, Op: "negotiate", Name: o.Export, Err: err}
}

// start takes the greeting, and TLS where it is wanted.
func (h *haggler) start(ctx context.Context) error {
	var b [18]byte
	if _, err := io.ReadFull(h.br, b[:16]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if be.Uint64(b[:]) != serverMagic {
		return h.broken("this is no NBD server: magic %#x", be.Uint64(b[:]))
	}
	if be.Uint64(b[8:]) != optionMagic {
		return &Error{Kind: KindUnsupported, Op: "negotiate", Err: errors.New("oldstyle server")}
	}
	if _, err := io.ReadFull(h.br, b[16:]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	flags := be.Uint16(b[16:])
	h.fixed, h.noZeroes = flags&flagFixedNewstyle != 0, flags&flagNoZeroes != 0
	var answer uint32
	if h.fixed {
		answer |= clientFixed
	}
	if h.noZeroes {
		answer |= clientNoZeroes
	}
	if _, err := h.conn.Write(be.AppendUint32(nil, answer)); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if h.o.TLS == nil {
		return nil
	}
	return h.startTLS(ctx)
}

func (h *haggler) startTLS(ctx context.Context) error {
	if !h.fixed {
		return &Error{Kind: KindUnsupported, Op: "start TLS", Err: errors.New("the server does not know STARTTLS")}
	}
	if err := h.ask(optStartTLS, nil, nil); err != nil {
		return err
	}
	if h.br.Buffered() > 0 {
		return h.broken("data in plain behind STARTTLS")
	}
	conn := tls.Client(h.conn, h.o.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	h.wrap(conn)
	return nil
}

func (h *haggler) send(o option, data []byte) error {
	b := append(appendOptionHeader(make([]byte, 0, optionHeaderSize+len(data)), o, len(data)), data...)
	if _, err := h.conn.Write(b); err != nil {
		return fmt.Errorf("%v: %w", o, err)
	}
	return nil
}

// ask sends an option and takes its replies until the last. take gets those before ACK; nil when there may be none.
func (h *haggler) ask(o option, data []byte, take func(optReply, []byte) error) error {
	if err := h.send(o, data); err != nil {
		return err
	}
	for range maxListed {
		r, b, err := h.reply(o)
		switch {
		case err != nil:
			return err
		case r == repAck:
			return nil
		case r&repError != 0:
			return h.refused(o, r, b)
		case take == nil:
			return h.broken("%v answered with %v", o, r)
		}
		if err := take(r, b); err != nil {
			return err
		}
	}
	return h.broken("more than %d replies to %v", maxListed, o)
}

func (h *haggler) refused(o option, r optReply, text []byte) error {
	e := &Error{Kind: r.kind(), Op: o.String(), Name: h.o.Export, Err: errors.New(r.String())}
	if len(text) > 0 {
		e.Err = fmt.Errorf("%v: %.200q", r, text)
	}
	return e
}

func (h *haggler) reply(o option) (optReply, []byte, error) {
	var b [optReplyHeaderSize]byte
	if _, err := io.ReadFull(h.br, b[:]); err != nil {
		return 0, nil, fmt.Errorf("%v: %w", o, err)
	}
	r, n := optReply(be.Uint32(b[12:])), be.Uint32(b[16:])
	if be.Uint64(b[:]) != replyMagic || option(be.Uint32(b[8:])) != o {
		return 0, nil, h.broken("%v answered with magic %#x for %v", o, be.Uint64(b[:]), option(be.Uint32(b[8:])))
	}
	if n > maxOptionReply {
		return 0, nil, h.broken("%v answered with %d bytes", o, n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(h.br, data); err != nil {
		return 0, nil, fmt.Errorf("%v: %w", o, err)
	}
	return r, data, nil
}

// open agrees on the export and all that goes with it.
func (h *haggler) open() error {
	if !h.fixed {
		return h.exportName()
	}
	if !h.o.SimpleReplies {
		if err := h.askStructured(); err != nil {
			return err
		}
	}
	data := be.AppendUint16(appendString(nil, h.o.Export), 1)
	got := false
	err := h.ask(optGo, be.AppendUint16(data, infoBlockSize), func(r optReply, b []byte) error {
		if r != repInfo {
			return h.broken("%v answered with %v", optGo, r)
		}
		return h.info(b, &got)
	})
	var e *Error
	switch {
	case errors.As(err, &e) && e.Kind == KindUnsupported:
		return h.exportName()
	case err == nil && !got:
		return h.broken("%v without a size", optGo)
	}
	return err
}

func (h *haggler) info(b []byte, got *bool) error {
	f := fields{b: b}
	switch f.u16() {
	case infoExport:
		h.size, h.flags, *got = f.u64(), f.u16(), true
	case infoBlockSize:
		h.min, h.pref, h.max = f.u32(), f.u32(), f.u32()
	default:
		return nil
	}
	if !f.done() {
		return h.broken("information of %d bytes", len(b))
	}
	return nil
}

// exportName opens the export of a server that knows nothing better. A refusal is a closed connection.
func (h *haggler) exportName() error {
	if err := h.send(optExportName, []byte(h.o.Export)); err != nil {
		return err
	}
	n := 10
	if !h.noZeroes {
		n += exportNameReserved
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(h.br, b); err != nil {
		return &Error{Kind: KindUnknownExport, Op: "open", Name: h.o.Export, Err: err}
	}
	h.size, h.flags = be.Uint64(b), be.Uint16(b[8:])
	return nil
}

// askStructured asks for structured replies and metadata contexts; a server may know neither.
func (h *haggler) askStructured() error {
	err := h.ask(optStructuredReply, nil, nil)
	if unsupported(err) {
		return nil
	}
	if err != nil {
		return err
	}
	h.structured = true
	queries := append([]string{ContextAllocation}, h.o.MetaContexts...)
	data := be.AppendUint32(appendString(nil, h.o.Export), uint32(len(queries)))
	for _, q := range queries {
		data = appendString(data, q)
	}
	err = h.ask(optSetMetaContext, data, func(r optReply, b []byte) error {
		f := fields{b: b}
		c := grantedContext{id: f.u32()}
		if r != repMetaContext || f.bad || len(f.b) > maxString {
			return h.broken("%v answered with %v of %d bytes", optSetMetaContext, r, len(b))
		}
		c.name = string(f.b)
		if !slices.ContainsFunc(h.contexts, func(x grantedContext) bool { return x.id == c.id || x.name == c.name }) {
			h.contexts = append(h.contexts, c)
		}
		return nil
	})
	if unsupported(err) {
		return nil
	}
	return err
}

func unsupported(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == KindUnsupported
}

// settle makes sense of what the server told.
func (h *haggler) settle() error {
	switch {
	case h.size > 1<<63-1:
		return h.broken("an export of %d bytes", h.size)
	case h.flags&txHasFlags == 0:
		h.flags = txHasFlags
	case h.min == 0 || h.min > maxMinimumBlock || h.min&(h.min-1) != 0 || h.max < h.min || h.pref < h.min:
		return h.broken("block sizes %d, %d, %d", h.min, h.pref, h.max)
	}
	h.max = min(h.max, defaultMaxRequest)
	h.max -= h.max % h.min
	return nil
}

// Dial connects and negotiates. Networks are those of net.Dial.
func Dial(ctx context.Context, network, address string, o ClientOptions) (*Client, error) {
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, &Error{Kind: KindDisconnected, Op: "dial", Name: o.Export, Err: err}
	}
	if o.TLS != nil && o.TLS.ServerName == "" {
		host, _, err := net.SplitHostPort(address)
		if err == nil {
			o.TLS = o.TLS.Clone()
			o.TLS.ServerName = host
		}
	}
	return NewClient(ctx, conn, o)
}

// NewClient negotiates on a connection, which it owns from then on, in failure too.
func NewClient(ctx context.Context, conn net.Conn, o ClientOptions) (*Client, error) {
	o = o.withDefaults()
	h, err := haggle(ctx, conn, o, func(h *haggler) error {
		if err := h.open(); err != nil {
			return err
		}
		return h.settle()
	})
	if err != nil {
		return nil, err
	}
	return newClient(h.agreed, o), nil
}

// List asks a server for its exports (NBD_OPT_LIST) and closes the connection. Options other than TLS and Timeout are not
// used.
func List(ctx context.Context, conn net.Conn, o ClientOptions) ([]ExportInfo, error) {
	var r []ExportInfo
	h, err := haggle(ctx, conn, o.withDefaults(), func(h *haggler) error {
		if !h.fixed {
			return &Error{Kind: KindUnsupported, Op: "list"}
		}
		err := h.ask(optList, nil, func(p optReply, b []byte) error {
			f := fields{b: b}
			i := ExportInfo{Name: f.str()}
			if p != repServer || f.bad {
				return h.broken("%v answered with %v of %d bytes", optList, p, len(b))
			}
			i.Description = string(f.b)
			r = append(r, i)
			return nil
		})
		if err != nil {
			return err
		}
		return h.ask(optAbort, nil, nil)
	})
	if err != nil {
		return nil, err
	}
	return r, h.conn.Close()
}
