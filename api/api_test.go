package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"testing"
)

func TestText(t *testing.T) {
	for _, test := range []struct {
		in, text string
		raw      bool
	}{{"plain", "plain", false}, {"", "", false}, {"é中", "é中", false}, {"caf\xe9", "caf\uFFFD", true}, {"\xff\xfe", "\uFFFD\uFFFD", true}} {
		var e Entry
		e.SetName(test.in)
		if e.Name != test.text || (e.NameRaw != nil) != test.raw || e.RawName() != test.in {
			t.Errorf("%q: %q, %q", test.in, e.Name, e.NameRaw)
		}
	}
}

// TestTimesOfAnyAge checks that every time a file can have survives JSON.
func TestTimesOfAnyAge(t *testing.T) {
	for _, sec := range []int64{0, -1, 1 << 33, -62135596800, -62135596801, 253402300799, 253402300800, math.MaxInt64, math.MinInt64} {
		var e, back Entry
		e.SetMTime(sec, 999_999_999)
		data, err := json.Marshal(e)
		if err != nil {
			t.Errorf("%d: %v", sec, err)
			continue
		}
		if err := json.Unmarshal(data, &back); err != nil || back.MTimeSec != sec || back.MTimeNsec != 999_999_999 {
			t.Errorf("%d came back as %d (%v)", sec, back.MTimeSec, err)
		}
	}
}

func TestErrorCodes(t *testing.T) {
	err := fmt.Errorf("add task: %w", Errorf(CodeNotFound, "there is no client %s", "web1").WithHint("add it"))
	if CodeOf(err) != CodeNotFound || !errors.Is(err, &Error{Code: CodeNotFound}) || errors.Is(err, &Error{Code: CodeExists}) {
		t.Errorf("the code of %v is lost", err)
	}
	if got, want := err.Error(), "add task: there is no client web1 (add it)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if CodeOf(nil) != "" || CodeOf(errors.New("x")) != CodeInternal {
		t.Error("codes of other errors")
	}
	if StatusOf("never heard of") != http.StatusInternalServerError || StatusOf(CodeNotFound) != http.StatusNotFound {
		t.Error("statuses")
	}
}

func TestReaches(t *testing.T) {
	for _, test := range []struct {
		role    Role
		clients []string
		want    bool
	}{{RoleSuperuser, nil, true}, {RoleOperator, nil, true}, {RoleRestore, nil, false}, {RoleRestore, []string{"web2"}, false},
		{RoleRestore, []string{"web2", "web1"}, true}, {RoleBackup, []string{AllClients}, true}} {
		id := Identity{User: User{Role: test.role, Clients: test.clients}}
		if got := id.Reaches("web1"); got != test.want {
			t.Errorf("%s with %v: %v", test.role, test.clients, got)
		}
	}
}

func TestFinal(t *testing.T) {
	for s, want := range map[RunState]bool{RunQueued: false, RunActive: false, "": false, RunSuccess: true, RunWarning: true, RunError: true, RunCancelled: true, RunMissed: true, RunSuppressed: true} {
		if s.Final() != want {
			t.Errorf("%q: final is %v", s, !want)
		}
	}
}

func TestCallerTravelsInContext(t *testing.T) {
	if _, ok := CallerFrom(t.Context()); ok {
		t.Error("a caller out of nowhere")
	}
	ctx := WithCaller(t.Context(), Caller{Remote: "192.0.2.1"})
	if c, ok := CallerFrom(ctx); !ok || c.Remote != "192.0.2.1" {
		t.Errorf("got %+v, %v", c, ok)
	}
}

func TestCursor(t *testing.T) {
	l := Listing{}
	if l.Cursor() != "" {
		t.Error("a last page has a cursor")
	}
	l.Next, l.NextRaw = Text("caf\xe9")
	if l.Cursor() != "caf\xe9" {
		t.Errorf("got %q", l.Cursor())
	}
}
