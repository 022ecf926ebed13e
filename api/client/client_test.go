package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/api"
	"coffer/api/client"
	"coffer/api/server/servertest"
)

func login(t *testing.T, r *servertest.Running, user string) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{Server: r.URL, Fingerprint: r.Fingerprint})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	s, err := c.Login(t.Context(), api.LoginRequest{User: user, Password: servertest.Password})
	if err != nil {
		t.Fatal(err)
	}
	return c.WithToken(s.Token)
}

func TestPin(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	id, err := client.Inspect(t.Context(), r.URL)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := client.ParseFingerprint(r.Fingerprint); id.Pin != want || !id.CA {
		t.Errorf("Inspect shows %s (CA %v), want the CA's %s", id.Pin, id.CA, want)
	}
	for _, test := range []struct {
		name, pin string
		code      api.Code // of the error; the call itself has no token
	}{
		{"the CA's", r.Fingerprint, api.CodeUnauthenticated},
		{"the CA's with colons", id.Pin.String(), api.CodeUnauthenticated},
		{"the server's own", r.Leaf, api.CodeUnauthenticated},
		{"another", strings.Repeat("0", 64), api.CodeUntrusted},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := client.New(client.Options{Server: r.URL, Fingerprint: test.pin})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.System(t.Context()); api.CodeOf(err) != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
		})
	}
}

func TestParseServer(t *testing.T) {
	for in, want := range map[string]string{
		"https://backup1:11401":  "https://backup1:11401",
		"https://backup1/":       "https://backup1:11401",
		"backup1":                "https://backup1:11401",
		"192.0.2.1:443":          "https://192.0.2.1:443",
		"https://[2001:db8::1]":  "https://[2001:db8::1]:11401",
		"http://backup1":         "",
		"https://":               "",
		"":                       "",
		"https://u:p@backup1":    "",
		"https://backup1/api/v1": "",
		"https://backup1:x":      "",
	} {
		u, err := client.ParseServer(in)
		if got := ""; err == nil {
			if got = u.String(); got != want {
				t.Errorf("%q: %s, want %q", in, got, want)
			}
		} else if want != "" {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestErrors(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	c := login(t, r, "root")
	_, err := c.Task(t.Context(), "none")
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeNotFound || e.Status != 404 || e.Hint == "" {
		t.Errorf("got %#v", err)
	}
	_, err = c.AddTask(t.Context(), api.TaskSpec{Name: "x/y", Client: "web1", Type: api.TaskPath})
	if !errors.As(err, &e) || len(e.Fields) == 0 {
		t.Errorf("field errors are lost: %v", err)
	}
	r.Stop()
	if _, err := c.System(t.Context()); api.CodeOf(err) != api.CodeUnreachable {
		t.Errorf("a stopped server: %v", err)
	}
}

// TestForeignAnswers meets servers that are no appliance.
func TestForeignAnswers(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"an HTML page": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"an HTML error": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<html>", http.StatusBadGateway)
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://example.org/", http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewTLSServer(h)
			defer s.Close()
			f := client.FingerprintOf(s.Certificate())
			c, err := client.New(client.Options{Server: s.URL, Fingerprint: f.String(), Token: "secret"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.System(t.Context()); api.CodeOf(err) != api.CodeUnexpectedResponse {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestGet(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	r.Backend.AddBroken()
	c := login(t, r, "rita")
	got, err := c.Get(t.Context(), "a1b2c3d4", "/etc/caf\xe9", "")
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	data, err := io.ReadAll(got)
	if err != nil || string(data) != "latin 1\n" || got.Tar || got.Size != 8 {
		t.Errorf("got %q, %v, %+v", data, err, got)
	}
	for _, path := range []string{servertest.Broken, "/etc"} {
		torn, err := c.Get(t.Context(), "a1b2c3d4", path, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, torn); err == nil {
			t.Errorf("a torn download of %s looks whole", path)
		}
		_ = torn.Close()
	}
}

func TestListPages(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	c := login(t, r, "rita")
	var names []string
	for after := ""; ; {
		l, err := c.List(t.Context(), "a1b2c3d4", "/etc", after, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range l.Items {
			names = append(names, e.RawName())
		}
		if after = l.Cursor(); after == "" {
			break
		}
	}
	if len(names) != 11 || names[0] != "caf\xe9" {
		t.Errorf("got %q", names)
	}
}

// TestLost: who watches is told once that the stream broke off, and again only when it was there meanwhile.
func TestLost(t *testing.T) {
	var mu sync.Mutex
	fail, streams, told := false, 0, 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if fail = !fail; fail {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		streams++
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "event: run\ndata: {}\n\n")
	}))
	srv.StartTLS()
	defer srv.Close()
	sum := sha256.Sum256(srv.Certificate().Raw)
	c, err := client.New(client.Options{Server: srv.URL, Fingerprint: hex.EncodeToString(sum[:]), Lost: func(until time.Time, err error) {
		if told++; err == nil || time.Until(until) < time.Minute || time.Until(until) > time.Hour {
			t.Errorf("%v, until %v", err, until)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	events, enough := 0, errors.New("enough")
	err = c.Watch(t.Context(), func(api.Event) error {
		if events++; events == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || told != 2 || streams != 2 {
		t.Errorf("%v after %d streams, told %d times", err, streams, told)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	c := login(t, r, "root")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Watch(ctx, func(api.Event) error { return nil }) }()
	for r.Backend.Watchers() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for r.Backend.Watchers() != 0 { // the server has yet to see that the first one is gone
		time.Sleep(time.Millisecond)
	}
	stop := errors.New("enough")
	go func() {
		for r.Backend.Watchers() == 0 {
			time.Sleep(time.Millisecond)
		}
		r.Backend.Update("run-0001", func(*api.Run) {})
	}()
	if err := c.Watch(t.Context(), func(api.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}
