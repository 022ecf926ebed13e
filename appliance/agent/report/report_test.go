package report

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"coffer/appliance/sms"
)

type sink struct {
	mu       sync.Mutex
	progress []sms.Progress
	notices  []sms.Notice
}

func (s *sink) Progress(p sms.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress = append(s.progress, p)
}

func (s *sink) Notice(n sms.Notice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notices = append(s.notices, n)
}

func TestProgressComesEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		r := New(s, slog.New(slog.DiscardHandler))
		stop := r.Start(t.Context())
		r.Entries.Add(3)
		r.Current("/etc")
		time.Sleep(2*Interval + Interval/2)
		r.Phase(sms.PhaseFinishing)
		r.Entries.Add(1)
		stop()
		if len(s.progress) != 3 {
			t.Fatalf("%d reports, want 3", len(s.progress))
		}
		if p := s.progress[0]; p.Entries != 3 || p.Current != "/etc" || p.Phase != sms.PhaseWorking {
			t.Errorf("first report: %+v", p)
		}
		if p := s.progress[2]; p.Entries != 4 || p.Phase != sms.PhaseFinishing {
			t.Errorf("last report: %+v", p)
		}
	})
}

func TestNoticesAreBounded(t *testing.T) {
	s := &sink{}
	r := New(s, slog.New(slog.DiscardHandler))
	for range maxNotices + 100 {
		r.Warn("x", "/p", errors.New("y"))
	}
	if len(s.notices) != maxNotices || s.notices[maxNotices-1].Code != "more" || r.Counters().Warnings != maxNotices+100 {
		t.Errorf("%d notices, last %+v, %d warnings", len(s.notices), s.notices[len(s.notices)-1], r.Counters().Warnings)
	}
}

func TestCodeOf(t *testing.T) {
	for want, err := range map[string]error{
		"mine":                  fmt.Errorf("more: %w", Errorf("mine", "x")),
		string(sms.CodeNoSpace): fmt.Errorf("more: %w", sms.Errorf(sms.CodeNoSpace, "full")),
		CodeFailed:              errors.New("x"),
	} {
		if got := CodeOf(err); got != want {
			t.Errorf("code of %v is %q, want %q", err, got, want)
		}
	}
}
