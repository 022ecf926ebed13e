package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// QuiesceMode says whether the guest's file systems are frozen while a backup begins.
type QuiesceMode string

// The modes; empty means auto.
const (
	QuiesceAuto    QuiesceMode = "auto"    // where the guest agent answers
	QuiesceRequire QuiesceMode = "require" // a backup of a running domain fails without
	QuiesceOff     QuiesceMode = "off"
)

// QuiesceState says in what state a guest was when its backup began. Part of backup.json.
type QuiesceState string

// The states.
const (
	Frozen          QuiesceState = "frozen"           // file systems were frozen by the guest agent
	CrashConsistent QuiesceState = "crash_consistent" // as after a loss of power: no guest agent, or not asked for
	FreezeFailed    QuiesceState = "freeze_failed"    // likewise, for the guest agent did not do it
	WasPaused       QuiesceState = "paused"           // the guest did not run; its memory is not saved
	WasOff          QuiesceState = "shut_off"         // there was nothing to freeze
)

// Quiesced is what became of the wish to freeze a guest.
type Quiesced struct {
	State QuiesceState
	// FileSystems is how many were frozen.
	FileSystems int
	// Err is why nothing was frozen, where it should have been.
	Err error
}

const (
	// freezeTimeout bounds the freezing: a guest under load writes its caches first.
	freezeTimeout = 90 * time.Second
	thawTimeout   = 60 * time.Second
)

// errNoAgent is why a guest that must be quiesced cannot be.
var errNoAgent = errors.New("the guest has no guest agent that answers")

// freeze freezes the guest's file systems, as far as the mode wants it. Where it does nothing is frozen afterwards on an
// error.
func (c *Conn) freeze(ctx context.Context, d *Domain, mode QuiesceMode) (Quiesced, error) {
	switch {
	case d.State != StateRunning && d.State != StateBlocked:
		return Quiesced{State: WasPaused}, nil
	case mode == QuiesceOff:
		return Quiesced{State: CrashConsistent}, nil
	case d.Agent != AgentConnected && mode == QuiesceRequire:
		return Quiesced{}, &Error{KindOther, "quiesce domain " + d.Name, errNoAgent}
	case d.Agent != AgentConnected:
		return Quiesced{State: CrashConsistent}, nil
	}
	freezing, cancel := context.WithTimeoutCause(ctx, freezeTimeout, fmt.Errorf("the guest agent did not freeze within %v", freezeTimeout))
	defer cancel()
	var n int32
	err := c.call(freezing, "freeze the file systems of domain "+d.Name, func(lv rpc) (err error) {
		n, err = lv.DomainFsfreeze(d.ref, nil, 0)
		return err
	})
	if err == nil {
		return Quiesced{State: Frozen, FileSystems: int(n)}, nil
	}
	_ = c.thaw(ctx, d) // it may have frozen some
	if mode == QuiesceRequire || ctx.Err() != nil {
		return Quiesced{}, err
	}
	return Quiesced{State: FreezeFailed, Err: err}, nil
}

// thaw ends a freeze. It is done whatever became of ctx: a guest that stays frozen stands still.
func (c *Conn) thaw(ctx context.Context, d *Domain) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
	defer cancel()
	return c.call(ctx, "thaw the file systems of domain "+d.Name, func(lv rpc) error {
		_, err := lv.DomainFsthaw(d.ref, nil, 0)
		return err
	})
}
