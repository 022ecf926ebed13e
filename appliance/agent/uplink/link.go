package uplink

import (
	"context"
	"log/slog"
	"net"
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

// Options of a Link. Dial and Orders are needed; the zero value of all else means the default.
type Options struct {
	// Dial makes an authenticated connection: TLS with its handshake done. Build the TLS connection over
	// sms.Buffered(tcp): that saves many system calls.
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

// Link keeps one connection to the appliance up, hands orders out, and carries the sessions.
type Link struct {
	opts Options
}

// NewLink makes a Link. Run makes it live.
func NewLink(opts Options) *Link { return &Link{opts: opts} }

// Run connects, serves, and connects again until ctx is done. It returns early only when the appliance refuses the
// certificate for good (sms.CodeAuth) or the protocol version (sms.CodeVersion).
func (l *Link) Run(ctx context.Context) error { panic("todo") }

// Open opens the run that an order named by its token. ctx bounds the opening alone.
func (l *Link) Open(ctx context.Context, token sms.Token) (*Session, error) { panic("todo") }

// Renew asks for a new certificate. The present connection stays; the next Dial should use the new certificate.
func (l *Link) Renew(ctx context.Context, csr []byte) (sms.EnrolResult, error) { panic("todo") }

// Enrol does the enrolment exchange on a connection without client certificate, and closes it.
func Enrol(ctx context.Context, nc net.Conn, e sms.Enrol) (sms.EnrolResult, error) { panic("todo") }
