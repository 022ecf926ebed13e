package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"coffer/api"
)

// Times of event streams.
const (
	silence     = 50 * time.Second // three of the server's heartbeats, and a bit: then the stream is dead
	firstPause  = 500 * time.Millisecond
	longestWait = 10 * time.Second
	giveUp      = 5 * time.Minute // without a live stream: longer than an appliance takes to restart
	maxEvent    = 4 << 20         // bytes of one line
)

// WatchRun calls f for every event of a run, from its present state on, until it has ended, and returns the run as it
// ended. Notices with a number up to after are left out. Lost connections are opened anew, with no notice lost and none
// told twice; the error is f's, or says why it could not go on.
func (c *Client) WatchRun(ctx context.Context, id string, after int64, f func(api.Event) error) (api.Run, error) {
	var last api.Run
	err := c.follow(ctx, func() (string, url.Values) {
		return "/runs" + seg(id) + "/events", values("after", strconv.FormatInt(after, 10))
	}, func(e api.Event) (done bool, err error) {
		if e.Notice != nil {
			after = max(after, e.Notice.Seq)
		}
		if e.Run != nil {
			last = *e.Run
		}
		return last.State.Final(), f(e)
	})
	return last, err
}

// Watch calls f for every change of runs and clients until ctx ends or f returns an error. Changes while a connection is
// lost are not told.
func (c *Client) Watch(ctx context.Context, f func(api.Event) error) error {
	return c.follow(ctx, func() (string, url.Values) { return "/events", nil },
		func(e api.Event) (bool, error) { return false, f(e) })
}

// callerError is an error of the function that takes the events: it ends the watch.
type callerError struct{ error }

// Unwrap returns the error.
func (e callerError) Unwrap() error { return e.error }

// errDone ends a watch that has seen all.
var errDone = errors.New("done")

// follow reads streams, one after the other, until take says done.
func (c *Client) follow(ctx context.Context, where func() (string, url.Values), take func(api.Event) (bool, error)) error {
	pause, alive, told := firstPause, time.Now(), false
	for {
		path, query := where()
		err := c.stream(ctx, path, query, func() { pause, alive, told = firstPause, time.Now(), false }, take)
		switch ce, ok := errors.AsType[callerError](err); {
		case errors.Is(err, errDone):
			return nil
		case ok:
			return ce.error
		case ctx.Err() != nil:
			return ctx.Err()
		case permanent(err), time.Since(alive) > c.patience:
			return err
		}
		if c.lost != nil && !told {
			c.lost(alive.Add(c.patience), err)
			told = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, longestWait)
	}
}

// permanent reports whether another try would meet the same error.
func permanent(err error) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code != api.CodeUnreachable && e.Status < 500 || ok && e.Code == api.CodeUntrusted
}

// stream reads one stream of server-sent events until it ends. It calls beat for all that comes, heartbeats too.
func (c *Client) stream(ctx context.Context, path string, query url.Values, beat func(), take func(api.Event) (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := c.open(ctx, request{method: get, path: path, query: query, accept: "text/event-stream"})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	err = readEvents(res.Body, func() { watchdog.Reset(silence); beat() }, func(e api.Event) error {
		done, err := take(e)
		if err != nil {
			return callerError{err}
		}
		if done {
			return errDone
		}
		return nil
	})
	if err == nil {
		err = api.Errorf(api.CodeUnreachable, "the appliance at %s ended the event stream", c.base.Host)
	}
	return err
}

// readEvents reads server-sent events (WHATWG HTML, section 9.2.6) until the stream ends or take fails. Fields other
// than data are not needed: an event's type stands in its data, too.
func readEvents(r io.Reader, alive func(), take func(api.Event) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxEvent)
	var data strings.Builder
	for in.Scan() {
		alive()
		line := strings.TrimSuffix(in.Text(), "\r")
		if line != "" {
			if value, ok := strings.CutPrefix(line, "data:"); ok && data.Len()+len(value) <= maxEvent {
				data.WriteString(strings.TrimPrefix(value, " "))
				data.WriteByte('\n')
			}
			continue
		}
		if data.Len() == 0 {
			continue
		}
		var e api.Event
		if err := json.Unmarshal([]byte(data.String()), &e); err != nil {
			return fmt.Errorf("decode event: %w", err)
		}
		data.Reset()
		if err := take(e); err != nil {
			return err
		}
	}
	return in.Err()
}
