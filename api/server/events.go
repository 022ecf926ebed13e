package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"coffer/api"
)

// heartbeat is how often an event stream shows that it lives, checks that its caller's token still counts, and sends
// the state anew, so that a lost event hurts nobody for longer. Clients take a stream for dead after three of them.
const heartbeat = 15 * time.Second

// errEnded ends an event stream without a fault.
var errEnded = errors.New("event stream ended")

type watchInput struct {
	ID            string `path:"id" maxLength:"64"`
	After         int64  `query:"after" minimum:"0" default:"0" doc:"only notices with a greater number: those before are known"`
	Authorization string `header:"Authorization" hidden:"true"`
}

// watchRun streams a run: its present state, the notices after in.After, then every change until it has ended. The last
// event is the run in its final state; a stream that ends without it was cut off, and may be opened anew.
func (s *Server) watchRun(ctx context.Context, in *watchInput) (*raw, error) {
	run, err := s.run(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &raw{func(c huma.Context) {
		w := &runWatch{server: s, id: run.ID, after: in.After, out: newEventWriter(c)}
		s.stream(c.Context(), in.Authorization, "run "+run.ID, api.EventFilter{Run: run.ID}, w)
	}}, nil
}

type eventsInput struct {
	Authorization string `header:"Authorization" hidden:"true"`
}

// watchAll streams changes of all runs and clients that the caller reaches, without the runs' notices, and of maintenance
// for those who may see it.
func (s *Server) watchAll(ctx context.Context, in *eventsInput) (*raw, error) {
	caller := callerOf(ctx)
	return &raw{func(c huma.Context) {
		s.stream(c.Context(), in.Authorization, "all", api.EventFilter{}, &allWatch{caller: caller, out: newEventWriter(c)})
	}}, nil
}

// watch is what a stream does with the backend's events.
type watch interface {
	// start is called when the subscription stands, and again whenever events may have been lost.
	start(ctx context.Context) error
	// event is called for each event.
	event(ctx context.Context, e api.Event) error
	// alive shows the caller that the stream lives.
	alive() error
}

// stream runs a watch until it ends, the caller goes or the server stops.
func (s *Server) stream(ctx context.Context, authorization, what string, f api.EventFilter, w watch) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := s.pump(ctx, authorization, f, w)
	if err != nil && !errors.Is(err, errEnded) && ctx.Err() == nil {
		s.log.Debug("event stream ended", "watching", what, "error", err)
	}
}

func (s *Server) pump(ctx context.Context, authorization string, f api.EventFilter, w watch) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		events, err := s.backend.Subscribe(ctx, f)
		if err != nil {
			return fmt.Errorf("subscribe: %w", err)
		}
		for live := true; live; {
			if err := w.start(ctx); err != nil {
				return err
			}
			if live, err = s.relay(ctx, events, beat.C, w); err != nil {
				return err
			}
			if _, err := s.authenticate(ctx, authorization); err != nil {
				return err
			}
		}
	}
}

// relay passes events on until a heartbeat is due (live) or the subscription ended (not live).
func (s *Server) relay(ctx context.Context, events <-chan api.Event, beat <-chan time.Time, w watch) (live bool, err error) {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return false, nil
			}
			if err := w.event(ctx, e); err != nil {
				return false, err
			}
		case <-beat:
			return true, w.alive()
		case <-s.stopping:
			return false, errEnded
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// runWatch is the watch of one run.
type runWatch struct {
	server *Server
	id     string
	after  int64 // number of the last notice sent
	out    *eventWriter
}

func (w *runWatch) alive() error { return w.out.comment("alive") }

// start sends the run as it is, with the notices so far; a run that has ended ends the stream.
func (w *runWatch) start(ctx context.Context) error {
	run, err := w.server.backend.Run(ctx, w.id)
	if err != nil {
		return err
	}
	if !run.State.Final() {
		if err := w.out.run(run); err != nil {
			return err
		}
	}
	if err := w.notices(ctx); err != nil {
		return err
	}
	if !run.State.Final() {
		return nil
	}
	if err := w.out.run(run); err != nil {
		return err
	}
	return errEnded
}

