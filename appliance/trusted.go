package appliance

import (
	"context"
	"time"
)

// clockBehind is how far trusted time may be behind the machine's clock without a word.
const clockBehind = time.Minute

// trusting returns the options for the store: its clock decides about deletion.
func (a *appliance) trusting() Options {
	o := a.opts
	o.Now = a.clock.Now
	return o
}

// confirmClock moves trusted time on where it is behind the machine's clock and authenticated sources agree. Where they do
// not, nothing is lost: savesets live longer by as much. That is said once for each start and day.
func (a *appliance) confirmClock(ctx context.Context) {
	behind := a.clock.Behind()
	if behind < clockBehind {
		return
	}
	err := a.clock.Confirm(ctx)
	if err == nil {
		a.log.Info("trusted time moved on to the machine's clock, by authenticated sources", "by", behind.Round(time.Second))
		return
	}
	if now := a.opts.Now(); now.Sub(a.clockTold) >= 24*time.Hour {
		a.clockTold = now
		a.log.Warn("trusted time is behind the machine's clock: savesets are kept longer by as much; authenticated time sources "+
			"(chrony with NTS or keys) would move it on", "behind", behind.Round(time.Second), "error", err)
	}
}
