package relay

import (
	"strings"
	"sync"

	"coffer/nbd"
)

// suffix marks a connection of a relay. It cannot be part of an export's id.
const suffix = "#relay"

// Name is what a relay asks the far server for.
func Name(export string) string { return export + suffix }

// Named takes a name that was asked for apart: whether a relay asks, and for which export.
func Named(name string) (export string, relayed bool) { return strings.CutSuffix(name, suffix) }

// Turns is the far server's part: the order among a relay's connections to one export. A relay that lost a connection repeats
// on the next one what was in flight, and goes on from there. What the lost one still holds, in the device or unread in its
// socket, must not come after that. The zero value is ready.
//
// INVARIANT: once a connection changed the export, no earlier one does.
type Turns struct {
	gate sync.RWMutex // held for reading by every change under way
	now  uint64       // guarded by gate: the connection whose turn it is
	mu   sync.Mutex
	last uint64 // guarded by mu
}

// Turn is one connection's place in the order.
type Turn struct {
	of *Turns
	n  uint64
}

// Next is the place of a connection that was just made.
func (t *Turns) Next() Turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	return Turn{t, t.last}
}

// Take runs a change, after all that earlier connections began has ended. A connection whose turn is over is answered with
// ESHUTDOWN; nobody listens to it any more.
func (t Turn) Take(change func() error) error {
	o := t.of
	o.gate.RLock()
	if o.now < t.n {
		o.gate.RUnlock()
		o.advance(t.n)
		o.gate.RLock()
	}
	defer o.gate.RUnlock()
	if o.now > t.n {
		return nbd.ESHUTDOWN
	}
	return change()
}

func (t *Turns) advance(to uint64) {
	t.gate.Lock()
	defer t.gate.Unlock()
	t.now = max(t.now, to)
}