func (w *runWatch) event(ctx context.Context, e api.Event) error {
	switch {
	case e.Type == api.EventRun && e.Run != nil && e.Run.State.Final():
		return w.start(ctx)
	case e.Type == api.EventRun && e.Run != nil:
		return w.out.send(e)
	case e.Type == api.EventNotice && e.Notice != nil && e.Notice.Seq == w.after+1:
		w.after++
		e.RunID = w.id
		return w.out.send(e)
	case e.Type == api.EventNotice && e.Notice != nil && e.Notice.Seq > w.after:
		return w.notices(ctx)
	}
	return nil
}

// notices sends what the run's log has after the last notice sent.
func (w *runWatch) notices(ctx context.Context) error {
	for {
		page, err := w.server.backend.Notices(ctx, w.id, w.after, api.DefaultPage)
		if err != nil {
			return err
		}
		for i := range page {
			w.after = page[i].Seq
			if err := w.out.send(api.Event{Type: api.EventNotice, Time: page[i].Time, RunID: w.id, Notice: &page[i]}); err != nil {
				return err
			}
		}
		if len(page) < api.DefaultPage {
			return nil
		}
	}
}

// allWatch is the watch of everything.
type allWatch struct {
	caller api.Caller
	out    *eventWriter
}

func (w *allWatch) start(context.Context) error { return w.alive() }

func (w *allWatch) alive() error { return w.out.comment("alive") }

func (w *allWatch) event(_ context.Context, e api.Event) error {
	switch {
	case e.Type == api.EventRun && e.Run != nil && w.caller.Reaches(e.Run.Client),
		e.Type == api.EventClient && e.Client != nil && w.caller.Reaches(e.Client.Name),
		e.Type == api.EventMaintenance && e.Maintenance != nil && !w.caller.User.Role.Limited():
		return w.out.send(e)
	}
	return nil
}

// eventWriter writes server-sent events (WHATWG HTML, section 9.2).
type eventWriter struct {
	w   http.ResponseWriter
	ctl *http.ResponseController
}

func newEventWriter(c huma.Context) *eventWriter {
	w := humagin.Unwrap(c).Writer
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // for proxies that would hold events back
	w.WriteHeader(http.StatusOK)
	return &eventWriter{w: w, ctl: http.NewResponseController(w)}
}

func (e *eventWriter) run(r api.Run) error {
	return e.send(api.Event{Type: api.EventRun, Time: time.Now().UTC(), Run: &r})
}

func (e *eventWriter) send(ev api.Event) error {
	data, err := json.Marshal(ev)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", ev.Type, data)
	return e.write(b.Bytes())
}

// comment sends a line that readers pass over.
func (e *eventWriter) comment(text string) error { return e.write([]byte(": " + text + "\n\n")) }

func (e *eventWriter) write(p []byte) error {
	if err := e.ctl.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	if _, err := e.w.Write(p); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	if err := e.ctl.Flush(); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

// streamResponse documents the answers that are no JSON documents.
func streamResponse(a huma.API, id string) *huma.Response {
	binary := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
	switch id {
	case "openapi":
		return &huma.Response{Description: "OpenAPI 3.1 document", Content: map[string]*huma.MediaType{
			"application/openapi+json": {Schema: &huma.Schema{Type: huma.TypeObject}}}}
	case "metrics":
		return &huma.Response{Description: "Metrics in the text format of Prometheus", Content: map[string]*huma.MediaType{
			"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}}
	case "saveset-get":
		return &huma.Response{Description: "The file, or the tree as tar (POSIX, with extended attributes)",
			Content: map[string]*huma.MediaType{"application/octet-stream": binary, "application/x-tar": binary}}
	}
	event := a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Event](), true, "Event")
	return &huma.Response{Description: "Server-sent events; the data of each is one Event", Content: map[string]*huma.MediaType{
		"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeArray, Items: event}}}}
}
