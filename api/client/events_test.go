package client

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"coffer/api"
)

func TestReadEvents(t *testing.T) {
	const stream = ": alive\n\n" +
		"event: run\ndata: {\"type\":\"run\",\ndata: \"run\":{\"id\":\"r1\"}}\n\n" +
		"id: 7\r\ndata:{\"type\":\"notice\"}\r\n\r\n" +
		"data: {\"type\":\"run\"}" // not ended by an empty line: not an event
	var types []api.EventType
	beats := 0
	err := readEvents(strings.NewReader(stream), func() { beats++ }, func(e api.Event) error {
		types = append(types, e.Type)
		return nil
	})
	if err != nil || len(types) != 2 || types[0] != api.EventRun || types[1] != api.EventNotice || beats == 0 {
		t.Errorf("got %v, %v", types, err)
	}
	if err := readEvents(strings.NewReader("data: x\n\n"), func() {}, func(api.Event) error { return nil }); err == nil {
		t.Error("an event that is no JSON is taken")
	}
	long := "data: " + strings.Repeat("x", maxEvent) + "\n\n"
	if err := readEvents(strings.NewReader(long), func() {}, func(api.Event) error { return nil }); err == nil {
		t.Error("an endless line is taken")
	}
}

// TestPatience: a stream that was silent but alive for long is tried again when it breaks off.
func TestPatience(t *testing.T) {
	streams := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		if streams++; streams > 1 {
			fmt.Fprint(w, "data: {}\n\n")
			return
		}
		for range 30 {
			fmt.Fprint(w, ": alive\n\n")
			w.(http.Flusher).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	}))
	defer srv.Close()
	sum := sha256.Sum256(srv.Certificate().Raw)
	c, err := New(Options{Server: srv.URL, Fingerprint: hex.EncodeToString(sum[:])})
	if err != nil {
		t.Fatal(err)
	}
	c.patience = 300 * time.Millisecond
	enough := errors.New("enough")
	if err := c.Watch(t.Context(), func(api.Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("after %d streams: %v", streams, err)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add(": alive\n\ndata: {\"type\":\"run\"}\n\n")
	f.Add("data:\n\ndata\n\r\n\x00")
	f.Fuzz(func(t *testing.T, stream string) {
		n := 0
		_ = readEvents(strings.NewReader(stream), func() {}, func(api.Event) error {
			if n++; n > 10 {
				return errors.New("enough")
			}
			return nil
		})
	})
}

func FuzzParseFingerprint(f *testing.F) {
	f.Add(strings.Repeat("ab", 32))
	f.Add("SHA256:" + strings.Repeat("AB:", 31) + "AB")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseFingerprint(s)
		if err != nil {
			return
		}
		if q, err := ParseFingerprint(p.String()); err != nil || q != p {
			t.Errorf("%q reads as %s, which reads as %s (%v)", s, p, q, err)
		}
	})
}
