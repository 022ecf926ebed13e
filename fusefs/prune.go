//go:build linux

package fusefs

import (
	"context"
	"time"
)

// The kernel forgets inodes only when the machine is short of memory, and does not know what they cost us. A find through
// many savesets would leave millions of them: above a limit, the oldest are dropped from the kernel's cache, which then
// forgets those that nobody uses.

const (
	// pruneBatch is how many names are dropped between two looks at the table.
	pruneBatch = 512
	// pruneWait gives the kernel time to forget before more is dropped.
	pruneWait = 20 * time.Millisecond
)

// prune drops names by notify until ctx ends, each time that the table is too full.
func (t *table) prune(ctx context.Context, notify func(parent uint64, name string)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.full:
		}
		for old := t.oldest(pruneBatch); len(old) > 0 && ctx.Err() == nil; old = t.oldest(pruneBatch) {
			for i := range old {
				notify(old[i].parent, old[i].name)
			}
			select {
			case <-ctx.Done():
			case <-time.After(pruneWait):
			}
		}
	}
}
