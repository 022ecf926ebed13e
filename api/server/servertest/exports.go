package servertest

import (
	"context"
	"fmt"
	"slices"

	"coffer/api"
)

// Exports lists what AddExport made.
func (b *Backend) Exports(context.Context) ([]api.Export, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.exports), nil
}

// Export returns one of them.
func (b *Backend) Export(_ context.Context, id string) (api.Export, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := b.exportIndex(id); i >= 0 {
		return b.exports[i], nil
	}
	return api.Export{}, notFound("export", id)
}

func (b *Backend) exportIndex(id string) int {
	return slices.IndexFunc(b.exports, func(e api.Export) bool { return e.ID == id })
}

// AddExport makes an export of a disk that does not exist.
func (b *Backend) AddExport(_ context.Context, s api.ExportSpec) (api.Export, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.savesets, func(x api.Saveset) bool { return x.ID == s.Saveset })
	if i < 0 {
		return api.Export{}, notFound("saveset", s.Saveset)
	}
	set := b.savesets[i]
	if s.Disk == "" {
		s.Disk = "vda.raw"
	}
	e := api.Export{ID: fmt.Sprintf("%012x", len(b.exports)+1), Saveset: set.ID, Client: set.Client, Task: set.Task, Disk: s.Disk, Bytes: 20 << 30,
		State: api.ExportReady, Clients: s.Clients, Purpose: s.Purpose, Created: Epoch, By: "admin", Name: set.ID + "/" + s.Disk}
	if s.Overlay {
		e.Name = e.ID
		e.Overlay = &api.ExportOverlay{BytesLimit: max(s.BytesLimit, e.Bytes), BytesData: 3 << 20, BytesMap: 4096}
		if s.BytesLimit > 0 {
			e.Overlay.BytesLimit = s.BytesLimit
		}
	}
	e.URIs = []string{"nbd+unix:///" + e.Name + "?socket=/var/lib/coffer/run/nbd.sock", "nbd://127.0.0.1:10809/" + e.Name}
	b.exports = append(b.exports, e)
	return e, b.Fail
}

// DropExport removes an export that has no connections, or by force.
func (b *Backend) DropExport(_ context.Context, id string, force bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.exportIndex(id)
	switch {
	case i < 0:
		return notFound("export", id)
	case b.exports[i].Connections > 0 && !force:
		return api.Errorf(api.CodeInUse, "export %s has %d connections", id, b.exports[i].Connections).WithHint("--force cuts them off")
	}
	b.exports = slices.Delete(b.exports, i, i+1)
	return b.Fail
}

// CommitExport starts a run for an export with an overlay.
func (b *Backend) CommitExport(ctx context.Context, id string) (api.Run, error) {
	e, err := b.Export(ctx, id)
	if err != nil {
		return api.Run{}, err
	}
	if e.Overlay == nil {
		return api.Run{}, api.Errorf(api.CodeConflict, "export %s has no overlay", id)
	}
	return b.start(ctx, api.Run{Kind: api.RunBackup, Client: e.Client, Task: e.Task, LevelRequested: api.LevelCopy, LevelEffective: api.LevelCopy,
		LevelReason: "overlay_commit"}), b.Fail
}

// ConnectExport makes it look as if so many clients were connected to an export.
func (b *Backend) ConnectExport(id string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exports[b.exportIndex(id)].Connections = n
}
