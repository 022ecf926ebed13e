package cli

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"coffer/api"
)

// plainEvery is how often a run shows a line where there is no terminal.
const plainEvery = 10 * time.Second

// progress shows a run while it works: a bar on terminals, lines otherwise, nothing with --json into a pipe.
type progress interface {
	event(api.Event)
	done()
}

func (a *app) progress(r api.Run) progress {
	switch {
	case a.Terminal && a.width() > 0:
		return newBar(a, r)
	case a.json:
		return silent{}
	}
	a.note("%s: run %s", title(r), r.ID)
	return &lines{a: a, last: time.Now()}
}

// width is the terminal's width in columns; 0 when it does not say.
func (a *app) width() int {
	f, ok := a.Err.(*os.File)
	if !ok {
		return 0
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return w
}

type silent struct{}

func (silent) event(api.Event) {}
func (silent) done()           {}

// lines shows warnings as they come, and the counters now and then.
type lines struct {
	a    *app
	last time.Time
}

func (l *lines) event(e api.Event) {
	if e.Notice != nil && e.Notice.Severity != api.SeverityInfo {
		l.a.note("%s", l.a.noticeLine(*e.Notice))
	}
	if e.Run == nil || e.Run.State.Final() {
		return
	}
	if time.Since(l.last) >= plainEvery {
		l.last = time.Now()
		p := e.Run.Progress
		l.a.note("%s: %s, %s%s", title(*e.Run), plural(p.Entries, "entry", "entries"), size(p.Bytes), percent(p))
	}
}

func (l *lines) done() {}

// percent shows how far a run is, where that is known.
func percent(p api.Progress) string {
	if p.BytesTotal <= 0 {
		return ""
	}
	return fmt.Sprintf(" (%d %%)", min(100, 100*p.Bytes/p.BytesTotal))
}

// bar is one line that moves, by mpb.
type bar struct {
	a     *app
	run   atomic.Pointer[api.Run]
	start time.Time
	box   *mpb.Progress
	line  *mpb.Bar
}

func newBar(a *app, r api.Run) *bar {
	b := &bar{a: a, start: time.Now()}
	b.run.Store(&r)
	b.box, b.line = a.draw(func() string { return title(*b.run.Load()) }, b.counters)
	return b
}

// draw shows a line that moves, with texts before and after the bar.
func (a *app) draw(before, after func() string) (*mpb.Progress, *mpb.Bar) {
	box := mpb.New(mpb.WithOutput(a.Err), mpb.WithWidth(72), mpb.WithRefreshRate(150*time.Millisecond), mpb.WithAutoRefresh())
	a.above = box
	return box, box.New(1, mpb.BarStyle().Lbound("").Rbound("").Filler("━").Tip("━").Padding("·"),
		mpb.BarRemoveOnComplete(), mpb.BarWidth(24),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return before() + " " })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return after() })))
}

// lost says that the appliance does not tell any more what it does, and that it is asked again.
func (a *app) lost(until time.Time, err error) {
	line := fmt.Sprintf("The appliance does not answer (%s); trying again until %s. See whether cofferd runs there: what it was told to do goes on while it does, with or without this command.", safe(err.Error()), a.clock(until))
	if a.above != nil {
		if _, err := fmt.Fprintln(a.above, line); err == nil {
			return
		}
	}
	a.note("%s", line)
}

// counters is the text after the bar.
func (b *bar) counters() string {
	r := b.run.Load()
	p := r.Progress
	if r.State == api.RunQueued {
		return " queued"
	}
	elapsed := time.Since(b.start)
	rate := ""
	if elapsed > time.Second {
		rate = fmt.Sprintf("  %s/s", size(int64(float64(p.Bytes)/elapsed.Seconds())))
	}
	return fmt.Sprintf(" %s  %s%s%s  %s", plural(p.Entries, "entry", "entries"), size(p.Bytes), percent(p), rate, span(elapsed))
}

func (b *bar) event(e api.Event) {
	if e.Notice != nil && e.Notice.Severity != api.SeverityInfo {
		_, _ = fmt.Fprintln(b.box, b.a.noticeLine(*e.Notice)) // above the bar; a terminal that is gone needs nothing
	}
	if e.Run == nil {
		return
	}
	b.run.Store(e.Run)
	done, total := e.Run.Progress.Bytes, e.Run.Progress.BytesTotal
	if total <= 0 {
		done, total = e.Run.Progress.Entries, e.Run.Progress.EntriesTotal
	}
	total = max(total, done+1, 1) // the bar is full when the run has ended, not before
	b.line.SetTotal(total, false)
	b.line.SetCurrent(done)
}

func (b *bar) done() {
	b.line.Abort(true)
	b.box.Wait()
}
