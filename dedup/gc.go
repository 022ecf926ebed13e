package dedup

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DefaultSparse is the live share of a container's bytes below which it is copied forward. At 0.7 a container holds at
// most 30 % garbage for long, and to free a byte at most 2.3 are copied; at 0.5 it were 50 % and 1, at 0.8 20 % and 4.
const DefaultSparse = 0.7

// CollectOptions of a collection. The zero value of each means its default.
type CollectOptions struct {
	// Sparse is the live share of a container's bytes below which it is copied forward; 0: DefaultSparse.
	Sparse float64
	// Budget is the time after which the collection stops between two steps; 0: none. At least one step is done, so that
	// collections with any budget come to an end some day. The next Collect goes on.
	Budget time.Duration
	// Rate is how many bytes a second sweeping reads and writes at most; 0: no limit.
	Rate int64
	// Progress is told what is being done: never from two goroutines at a time, at most ten times a second.
	Progress func(Progress)
}

// Validate reports every fault at once.
func (o CollectOptions) Validate() error {
	var errs []error
	if o.Sparse < 0 || o.Sparse > 1 {
		errs = append(errs, errors.New("sparse is not between 0 and 1"))
	}
	if o.Budget < 0 {
		errs = append(errs, errors.New("negative budget"))
	}
	if o.Rate < 0 {
		errs = append(errs, errors.New("negative rate"))
	}
	if len(errs) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Op: "collect options", Err: errors.Join(errs...)}
}

// CollectReport tells what a collection did.
type CollectReport struct {
	// Marked are the chunks and nodes that savesets reach, Dead those that nothing needs.
	Marked, Dead uint64
	// Savesets are the roots of the mark.
	Savesets int
	// Containers: Deleted without copying, Copied forward and then deleted, Kept as they are.
	Deleted, Copied, Kept int
	// FreedBytes is the size of the containers that went; CopiedBytes that of those written in their place.
	FreedBytes, CopiedBytes int64
	// Remains are the containers that are kept for what broken runs left in them.
	Remains int
	// Skipped are the containers that were left because a run had them pinned, Damaged those because they do not read.
	Skipped, Damaged int
	// Manifests of deleted savesets that were removed.
	Manifests int
	// Memory is what the collection took at its highest, in bytes: marks, directories, what is copied.
	Memory int64
	// Complete is false when the budget, the context or a full disk ended the collection early.
	Complete            bool
	MarkTime, SweepTime time.Duration
}

// Collect frees what no saveset needs, beside runs and readers. It may be ended at any time and leaves nothing half done.
// Kinds InUse (another maintenance operation runs), NoSpace (what had to be copied for it was left, all else was done),
// Damaged (a manifest, a node of a saveset, or nodes that an open run relies on, cannot be read: nobody knows what is below, so
// nothing is removed until they are healed, or their savesets are deleted, or the run has ended). The report tells what was done, also beside an error.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (CollectReport, error) {
	if err := o.Validate(); err != nil {
		return CollectReport{}, err
	}
	ctx, end, err := s.maintain(ctx, collecting)
	if err != nil {
		return CollectReport{}, err
	}
	defer end()
	s.renewing.Lock()
	defer s.renewing.Unlock()
	c := newCollection(s, o)
	err = c.run(ctx)
	c.report.Complete = err == nil
	if why := stopped(ctx); err != nil && why != nil {
		err = why // whatever it was that broke off first
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	s.log.Info("collection ended", "report", fmt.Sprintf("%+v", c.report), "err", err)
	return c.report, wrap("collect", "", err)
}
