package servertest

import (
	"context"
	"fmt"
	"slices"

	"coffer/api"
)

// Guests lists what BootGuest and RestoreGuest made.
func (b *Backend) Guests(context.Context) ([]api.Guest, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.guests), b.Fail
}

// Guest returns one of them: as it is the first time, and further on with each call.
func (b *Backend) Guest(_ context.Context, key string) (api.Guest, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.guests {
		g := &b.guests[i]
		if g.ID != key && g.Name != key {
			continue
		}
		was := *g
		switch g.State {
		case api.GuestBooting:
			g.State, g.HostState, g.UUID = api.GuestRunning, "running", "5b7b1a54-0d5e-4a3f-9d5b-0e7c1f2a3b4c"
		case api.GuestMoving, api.GuestRestoring:
			g.Progress = &api.GuestJob{Disk: "vda", Bytes: 10 << 30, BytesTotal: 20 << 30}
			if was.Progress != nil {
				g.State, g.Progress, g.Over = map[api.GuestState]api.GuestState{api.GuestMoving: api.GuestMoved, api.GuestRestoring: api.GuestRestored}[g.State], nil, true
			}
		}
		return was, b.Fail
	}
	return api.Guest{}, notFound("machine", key)
}

// BootGuest begins to boot.
func (b *Backend) BootGuest(_ context.Context, r api.GuestBoot) (api.Guest, error) {
	return b.addGuest(r.Saveset, api.Guest{Name: r.Name, Host: r.Host, URI: r.URI, State: api.GuestBooting})
}

// RestoreGuest begins to restore.
func (b *Backend) RestoreGuest(_ context.Context, r api.GuestRestore) (api.Guest, error) {
	return b.addGuest(r.Saveset, api.Guest{Name: r.Name, Host: r.Host, URI: r.URI, Pool: r.Pool, State: api.GuestRestoring})
}

func (b *Backend) addGuest(saveset string, g api.Guest) (api.Guest, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.savesets, func(s api.Saveset) bool { return s.ID == saveset })
	if i < 0 {
		return api.Guest{}, notFound("saveset", saveset)
	}
	set := b.savesets[i]
	g.ID, g.Saveset, g.Client, g.Task, g.Created, g.By = fmt.Sprintf("%012x", 0xa00+len(b.guests)), set.ID, set.Client, set.Task, Epoch, "admin"
	if g.Name == "" {
		g.Name = "shop"
	}
	g.Disks = []api.GuestDisk{{Target: "vda", Export: "3f0c5be2a1d4", Bytes: 20 << 30}}
	b.guests = append(b.guests, g)
	return g, b.Fail
}

// changeGuest changes one that runs.
func (b *Backend) changeGuest(key string, change func(*api.Guest)) (api.Guest, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.guests {
		g := &b.guests[i]
		if g.ID != key && g.Name != key {
			continue
		}
		if g.State != api.GuestRunning {
			return api.Guest{}, api.Errorf(api.CodeConflict, "machine %s is %s", g.Name, g.State)
		}
		change(g)
		return *g, b.Fail
	}
	return api.Guest{}, notFound("machine", key)
}

// MoveGuest begins to move.
func (b *Backend) MoveGuest(_ context.Context, key string, m api.GuestMove) (api.Guest, error) {
	return b.changeGuest(key, func(g *api.Guest) { g.State, g.Pool = api.GuestMoving, m.Pool })
}

// ResetGuest begins to boot again.
func (b *Backend) ResetGuest(_ context.Context, key string) (api.Guest, error) {
	return b.changeGuest(key, func(g *api.Guest) { g.State = api.GuestBooting })
}

// DropGuest removes one.
func (b *Backend) DropGuest(_ context.Context, key string, _ bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.guests)
	b.guests = slices.DeleteFunc(b.guests, func(g api.Guest) bool { return g.ID == key || g.Name == key })
	if len(b.guests) == n {
		return notFound("machine", key)
	}
	return b.Fail
}
