package cli

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"

	"coffer/api"
)

// guestProgress shows a guest while it is booted, moved or restored: a bar on terminals, lines otherwise.
type guestProgress struct {
	a     *app
	now   atomic.Pointer[api.Guest]
	begun time.Time
	last  time.Time // of the last line
	box   *mpb.Progress
	line  *mpb.Bar // nil: no bar
}

func (a *app) guestProgress(g api.Guest) *guestProgress {
	p := &guestProgress{a: a, begun: time.Now(), last: time.Now()}
	p.now.Store(&g)
	if a.Terminal && a.width() > 0 {
		p.box, p.line = a.draw(func() string { return p.now.Load().Name }, p.text)
	} else if !a.json {
		a.note("machine %s: %s, id %s", safe(g.Name), g.State, g.ID)
	}
	return p
}

// text says how far it is.
func (p *guestProgress) text() string {
	g := p.now.Load()
	s := " " + stateText(*g)
	if j := g.Progress; j != nil && j.BytesTotal > 0 {
		s += fmt.Sprintf("  %s of %s", size(j.Bytes), size(j.BytesTotal))
	}
	if g.Problem != "" {
		s += "  " + safe(g.Problem)
	}
	return s + "  " + span(time.Since(p.begun))
}

func (p *guestProgress) guest(g api.Guest) {
	p.now.Store(&g)
	if p.line != nil {
		if j := g.Progress; j != nil && j.BytesTotal > 0 {
			p.line.SetTotal(max(j.BytesTotal, j.Bytes+1), false)
			p.line.SetCurrent(j.Bytes)
		}
		return
	}
	if !p.a.json && time.Since(p.last) >= plainEvery {
		p.last = time.Now()
		p.a.note("machine %s:%s", safe(g.Name), p.text())
	}
}

func (p *guestProgress) done() {
	if p.line != nil {
		p.line.Abort(true)
		p.box.Wait()
	}
}
