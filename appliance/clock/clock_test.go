package clock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// machine is one whose clock and life a test moves.
type machine struct {
	wall  time.Time
	boot  string
	since time.Duration
}

func (m *machine) pass(d time.Duration) { m.wall, m.since = m.wall.Add(d), m.since+d }

// reboot ends this life; off is how long the machine stands still, up how long it has been up when somebody looks.
func (m *machine) reboot(off, up time.Duration) {
	m.wall, m.boot, m.since = m.wall.Add(off+up), m.boot+"'", up
}

func (m *machine) open(t *testing.T, path string, sources Sources) *Clock {
	t.Helper()
	c, err := Open(Options{Path: path, Wall: func() time.Time { return m.wall },
		Boot: func() (string, time.Duration, error) { return m.boot, m.since, nil }, Sources: sources})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var birth = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func newMachine() *machine { return &machine{wall: birth, boot: "first", since: time.Hour} }

func TestTrustedTime(t *testing.T) {
	day := 24 * time.Hour
	for _, tc := range []struct {
		name string
		live func(m *machine)
		want time.Duration // after birth
	}{
		{"time passes", func(m *machine) { m.pass(day) }, day},
		{"the clock is set forward", func(m *machine) { m.pass(time.Hour); m.wall = m.wall.Add(3650 * day) }, time.Hour},
		{"the clock is set back", func(m *machine) { m.pass(time.Hour); m.wall = m.wall.Add(-3650 * day) }, time.Hour},
		{"off for a week", func(m *machine) { m.reboot(7*day, 10*time.Minute) }, 10 * time.Minute},
		{"two boots", func(m *machine) { m.reboot(day, time.Minute); m.reboot(day, 2*time.Minute) }, 2 * time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, path := newMachine(), filepath.Join(t.TempDir(), "clock")
			running := m.open(t, path, nil)
			tc.live(m)
			if got := m.open(t, path, nil).Now().Sub(birth); got != tc.want {
				t.Errorf("a program started then: %v after birth, want %v", got, tc.want)
			}
			if m.boot != "first" {
				return
			}
			if got := running.Now().Sub(birth); got != tc.want {
				t.Errorf("a program that ran on: %v after birth, want %v", got, tc.want)
			}
		})
	}
}

func TestConfirm(t *testing.T) {
	ctx := t.Context()
	m, path := newMachine(), filepath.Join(t.TempDir(), "clock")
	m.open(t, path, nil)
	m.reboot(48*time.Hour, time.Minute)

	if err := m.open(t, path, nil).Confirm(ctx); err == nil {
		t.Error("confirmed without a source")
	}
	refuse := errors.New("no")
	c := m.open(t, path, func(context.Context) error { return refuse })
	if err := c.Confirm(ctx); !errors.Is(err, refuse) || c.Behind() != 48*time.Hour {
		t.Errorf("sources disagree: %v, behind by %v", err, c.Behind())
	}
	c = m.open(t, path, func(context.Context) error { return nil })
	if err := c.Confirm(ctx); err != nil || c.Behind() != 0 {
		t.Errorf("sources agree: %v, behind by %v", err, c.Behind())
	}
	if got := m.open(t, path, nil).Behind(); got != 0 {
		t.Errorf("after a restart: behind by %v", got)
	}
	m.wall = birth
	c = m.open(t, path, func(context.Context) error { return nil })
	before := c.Now()
	if err := c.Confirm(ctx); err != nil || c.Now().Before(before) {
		t.Errorf("a clock that was set back took trusted time along: %v", err)
	}
}

func TestRaise(t *testing.T) {
	m := newMachine()
	c := m.open(t, filepath.Join(t.TempDir(), "clock"), nil)
	c.Raise(birth.Add(-time.Hour))
	if !c.Now().Equal(birth) {
		t.Error("it went back")
	}
	c.Raise(birth.Add(time.Hour))
	m.pass(time.Minute)
	if want := birth.Add(time.Hour + time.Minute); !c.Now().Equal(want) {
		t.Errorf("%v, want %v", c.Now(), want)
	}
}

func TestDamagedFile(t *testing.T) {
	m, path := newMachine(), filepath.Join(t.TempDir(), "clock")
	m.open(t, path, nil)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(raw []byte) error {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Options{Path: path})
		return err
	}
	for i := range whole {
		bad := append([]byte(nil), whole...)
		bad[i] ^= 1
		if try(bad) == nil {
			t.Errorf("a flipped bit in byte %d is not seen", i)
		}
	}
	newer := strings.Replace(string(whole), "version 1", "version 2", 1)
	if err := try([]byte(newer)); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a newer file: %v", err)
	}
}

func TestMachineBoot(t *testing.T) {
	id, since, err := machineBoot()
	if err != nil || len(id) != 36 || since <= 0 {
		t.Fatalf("%q, %v, %v", id, since, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(reading{birth, "boot", time.Hour}.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parse(raw)
		if err != nil {
			return
		}
		again, err := parse(r.encode())
		if err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

// What chronyc 4.3 prints.
const (
	nts = "192.0.2.1,NTS,1,15,256,33h,0,0,8,100\n192.0.2.2,NTS,1,15,256,33h,0,0,8,100\n192.0.2.3,-,0,0,0,-,0,0,0,0\n"
	all = "^,*,192.0.2.1,2,10,377,1041,0.000088,0.000088,0.013\n^,+,192.0.2.2,2,10,377,1041,-0.0011,-0.0011,0.02\n^,+,192.0.2.3,2,10,377,1,0.1,0.1,0.02\n"
	ok  = "C0000201,192.0.2.1,3,1763805300.1,0.000012,0.00002,0.0001,-11.3,-0.001,0.05,0.02,0.001,1036.0,Normal\n"
)

func TestChrony(t *testing.T) {
	for _, tc := range []struct {
		name, auth, sources, tracking string
		agrees                        bool
	}{
		{"two agree", nts, all, ok, true},
		{"none authenticates", strings.ReplaceAll(nts, "NTS", "-"), all, ok, false},
		{"one is a falseticker", nts, strings.Replace(all, "^,+,192.0.2.2", "^,x,192.0.2.2", 1), ok, false},
		{"not synchronised", nts, all, strings.Replace(ok, "Normal", "Not synchronised", 1), false},
		{"far off", nts, all, strings.Replace(ok, "0.000012", "86400.5", 1), false},
		{"nothing", "", "", "", false},
		{"short lines", "a,b\n", all, ok, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reports := map[string]string{"authdata": tc.auth, "sources": tc.sources, "tracking": tc.tracking}
			err := chrony(t.Context(), func(_ context.Context, report string) ([]byte, error) { return []byte(reports[report]), nil })
			if (err == nil) != tc.agrees {
				t.Errorf("%v", err)
			}
		})
	}
	err := chrony(t.Context(), func(context.Context, string) ([]byte, error) { return nil, errNoSources })
	if !errors.Is(err, errNoSources) {
		t.Errorf("no chronyd: %v", err)
	}
}
