package appliance

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"coffer/appliance/catalog"
	"coffer/appliance/config"
	"coffer/appliance/maintenance"
	"coffer/dedup"
)

// purgePause is how long the appliance waits, where the high watermark is reached, before it purges again: a purge that
// found nothing to delete finds nothing a minute later either.
const purgePause = time.Hour

// purge deletes savesets whose time is over, the first to expire first. At NEWDAY it deletes all of them, if the
// configuration says so; where the high watermark is reached, as many as bring the store down to the low one. What they
// held goes with the next garbage collection.
func (a *appliance) purge(ctx context.Context, progress func(dedup.Progress)) (maintenance.PurgeReport, error) {
	use, err := diskUseOf(a.conf.StoreDir())
	if err != nil {
		return maintenance.PurgeReport{}, err
	}
	return a.purgeAt(ctx, use, progress)
}

// purgeAt is purge with a disk that is in use so far.
func (a *appliance) purgeAt(ctx context.Context, use diskUse, progress func(dedup.Progress)) (out maintenance.PurgeReport, err error) {
	store, err := a.store.get()
	if err != nil {
		return out, err
	}
	o := dedup.PurgeOptions{Cause: "purge: its end of life has passed", May: func(m dedup.Manifest) error { return mayPurge(m, a.clock.Now()) }}
	excess := use.above(a.conf.Store.LowWatermark)
	switch {
	case use.reached(a.conf.Store.HighWatermark):
		o.Cause = "purge: its end of life has passed, and the high watermark is reached"
	case a.conf.Store.Purge == config.PurgeAtWatermark:
		return out, nil
	default:
		excess = 0 // all of them
	}
	verdicts, err := a.verdicts(ctx, "")
	if err != nil {
		return out, err
	}
	var stored int64
	sizes := make(map[dedup.SavesetID]int64)
	for _, v := range verdicts {
		if len(v.Kept) > 0 {
			continue
		}
		id, err := dedup.ParseSavesetID(v.Saveset.ID)
		if err != nil {
			return out, err
		}
		sizes[id] = v.Saveset.Logical
		o.IDs = append(o.IDs, id)
		if stored += v.Saveset.Stored; excess > 0 && stored >= excess {
			break
		}
	}
	progress(dedup.Progress{Phase: "purge", Total: int64(len(o.IDs)), Unit: "savesets"})
	report, err := a.jobs.Purge(ctx, store, o)
	for _, id := range report.Deleted {
		out.LogicalBytes += sizes[id]
	}
	out.Deleted, out.Left = len(report.Deleted), len(report.Kept)
	progress(dedup.Progress{Phase: "purge", Done: int64(len(report.Deleted)), Total: int64(len(o.IDs)), Unit: "savesets"})
	return out, err
}

// watchSpace starts a purge and a garbage collection where the high watermark is reached.
func (a *appliance) watchSpace(ctx context.Context) {
	now := a.opts.Now()
	if now.Sub(a.purged) < purgePause {
		return
	}
	use, err := diskUseOf(a.conf.StoreDir())
	if err != nil || !use.reached(a.conf.Store.HighWatermark) {
		return // a store that cannot be asked says so itself
	}
	if _, err := a.store.get(); err != nil {
		return
	}
	a.purged = now
	a.log.Warn("the high watermark of the store is reached: expired savesets are purged", "used_percent", use.percent(),
		"high_watermark", a.conf.Store.HighWatermark, "low_watermark", a.conf.Store.LowWatermark)
	for _, kind := range []maintenance.Kind{maintenance.Purge, maintenance.GC} {
		if _, err := a.upkeep.Enqueue(ctx, maintenance.Request{Kind: kind, Trigger: catalog.TriggerSpace}); err != nil && maintenance.KindOf(err) != maintenance.KindWaiting {
			a.log.Error("maintenance at the high watermark does not start", "kind", kind, "error", err)
		}
	}
}

// diskUse is how much of a file system is in use, in bytes.
type diskUse struct{ used, size int64 }

func diskUseOf(path string) (diskUse, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return diskUse{}, fmt.Errorf("ask for the space of %s: %w", path, err)
	}
	free := int64(st.Bavail) * st.Bsize
	used := int64(st.Blocks-st.Bfree) * st.Bsize
	return diskUse{used: used, size: used + free}, nil // what only root may use counts for neither, as df does
}

func (u diskUse) percent() int64 { return u.used * 100 / max(u.size, 1) }

// reached reports whether a watermark, in percent, is reached; 0 is none.
func (u diskUse) reached(mark int) bool { return mark > 0 && u.used >= u.size/100*int64(mark) }

// above returns how many bytes are in use above a watermark.
func (u diskUse) above(mark int) int64 { return max(u.used-u.size/100*int64(mark), 0) }
