package maintenance

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // a bare machine has no zones

	"coffer/appliance/catalog"
	"coffer/dedup"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// TestOneOnEachDate walks through a year with clock changes: no date is left out, none comes twice.
func TestOneOnEachDate(t *testing.T) {
	for _, name := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago"} {
		loc := zone(t, name)
		for _, d := range []time.Duration{0, 90 * time.Minute, 150 * time.Minute, 8 * time.Hour, 24*time.Hour - time.Second} {
			of := TimeOfDay(d)
			at := of.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, loc).Add(-time.Second))
			for date := time.Date(2026, 1, 1, 12, 0, 0, 0, loc); date.Year() == 2026; date = date.AddDate(0, 0, 1) {
				if at.Format(time.DateOnly) != date.Format(time.DateOnly) {
					t.Fatalf("%s %v: on %s came %s", name, d, date.Format(time.DateOnly), at)
				}
				if last := of.Last(at); !last.Equal(at) {
					t.Fatalf("%s %v: the last until %s is %s", name, d, at, last)
				}
				next := of.Next(at)
				if last := of.Last(next.Add(-time.Second)); !last.Equal(at) {
					t.Fatalf("%s %v: the last before %s is %s, not %s", name, d, next, last, at)
				}
				at = next
			}
		}
	}
}

func atEight(o *Options) {
	o.Config = Config{Start: TimeOfDay(8 * time.Hour), Share: 0.25}
	o.Purge = func(context.Context, func(dedup.Progress)) (PurgeReport, error) { return PurgeReport{Deleted: 1}, nil }
}

// kinds lists the daily jobs that ended, oldest first.
func (g *rig) kinds() (out string) {
	g.Helper()
	list, err := g.Jobs(g.Context(), catalog.MaintenanceFilter{})
	if err != nil {
		g.Fatal(err)
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].Trigger != catalog.TriggerDaily {
			g.Errorf("a job of trigger %s", list[i].Trigger)
		}
		out += string(list[i].Kind) + ":" + string(list[i].State) + " "
	}
	return out
}

// The clock of a bubble starts at midnight UTC.
func TestDailyMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, atEight)
		g.store.fail = &dedup.Error{Kind: dedup.Damaged, Op: "collect"}
		g.start()
		time.Sleep(7 * time.Hour)
		synctest.Wait()
		if got := g.kinds(); got != "" {
			t.Errorf("a new appliance did %s", got)
		}
		if next := g.Next(); next.Hour() != 8 || time.Until(next) != time.Hour {
			t.Errorf("the next one is at %v", next)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := g.kinds(); got != "purge:success gc:error check:error usage:error " {
			t.Errorf("on the first day: %s", got)
		}
		if g.store.checked.Share != 0.25 {
			t.Errorf("checked with %+v", g.store.checked)
		}
		g.store.set(func() { g.store.fail = nil })
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := g.kinds(); got != "purge:success gc:error check:error usage:error purge:success gc:success check:success usage:success " {
			t.Errorf("on the second day: %s", got)
		}
	})
}

// TestDayGoesOn stops an appliance in the middle of its day's collection, again and again.
func TestDayGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newRig(t, atEight)
		first.store.wait = make(chan struct{})
		first.Start()
		time.Sleep(9 * time.Hour)
		first.halt()
		for range maxTries - 1 {
			again := New(first.opts)
			again.Start()
			time.Sleep(afterStart / 2)
			if _, busy := again.Active(); busy {
				t.Error("the maintenance goes on at once")
			}
			time.Sleep(afterStart)
			if i, busy := again.Active(); !busy || i.Kind != GC {
				t.Errorf("after the start: %+v", i)
			}
			if err := again.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if got := first.kinds(); got != "purge:success gc:cancelled gc:cancelled gc:cancelled " {
			t.Errorf("so far: %s", got)
		}
		last := New(first.opts)
		last.Start()
		time.Sleep(time.Hour)
		if i, busy := last.Active(); busy {
			t.Errorf("a fourth try: %+v", i)
		}
		close(first.store.wait)
		time.Sleep(24 * time.Hour)
		if err := last.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if got := first.kinds(); got != "purge:success gc:cancelled gc:cancelled gc:cancelled purge:success gc:success check:success usage:success " {
			t.Errorf("on the next day: %s", got)
		}
	})
}

func TestDayWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open bool
		g := newRig(t, atEight)
		g.opts.Store = func() (Store, error) {
			g.store.mu.Lock()
			defer g.store.mu.Unlock()
			if !open {
				return nil, &dedup.Error{Kind: dedup.WrongKey}
			}
			return g.store, nil
		}
		g.start()
		time.Sleep(12 * time.Hour)
		if got := g.kinds(); got != "" {
			t.Errorf("without a store: %s", got)
		}
		g.store.set(func() { open = true })
		time.Sleep(2 * clockEvery)
		synctest.Wait()
		if got := g.kinds(); got != "purge:success gc:success check:success usage:success " {
			t.Errorf("once it is open: %s", got)
		}
	})
}

// TestSearchIsHeldBack counts how often harmed savesets are searched while things go on.
func TestSearchIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		g.opts.Now = time.Now
		slow := &slowStore{fakeStore: g.store}
		g.opts.Store = func() (Store, error) { return slow, nil }
		g.store.damage = []dedup.Damage{{Container: 7, Kind: 1}}
		g.start()
		for range 60 {
			g.DamageMayHaveChanged()
			time.Sleep(time.Minute)
		}
		g.store.mu.Lock()
		defer g.store.mu.Unlock()
		if g.store.searches < 3 || g.store.searches > 7 {
			t.Errorf("%d searches of a minute each in an hour", g.store.searches)
		}
	})
}

type slowStore struct{ *fakeStore }

func (s *slowStore) Affected(ctx context.Context, limit int) ([]dedup.Affected, error) {
	select {
	case <-time.After(time.Minute):
		return s.fakeStore.Affected(ctx, limit)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestProgressHasSpeedAndTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		j := g.newJob(Info{ID: "m1", Kind: Check})
		tell := g.progressOf(j)
		tell(dedup.Progress{Phase: "pages", Done: 100, Total: 400, Unit: "containers"})
		time.Sleep(10 * time.Second)
		tell(dedup.Progress{Phase: "pages", Done: 200, Total: 400, Unit: "containers"})
		if p := j.snapshot().Progress; p.Rate != 10 || p.Left != 20 {
			t.Errorf("progress %+v", p)
		}
		tell(dedup.Progress{Phase: "objects", Total: 4, Unit: "savesets"})
		if p := j.snapshot().Progress; p.Rate != 0 || p.Left != 0 || p.Phase != "objects" {
			t.Errorf("progress %+v", p)
		}
	})
}
