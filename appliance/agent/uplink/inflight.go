package uplink

import (
	"context"
	"sync"

	"coffer/dedup/digest"
)

// inflight knows the digests that some reader of this run has asked for and not yet got an answer, or was told to be
// missing, until the appliance has acknowledged them. Two readers that meet the same new content send it once; and a
// node waits until the chunks that it names have arrived.
type inflight struct {
	over <-chan struct{}
	why  func() error

	mu sync.Mutex
	// mu guards all below.
	set     map[digest.Digest]struct{}
	changed chan struct{} // closed when digests leave the set
	waiters int
}

func newInflight(over <-chan struct{}, why func() error) *inflight {
	return &inflight{over: over, why: why, set: map[digest.Digest]struct{}{}, changed: make(chan struct{})}
}

// claim adds the digests that nobody has claimed yet, in order, and returns their indexes.
func (f *inflight) claim(ds []digest.Digest) (mine []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range ds {
		if _, ok := f.set[ds[i]]; !ok {
			f.set[ds[i]] = struct{}{}
			mine = append(mine, i)
		}
	}
	return mine
}

// add adds digests that are on their way.
func (f *inflight) add(ds []digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range ds {
		f.set[ds[i]] = struct{}{}
	}
}

// remove takes digests out that the appliance has.
func (f *inflight) remove(ds []digest.Digest) {
	if len(ds) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range ds {
		delete(f.set, ds[i])
	}
	if f.waiters > 0 {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

// wait returns when none of the digests is in flight.
func (f *inflight) wait(ctx context.Context, ds []digest.Digest) error {
	f.mu.Lock()
	f.waiters++
	defer func() {
		f.waiters--
		f.mu.Unlock()
	}()
	for {
		for len(ds) > 0 {
			if _, ok := f.set[ds[0]]; ok {
				break
			}
			ds = ds[1:]
		}
		if len(ds) == 0 {
			return nil
		}
		changed := f.changed
		f.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-f.over:
			err = whyOver(f.why)
		case <-ctx.Done():
			err = ctx.Err()
		}
		f.mu.Lock()
		if err != nil {
			return err
		}
	}
}
