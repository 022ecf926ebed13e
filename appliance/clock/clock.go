// Package clock is the appliance's trusted time: what decides that a saveset's end of life, or the end of its immutability,
// has come. Moving the machine's clock does not move it.
//
// Trusted time = the time last seen + the time that the machine has been up since. What passed while the machine was off
// counts only when authenticated time sources agree about it (Sources; chrony is the one that is here). So it may stand
// behind the machine's clock, never ahead of what truly passed: things expire late rather than early. Who is root on the
// machine can write the file below; that is out of scope.
//
// It owns one small file. It does not tell people the time, and nothing is scheduled by it: that is the machine's clock.
//
// The file, part of the format: three lines, "coffer clock, version 1", "<time, RFC 3339 in UTC> <boot id> <nanoseconds
// since that boot>" and the CRC-32C of both in 8 hex digits.
package clock

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"coffer/appliance/internal/durable"
)

// Sources asks authenticated time sources. It returns nil when they are there and agree with the machine's clock.
type Sources func(ctx context.Context) error

// Options of Open. Path is needed.
type Options struct {
	// Path of the file.
	Path string
	// Wall is the machine's clock; nil: time.Now.
	Wall func() time.Time
	// Boot is the machine's boot and the time since then; nil: the machine's own. Two readings of one boot are comparable
	// between processes.
	Boot func() (id string, since time.Duration, err error)
	// Sources is asked by Confirm; nil: there are none.
	Sources Sources
	Logger  *slog.Logger
}

// Clock is trusted time. Safe for concurrent use.
type Clock struct {
	opts Options

	mu   sync.Mutex
	seen reading // guarded by mu: of the last time known, which Now goes on from
}

// reading is a trusted time and when in the machine's life it was.
type reading struct {
	time  time.Time
	boot  string
	since time.Duration
}

// Open reads the file, or begins with the machine's clock where there is none. A damaged or newer file is an error: only
// who knows why may remove it.
func Open(o Options) (*Clock, error) {
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.Boot == nil {
		o.Boot = machineBoot
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Clock{opts: o}
	boot, since, err := o.Boot()
	if err != nil {
		return nil, fmt.Errorf("open clock: %w", err)
	}
	raw, err := os.ReadFile(o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.seen = reading{o.Wall().UTC().Round(0), boot, since}
	case err != nil:
		return nil, fmt.Errorf("open clock: %w", err)
	default:
		if c.seen, err = parse(raw); err != nil {
			return nil, fmt.Errorf("open clock %s: %w; if the machine's clock is right, remove the file", o.Path, err)
		}
	}
	c.seen = c.seen.at(boot, since)
	return c, c.Keep()
}

// at returns the reading carried on to a moment of the machine's life. After another boot only the time since it counts.
func (r reading) at(boot string, since time.Duration) reading {
	up := since
	if boot == r.boot {
		up = max(since-r.since, 0)
	}
	return reading{r.time.Add(up), boot, since}
}

// Now returns trusted time, in UTC. It never goes back.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().time
}

// now needs mu held. A machine that cannot tell its uptime any more stands still.
func (c *Clock) now() reading {
	boot, since, err := c.opts.Boot()
	if err != nil {
		c.opts.Logger.Error("trusted time stands still", "error", err)
		return c.seen
	}
	c.seen = c.seen.at(boot, since)
	return c.seen
}

// Behind returns how far trusted time is behind the machine's clock; negative when the clock was set back.
func (c *Clock) Behind() time.Duration { return c.opts.Wall().Sub(c.Now()) }

// Raise moves trusted time forward to t if it is behind: t is a time that was trusted before, from a store, say.
func (c *Clock) Raise(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.now(); r.time.Before(t) {
		c.seen.time = t.UTC().Round(0)
	}
}

// Confirm moves trusted time forward to the machine's clock, if authenticated sources agree with that. An error says why
// not; trusted time is then as it was.
func (c *Clock) Confirm(ctx context.Context) error {
	if c.opts.Sources == nil {
		return errNoSources
	}
	if err := c.opts.Sources(ctx); err != nil {
		return fmt.Errorf("confirm the machine's clock: %w", err)
	}
	c.Raise(c.opts.Wall())
	return c.Keep()
}

var errNoSources = errors.New("no authenticated time source")

// Keep writes the file: call it every minute and at the end. What passed since the last call and the machine's end is lost.
func (c *Clock) Keep() error {
	c.mu.Lock()
	r := c.now()
	c.mu.Unlock()
	if err := durable.WriteFile(c.opts.Path, r.encode(), 0o600); err != nil {
		return fmt.Errorf("keep trusted time: %w", err)
	}
	return nil
}

const (
	title   = "coffer clock, version "
	version = 1
	maxFile = 512
)

var errDamaged = errors.New("the file of trusted time is damaged")

func (r reading) encode() []byte {
	text := fmt.Sprintf("%s%d\n%s %s %d\n", title, version, r.time.Format(time.RFC3339Nano), r.boot, r.since.Nanoseconds())
	return fmt.Appendf([]byte(text), "%s\n", sum(text))
}

func sum(text string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(text), crc32.MakeTable(crc32.Castagnoli)))
}

func parse(raw []byte) (reading, error) {
	if len(raw) > maxFile {
		return reading{}, errDamaged
	}
	var v int
	if n, _ := fmt.Sscanf(string(raw), title+"%d\n", &v); n == 1 && v > version {
		return reading{}, fmt.Errorf("it has version %d, this program knows %d", v, version)
	}
	lines := strings.SplitAfter(string(raw), "\n")
	if v != version || len(lines) != 4 || lines[2] != sum(lines[0]+lines[1])+"\n" {
		return reading{}, errDamaged
	}
	fields := strings.Fields(lines[1])
	if len(fields) != 3 {
		return reading{}, errDamaged
	}
	at, err := time.Parse(time.RFC3339Nano, fields[0])
	since, serr := time.ParseDuration(fields[2] + "ns")
	if err != nil || serr != nil || since < 0 {
		return reading{}, errDamaged
	}
	return reading{at.UTC(), fields[1], since}, nil
}
