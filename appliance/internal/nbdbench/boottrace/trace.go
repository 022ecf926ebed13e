// Package boottrace records what a machine asks of its disk while it boots, and asks the same of another disk: under emulation
// the processor hides the disk, so that boot times say little about it, and the requests alone say more.
//
// It owns the trace, its file, a device that records and the replay. Where the disks come from is its callers' business.
//
// # The trace's file
//
// Text in gzip, which has the checksum:
//
//	coffer boot trace 1           magic and version
//	size 805306368                of the disk, in bytes
//	r 1048576 4096 120334 1250    kind, offset, length, begin, duration: bytes, and microseconds since the recording began
//
// One line for each request, in the order in which they began. Kinds: r read, w write, z zero, t trim, f flush (of no range).
package boottrace

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Kind is what a request asks for: part of the format.
type Kind byte

const (
	Read  Kind = 'r'
	Write Kind = 'w'
	Zero  Kind = 'z'
	Trim  Kind = 't'
	Flush Kind = 'f'
)

// Request is one request. Begin and End are since the recording began, in whole microseconds.
type Request struct {
	Kind       Kind
	Off, Len   int64
	Begin, End time.Duration
}

// Trace is a recording.
type Trace struct {
	Size     int64 // of the disk
	Requests []Request
}

const (
	magic = "coffer boot trace 1"
	// Bounds of what is read: a boot has some thousands of requests, of at most 32 MiB.
	maxRequests = 1 << 20
	maxLength   = 32 << 20
	maxTime     = 24 * time.Hour
)

// ErrFormat is a file that is no trace, or one of a newer version.
var ErrFormat = errors.New("not a boot trace of version 1")

// Encode writes the trace's file. It sorts the requests by their begin.
func (t *Trace) Encode(w io.Writer) error {
	t.sort()
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	fmt.Fprintf(z, "%s\nsize %d\n", magic, t.Size) // z keeps its first error
	for _, r := range t.Requests {
		fmt.Fprintf(z, "%c %d %d %d %d\n", r.Kind, r.Off, r.Len, r.Begin.Microseconds(), (r.End - r.Begin).Microseconds())
	}
	return z.Close()
}

// Decode reads a trace's file.
func Decode(r io.Reader) (*Trace, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(make([]byte, 0, 256), 256)
	t := &Trace{}
	if !lines.Scan() || lines.Text() != magic || !lines.Scan() {
		return nil, fmt.Errorf("%w: it begins with %.40q", ErrFormat, lines.Text())
	}
	if _, err := fmt.Sscanf(lines.Text(), "size %d", &t.Size); err != nil || t.Size < 0 {
		return nil, fmt.Errorf("%w: line 2 is %q", ErrFormat, lines.Text())
	}
	for lines.Scan() {
		q, err := t.parse(lines.Text())
		if err != nil || len(t.Requests) == maxRequests {
			return nil, fmt.Errorf("%w: line %d is %q: %w", ErrFormat, len(t.Requests)+3, lines.Text(), err)
		}
		t.Requests = append(t.Requests, q)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return t, nil
}

func (t *Trace) parse(line string) (Request, error) {
	var q Request
	var begin, took int64
	if _, err := fmt.Sscanf(line, "%c %d %d %d %d", &q.Kind, &q.Off, &q.Len, &begin, &took); err != nil {
		return q, err
	}
	switch q.Kind {
	case Read, Write, Zero, Trim, Flush:
	default:
		return q, fmt.Errorf("kind %q", q.Kind)
	}
	if q.Off < 0 || q.Len < 0 || q.Len > maxLength && (q.Kind == Read || q.Kind == Write) || q.Off > t.Size || q.Len > t.Size-q.Off {
		return q, fmt.Errorf("%d bytes at %d of %d", q.Len, q.Off, t.Size)
	}
	if limit := maxTime.Microseconds(); begin < 0 || took < 0 || begin > limit || took > limit {
		return q, fmt.Errorf("%d µs from %d on", took, begin)
	}
	q.Begin = time.Duration(begin) * time.Microsecond
	q.End = q.Begin + time.Duration(took)*time.Microsecond
	if n := len(t.Requests); n > 0 && t.Requests[n-1].Begin > q.Begin {
		return q, errors.New("it began before the one above it")
	}
	return q, nil
}

func (t *Trace) sort() {
	slices.SortStableFunc(t.Requests, func(a, b Request) int { return cmp.Compare(a.Begin, b.Begin) })
}

// Totals say how many requests of a kind there were, of how many bytes, and how many of them were in flight at once.
func (t *Trace) Totals(k Kind) (requests int, bytes int64, depth int) {
	var open []time.Duration // ends of those in flight
	for _, r := range t.Requests {
		if r.Kind != k {
			continue
		}
		requests++
		bytes += r.Len
		open = slices.DeleteFunc(open, func(end time.Duration) bool { return end <= r.Begin })
		open = append(open, r.End)
		depth = max(depth, len(open))
	}
	return requests, bytes, depth
}
