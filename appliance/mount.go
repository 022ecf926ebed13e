package appliance

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"coffer/api"
	"coffer/fusefs"
	"coffer/fusefs/savesettree"
)

// mountSetting is the catalog's key of whether the mount is wanted: it comes back after a restart.
const mountSetting = "mount"

// mountKeeper keeps the mount of all savesets on the appliance.
type mountKeeper struct {
	a   *appliance
	dir string

	mu      sync.Mutex // guards all below; held while mounting, which is short
	mounted *fusefs.Mounted
	tree    *savesettree.Tree
	since   time.Time
	reason  error // why it is not mounted although it should be
}

// newMountKeeper clears what a killed appliance left mounted.
func newMountKeeper(ctx context.Context, a *appliance) *mountKeeper {
	k := &mountKeeper{a: a, dir: a.conf.MountDir()}
	if err := fusefs.ClearStale(ctx, k.dir); err != nil {
		a.log.Warn("stale mount not cleared", "dir", k.dir, "error", err)
	}
	return k
}

// restore mounts where it was on when the appliance ended.
func (k *mountKeeper) restore(ctx context.Context) {
	wanted, err := k.a.catalog.Setting(ctx, mountSetting)
	if err != nil || wanted != "on" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reason = k.mountNow(ctx); k.reason != nil {
		k.a.log.Error("savesets not mounted", "dir", k.dir, "error", k.reason)
	}
}

// set turns the mount on or off and keeps the wish.
func (k *mountKeeper) set(ctx context.Context, on bool) (api.Mount, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	if on {
		err = k.mountNow(ctx)
	} else {
		err = k.unmount()
	}
	if err != nil {
		return k.present(), told(api.CodeMountFailed, err.Error(), "see the log of the appliance; it needs root and the kernel module fuse")
	}
	k.reason = nil
	wish := "off"
	if on {
		wish = "on"
	}
	// The mount is as asked; that it is not kept beyond a restart is worth a line, not a failure.
	if err := k.a.catalog.SetSetting(ctx, mountSetting, wish); err != nil {
		k.a.log.Warn("mount not kept for the next start", "error", err)
	}
	return k.present(), nil
}

func (k *mountKeeper) status() api.Mount {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.present()
}

// alive says whether the mount is served; one that somebody else took off is forgotten. k.mu is held.
func (k *mountKeeper) alive() bool {
	if k.mounted == nil {
		return false
	}
	select {
	case <-k.mounted.Done():
		k.a.log.Warn("the mount of the savesets was taken off by somebody else", "dir", k.dir)
		if err := k.unmount(); err != nil {
			k.a.log.Warn("mount not closed cleanly", "dir", k.dir, "error", err)
		}
		return false
	default:
		return true
	}
}

// present is the API's form; k.mu is held.
func (k *mountKeeper) present() api.Mount {
	out := api.Mount{On: k.alive(), Path: k.dir}
	if out.On {
		out.Since = at(k.since)
	}
	if k.reason != nil {
		out.Error = k.reason.Error()
	}
	return out
}

// mountNow mounts; k.mu is held.
func (k *mountKeeper) mountNow(ctx context.Context) error {
	if k.alive() {
		return nil
	}
	store, err := k.a.store.get()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	tree := savesettree.New(mountSource{savesettree.FromStore(store), k.a, store}, savesettree.Options{Logger: k.a.log, Accessed: k.accessed})
	// The mount outlives the call that asked for it.
	mounted, err := fusefs.Mount(context.WithoutCancel(ctx), k.dir, tree.Root(), fusefs.Options{Logger: k.a.log})
	if err != nil {
		if cerr := tree.Close(); cerr != nil {
			k.a.log.Warn("tree not closed cleanly", "error", cerr)
		}
		return err
	}
	k.mounted, k.tree, k.since = mounted, tree, k.a.opts.Now()
	k.a.log.Info("savesets mounted", "dir", k.dir)
	return nil
}

// accessed records that a saveset was read through the mount: access counts as a restore.
func (k *mountKeeper) accessed(s savesettree.Saveset) {
	k.a.record(context.Background(), "saveset.mount", s.ID.String(), "read through the mount "+k.dir)
}

// unmount takes the mount off; k.mu is held.
func (k *mountKeeper) unmount() error {
	if k.mounted == nil {
		return nil
	}
	err := k.mounted.Unmount()
	if cerr := k.tree.Close(); err == nil {
		err = cerr
	}
	k.mounted, k.tree = nil, nil
	return err
}

// stop takes the mount off at the end of the appliance; the wish stays.
func (k *mountKeeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.unmount(); err != nil {
		k.a.log.Error("mount not taken off", "dir", k.dir, "error", err)
	}
}
