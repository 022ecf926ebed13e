package server

import (
	"context"
	"strings"

	"coffer/api"
)

// Guests are the virtual machines that run from savesets, and those that are restored from them. A guest is named by its id,
// or by the name that it alone has.
type Guests interface {
	// Guests lists those that are not over, the oldest first.
	Guests(ctx context.Context) ([]api.Guest, error)
	// Guest returns one; one that is over is found by its id for a while. CodeNotFound.
	Guest(ctx context.Context, key string) (api.Guest, error)
	// BootGuest makes exports and has the host start a machine on them, which goes on after the call. CodeBadRequest for a
	// saveset of no machine; CodeConflict; CodeClientOffline.
	BootGuest(ctx context.Context, b api.GuestBoot) (api.Guest, error)
	// RestoreGuest has a host make a machine in a storage pool, which goes on after the call. Errors like BootGuest's.
	RestoreGuest(ctx context.Context, r api.GuestRestore) (api.Guest, error)
	// MoveGuest has the host copy the disks of a guest to a storage pool, which goes on after the call. CodeConflict when it
	// does not run; CodeSourceRefused, with the agent's words.
	MoveGuest(ctx context.Context, key string, m api.GuestMove) (api.Guest, error)
	// ResetGuest ends a guest and boots it again on its overlays as they are. Errors like MoveGuest's.
	ResetGuest(ctx context.Context, key string) (api.Guest, error)
	// DropGuest ends a guest and removes what it wrote; force: whatever the host says. Errors like MoveGuest's.
	DropGuest(ctx context.Context, key string, force bool) error
}

// seesGuest tells whether the caller reaches both the saveset's client and the host.
func seesGuest(ctx context.Context, g api.Guest) error {
	if err := reach(ctx, g.Client); err != nil {
		return err
	}
	return reach(ctx, g.Host)
}

func (s *Server) listGuests(ctx context.Context, _ *noInput) (*body[api.Page[api.Guest]], error) {
	items, err := s.backend.Guests(ctx)
	return listBody(items, err, func(g api.Guest) bool { return seesGuest(ctx, g) == nil })
}

// guest returns a guest that the caller reaches.
func (s *Server) guest(ctx context.Context, key string) (api.Guest, error) {
	g, err := s.backend.Guest(ctx, key)
	if err == nil {
		err = seesGuest(ctx, g)
	}
	return g, err
}

type guestKey struct {
	ID string `path:"id" maxLength:"255" doc:"id, or the name that it alone has"`
}

func (in *guestKey) audit() (object, detail string) { return in.ID, "" }

func (s *Server) showGuest(ctx context.Context, in *guestKey) (*body[api.Guest], error) {
	return bodyOf(s.guest(ctx, in.ID))
}

// admitGuest asks that the caller reaches the saveset's client and the host: it is a restore to that. It returns the whole id
// of the saveset.
func (s *Server) admitGuest(ctx context.Context, saveset, host string) (string, error) {
	set, err := s.saveset(ctx, saveset)
	if err != nil {
		return "", err
	}
	if err := reach(ctx, host); err != nil {
		return "", err
	}
	_, err = s.backend.Client(ctx, host)
	return set.ID, err
}

type guestBootInput struct{ Body api.GuestBoot }

func (in *guestBootInput) audit() (object, detail string) {
	return in.Body.Saveset, guestDetail("host "+in.Body.Host, in.Body.URI, in.Body.Name, in.Body.NewIdentity)
}

func guestDetail(host, uri, name string, newIdentity bool) string {
	parts := []string{host}
	if uri != "" {
		parts = append(parts, uri)
	}
	if name != "" {
		parts = append(parts, "as "+name)
	}
	if newIdentity {
		parts = append(parts, "with a new identity")
	}
	return clip(strings.Join(parts, ", "))
}

func (s *Server) bootGuest(ctx context.Context, in *guestBootInput) (_ *body[api.Guest], err error) {
	b := &in.Body
	if b.NoNetwork && b.Network != "" {
		return nil, api.Errorf(api.CodeBadRequest, "either a network or none")
	}
	if b.Saveset, err = s.admitGuest(ctx, b.Saveset, b.Host); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.BootGuest(ctx, *b))
}

type guestRestoreInput struct{ Body api.GuestRestore }

func (in *guestRestoreInput) audit() (object, detail string) {
	b := in.Body
	detail = guestDetail("host "+b.Host, b.URI, b.Name, b.NewIdentity) + ", to pool " + b.Pool
	if b.Overwrite {
		detail += ", overwrite"
	}
	return b.Saveset, clip(detail)
}

func (s *Server) restoreGuest(ctx context.Context, in *guestRestoreInput) (_ *body[api.Guest], err error) {
	b := &in.Body
	if b.NoNetwork && b.Network != "" {
		return nil, api.Errorf(api.CodeBadRequest, "either a network or none")
	}
	if b.Saveset, err = s.admitGuest(ctx, b.Saveset, b.Host); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.RestoreGuest(ctx, *b))
}

type guestMoveInput struct {
	ID   string `path:"id" maxLength:"255" doc:"id, or the name that it alone has"`
	Body api.GuestMove
}

func (in *guestMoveInput) audit() (object, detail string) {
	return in.ID, clip("to pool " + in.Body.Pool)
}

func (s *Server) moveGuest(ctx context.Context, in *guestMoveInput) (*body[api.Guest], error) {
	if _, err := s.guest(ctx, in.ID); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.MoveGuest(ctx, in.ID, in.Body))
}

func (s *Server) resetGuest(ctx context.Context, in *guestKey) (*body[api.Guest], error) {
	if _, err := s.guest(ctx, in.ID); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.ResetGuest(ctx, in.ID))
}

type guestDropInput struct {
	ID    string `path:"id" maxLength:"255" doc:"id, or the name that it alone has"`
	Force bool   `query:"force" doc:"whatever the host says, and when it is away: what was made for the guest there stays"`
}

func (in *guestDropInput) audit() (object, detail string) {
	if in.Force {
		return in.ID, "forced"
	}
	return in.ID, ""
}

func (s *Server) dropGuest(ctx context.Context, in *guestDropInput) (*noOutput, error) {
	if _, err := s.guest(ctx, in.ID); err != nil {
		return nil, err
	}
	return nil, s.backend.DropGuest(ctx, in.ID, in.Force)
}
