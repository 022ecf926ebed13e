package dedup

import (
	"context"
	"errors"
	"time"
)

// CheckOptions say what a Check looks at: Objects, Pages, Deep, or several; nothing chosen is Invalid.
type CheckOptions struct {
	// Objects: every reference of every saveset resolves, through the index, to a row of the right kind, length and domain.
	Objects bool
	// Pages: the stored bytes of containers and small objects match their checksums. It needs no key.
	Pages bool
	// Deep: Pages, and every frame is decrypted and decompressed and the digests of its chunks are recomputed.
	Deep bool
	// Share is the part of all containers that this call looks at, from where the last one stopped; 0 and 1: all of them,
	// from the first one on.
	Share float64
	// Rate is the speed limit of Pages in bytes a second; 0: none.
	Rate int64
	// Progress, when set, is called from one goroutine at a time, at most ten times a second.
	Progress func(Progress)
}

// Validate reports every fault at once.
func (o CheckOptions) Validate() error {
	var errs []error
	if !o.Objects && !o.Pages && !o.Deep {
		errs = append(errs, errors.New("nothing to check"))
	}
	if o.Share < 0 || o.Share > 1 {
		errs = append(errs, errors.New("share is not between 0 and 1"))
	}
	if o.Rate < 0 {
		errs = append(errs, errors.New("negative rate"))
	}
	if len(errs) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Op: "check options", Err: errors.Join(errs...)}
}

// CheckReport is what one Check saw.
type CheckReport struct {
	// Containers and Frames whose pages were read, and how many bytes that were.
	Containers, Frames int
	Bytes              int64
	// SmallObjects whose pages were read.
	SmallObjects int
	// Savesets that were walked, and the references in them: a shared subtree counts once.
	Savesets   int
	References int64
	// Skipped containers went away meanwhile, or are of a key that the store has not got: their pages were read, no more.
	Skipped int
	// Found is the damage that was not on the list before. Healthy counts rows that left it, for what they name is as it
	// should be.
	Found   []Damage
	Healthy int
	// Complete: the round over all containers ended with this call, if Pages were wanted, and Objects saw all savesets.
	Complete bool
	Took     time.Duration
}

// CheckState says how far the checks of a store are. It is kept in the store.
type CheckState struct {
	// Round counts the rounds of Pages, from 1; Done and Total are containers of this round.
	Round       uint64
	Done, Total int
	// Pages, Deep and Objects are when the last complete round of each ended, by the store's clock; zero: never.
	Pages, Deep, Objects time.Time
}

// Check reads the store and puts what is damaged on the damage list. Runs, views and deletions go on beside it; Kind InUse
// when a check or a healing runs. An error is one of I/O or of ctx; damage is none. What was found until an error is on the
// list, and the next Check goes on behind it.
func (s *Store) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	if err := o.Validate(); err != nil {
		return CheckReport{}, err
	}
	ctx, end, err := s.maintain(ctx, checking)
	if err != nil {
		return CheckReport{}, err
	}
	defer end()
	c := &check{s: s, o: o, meter: newMeter(o.Progress), pace: &pacer{rate: o.Rate}, before: s.damage.now()}
	start := time.Now()
	err = c.run(ctx)
	c.rep.Found = s.damage.since(c.before)
	c.rep.Took = time.Since(start)
	if e := s.saveDamage(context.WithoutCancel(ctx)); err == nil {
		err = e
	}
	if err != nil {
		c.rep.Complete = false
		return c.rep, wrap("check store", "", err)
	}
	return c.rep, nil
}

// check is one Check.
type check struct {
	s       *Store
	o       CheckOptions
	meter   *meter
	pace    *pacer
	before  uint64 // version of the damage list
	mute    int    // containers and small objects that the disk did not give
	blind   bool   // objects met a node that could not be read
	counted int    // containers that are written down as done
	rep     CheckReport
}

func (c *check) run(ctx context.Context) error {
	c.rep.Complete = true
	if c.o.Pages || c.o.Deep {
		if err := c.smallObjects(ctx); err != nil {
			return err
		}
		if err := c.containers(ctx); err != nil {
			return err
		}
	}
	if c.o.Objects {
		return c.objects(ctx)
	}
	return nil
}

// since returns the rows that came after a version of the list.
func (l *damageList) since(version uint64) []Damage {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Damage
	for _, r := range l.rows {
		if r.version > version && r.open() {
			out = append(out, r.copy())
		}
	}
	return out
}
