package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"coffer/appliance/sms"
)

// Orders is what the agent does with an order. It is called in a goroutine of its own per order and shall return soon: a
// backup or restore is accepted by returning, and worked on in a goroutine that the implementation owns. Return an
// *sms.Error to refuse with its Code; any other error is refused as sms.CodeInternal. The ctx ends with the Link's Run,
// or when the appliance gives the order up.
type Orders interface {
	Order(ctx context.Context, o sms.Order) (sms.Reply, error)
}

// Defaults of Options.
const (
	DefaultMemory       = 48 << 20
	DefaultMinBackoff   = 500 * time.Millisecond
	DefaultMaxBackoff   = 30 * time.Second
	DefaultResumeWindow = 15 * time.Minute
	DefaultLaneWindow   = 8 << 20

	connectTimeout = 30 * time.Second // TCP, TLS and welcome together
)

// Options of a Link. Dial and Orders are needed; the zero value of all else means the default.
type Options struct {
	// Dial makes an authenticated connection: TLS with its handshake done. Build the TLS connection over
	// sms.Buffered(tcp), with DynamicRecordSizingDisabled: that saves many system calls.
	Dial func(ctx context.Context) (net.Conn, error)
	// Hello describes this agent; versions and clock are filled in.
	Hello  sms.Hello
	Orders Orders
	Logger *slog.Logger
	// Connected, where set, is called after every welcome, before any order.
	Connected func(sms.Welcome)
	// Memory bounds what is kept for messages that arrive, in bytes.
	Memory int64
	// MinBackoff and MaxBackoff bound the wait between attempts to connect, which doubles, with jitter.
	MinBackoff, MaxBackoff time.Duration
	// ResumeWindow is for how long a session tries to get back to its run.
	ResumeWindow time.Duration
	// LaneWindow is how many bytes a lane keeps unacknowledged.
	LaneWindow int
	// KeepAlive and DeadAfter: see sms.Options.
	KeepAlive, DeadAfter time.Duration
	Now                  func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Memory <= 0 {
		o.Memory = DefaultMemory
	}
	if o.MinBackoff <= 0 {
		o.MinBackoff = DefaultMinBackoff
	}
	if o.MaxBackoff <= 0 {
		o.MaxBackoff = DefaultMaxBackoff
	}
	if o.ResumeWindow <= 0 {
		o.ResumeWindow = DefaultResumeWindow
	}
	if o.LaneWindow <= 0 {
		o.LaneWindow = DefaultLaneWindow
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Link keeps one connection to the appliance up, hands orders out, and carries the sessions. Methods may be called from
// many goroutines.
type Link struct {
	opts   Options
	budget *sms.Budget

	mu sync.Mutex
	// mu guards all below.
	cur     *sms.Conn     // nil while there is none
	changed chan struct{} // closed when cur changes
	stopped error         // set when Run has returned
}

// NewLink makes a Link. Run makes it live.
func NewLink(opts Options) *Link {
	opts = opts.withDefaults()
	return &Link{opts: opts, budget: sms.NewBudget(opts.Memory), changed: make(chan struct{})}
}

// Run connects, serves, and connects again until ctx is done. It returns early only when the appliance refuses the
// certificate for good (sms.CodeAuth) or the protocol version (sms.CodeVersion). It waits for the orders' goroutines.
func (l *Link) Run(ctx context.Context) error {
	err := l.run(ctx)
	l.mu.Lock()
	l.stopped = sms.Errorf(sms.CodeShutdown, "the agent stops")
	if err != nil && ctx.Err() == nil {
		l.stopped = err
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	return err
}

func (l *Link) run(ctx context.Context) error {
	var orders sync.WaitGroup
	defer orders.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait := l.opts.MinBackoff
	for {
		started := l.opts.Now()
		err := l.once(ctx, &orders)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e, ok := errors.AsType[*sms.Error](err); ok && e.Remote && (e.Code == sms.CodeAuth || e.Code == sms.CodeVersion) {
			return err
		}
		if l.opts.Now().Sub(started) > l.opts.MaxBackoff {
			wait = l.opts.MinBackoff
		}
		if sms.CodeOf(err) == sms.CodeReplaced {
			wait = l.opts.MaxBackoff // two agents with one certificate: they must not throw each other out all the time
		}
		pause := wait/2 + rand.N(wait)
		l.opts.Logger.Warn("not connected to the appliance", "cause", err, "retry_in", pause.Round(time.Millisecond))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = min(2*wait, l.opts.MaxBackoff)
	}
}

// once lives through one connection; it returns why it ended.
func (l *Link) once(ctx context.Context, orders *sync.WaitGroup) error {
	conn, w, err := l.connect(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close(sms.CodeShutdown, "the agent stops")
	l.opts.Logger.Info("connected to the appliance", "client", w.Client, "appliance", w.Appliance)
	if l.opts.Connected != nil {
		l.opts.Connected(w)
	}
	l.set(conn)
	defer l.set(nil)
	for {
		st, err := conn.Accept(ctx)
		if err != nil {
			return err
		}
		if st.Kind() != sms.StreamOrder {
			st.Close(sms.CodeProtocol, "an appliance opens order streams only")
			continue
		}
		orders.Go(func() { l.order(ctx, st) })
	}
}

// connect dials and exchanges hello and welcome.
func (l *Link) connect(ctx context.Context) (*sms.Conn, sms.Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var w sms.Welcome
	nc, err := l.opts.Dial(ctx)
	if err != nil {
		return nil, w, err
	}
	conn := sms.NewConn(nc, sms.AgentSide, sms.Options{Budget: l.budget, KeepAlive: l.opts.KeepAlive, DeadAfter: l.opts.DeadAfter})
	hello := l.opts.Hello
	hello.MinVersion, hello.MaxVersion, hello.Clock = sms.Version, sms.Version, l.opts.Now()
	if err = conn.Main().Send(ctx, &hello); err == nil {
		err = conn.Main().RecvMessage(ctx, &w)
	}
	if err != nil {
		conn.Close(sms.CodeTimeout, "no welcome")
		return nil, w, err
	}
	return conn, w, nil
}

func (l *Link) set(conn *sms.Conn) {
	l.mu.Lock()
	l.cur = conn
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
}

// conn waits for a live connection other than not.
func (l *Link) conn(ctx context.Context, not *sms.Conn) (*sms.Conn, error) {
	for {
		l.mu.Lock()
		cur, changed, stopped := l.cur, l.changed, l.stopped
		l.mu.Unlock()
		if stopped != nil {
			return nil, stopped
		}
		if cur != nil && cur != not && cur.Err() == nil {
			return cur, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// order takes one order from its stream and answers it.
func (l *Link) order(ctx context.Context, st *sms.Stream) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // the appliance may give the order up
		select {
		case <-st.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	var o sms.Order
	err := st.RecvMessage(ctx, &o)
	var reply sms.Reply
	if err == nil {
		if err = o.Validate(); err == nil {
			reply, err = l.opts.Orders.Order(ctx, o)
		}
	}
	if err == nil {
		err = st.Send(ctx, &reply)
	}
	if err == nil {
		st.Close("", "")
		return
	}
	l.opts.Logger.Warn("order refused", "order", o.ID, "kind", o.Kind, "cause", err)
	code, text := sms.CodeInternal, err.Error()
	if e, ok := errors.AsType[*sms.Error](err); ok {
		code, text = e.Code, e.Message
	}
	st.Close(code, text)
}

// Renew asks for a new certificate. The present connection stays; the next Dial should use the new certificate.
func (l *Link) Renew(ctx context.Context, csr []byte) (sms.EnrolResult, error) {
	var res sms.EnrolResult
	conn, err := l.conn(ctx, nil)
	if err != nil {
		return res, fmt.Errorf("renew certificate: %w", err)
	}
	st, err := conn.Open(sms.StreamRenew)
	if err != nil {
		return res, fmt.Errorf("renew certificate: %w", err)
	}
	defer st.Close("", "")
	if err = st.Send(ctx, &sms.Renew{CSR: csr}); err == nil {
		err = st.RecvMessage(ctx, &res)
	}
	if err != nil {
		return res, fmt.Errorf("renew certificate: %w", err)
	}
	return res, nil
}

// Enrol does the enrolment exchange on a connection without client certificate, and closes it.
func Enrol(ctx context.Context, nc net.Conn, e sms.Enrol) (sms.EnrolResult, error) {
	conn := sms.NewConn(nc, sms.AgentSide, sms.Options{})
	defer conn.Close(sms.CodeShutdown, "done")
	var res sms.EnrolResult
	err := conn.Main().Send(ctx, &e)
	if err == nil {
		err = conn.Main().RecvMessage(ctx, &res)
	}
	if err != nil {
		return res, fmt.Errorf("enrol: %w", err)
	}
	return res, nil
}
