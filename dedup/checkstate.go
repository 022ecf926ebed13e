package dedup

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"coffer/dedup/container"
)

const (
	checkPrefix = "checks/"
	checkKind   = "check"
)

func checkName(n uint64) string { return fmt.Sprintf("%s%016x", checkPrefix, n) }

// checkObject is how far the checks are. FORMAT.md explains the fields.
type checkObject struct {
	Version int `json:"version"`
	// Round counts from 1. Cursor is the last container of the round that was looked at; empty at its start.
	Round  uint64 `json:"round"`
	Cursor string `json:"cursor,omitzero"`
	Done   int    `json:"done"`
	Total  int    `json:"total"`
	// Shallow: some container of the round was looked at without its digests.
	Shallow bool      `json:"shallow,omitzero"`
	Pages   time.Time `json:"pages,omitzero"`
	Deep    time.Time `json:"deep,omitzero"`
	Objects time.Time `json:"objects,omitzero"`
}

// checkRounds is the state of the checks in memory, and the number of its object.
type checkRounds struct {
	mu     sync.Mutex
	number uint64      // guarded by mu
	now    checkObject // guarded by mu
}

// CheckState returns how far the checks are.
func (s *Store) CheckState() CheckState {
	o := s.checks.get()
	return CheckState{Round: o.Round, Done: o.Done, Total: o.Total, Pages: o.Pages, Deep: o.Deep, Objects: o.Objects}
}

func (c *checkRounds) get() checkObject {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// cursor returns the container behind which the round goes on.
func (o *checkObject) cursor() container.ID {
	n, err := strconv.ParseUint(o.Cursor, 16, 64)
	if err != nil {
		return 0
	}
	return container.ID(n)
}

// loadChecks reads the newest state of the checks. One that is damaged costs a round, nothing else.
func (s *Store) loadChecks(ctx context.Context) error {
	c := &s.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = checkObject{Version: objectVersion, Round: 1}
	for o, err := range s.objects(ctx, checkPrefix) {
		if err != nil {
			return wrap("list checks", "", err)
		}
		n, err := strconv.ParseUint(strings.TrimPrefix(o.name, checkPrefix), 16, 64)
		if err != nil || checkName(n) != o.name {
			continue // not ours
		}
		c.number = max(c.number, n)
		var state checkObject
		err = s.readObject(ctx, checkKind, o, &state)
		switch {
		case KindOf(err) == Damaged:
			s.noteObject(o.name, SavesetID{}, err)
		case err != nil:
			return err
		default:
			c.now = state
		}
	}
	return nil
}

// saveChecks writes a changed state, then removes the one before it.
func (s *Store) saveChecks(ctx context.Context, change func(*checkObject)) error {
	c := &s.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.now
	change(&next)
	if next == c.now {
		return nil
	}
	if err := s.putObject(ctx, checkKind, checkName(c.number+1), next); err != nil {
		return err
	}
	old := checkName(c.number)
	c.number++
	c.now = next
	return s.deleteObject(ctx, old)
}
