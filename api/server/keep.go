package server

import (
	"context"
	"time"

	"coffer/api"
)

type deleteInput struct {
	ID    string `path:"id" maxLength:"64"`
	Force bool   `query:"force" doc:"also before its end of life, and if it is the newest of its task"`
}

func (in *deleteInput) audit() (object, detail string) {
	if in.Force {
		return in.ID, "forced"
	}
	return in.ID, ""
}

func (s *Server) deleteSaveset(ctx context.Context, in *deleteInput) (*noOutput, error) {
	set, err := s.saveset(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	in.ID = set.ID // the audit log names it whole
	return nil, s.backend.DeleteSaveset(ctx, set.ID, in.Force)
}

func (s *Server) lockSaveset(ctx context.Context, in *idInput) (*body[api.Saveset], error) {
	return s.setLock(ctx, in, true)
}

func (s *Server) unlockSaveset(ctx context.Context, in *idInput) (*body[api.Saveset], error) {
	return s.setLock(ctx, in, false)
}

func (s *Server) setLock(ctx context.Context, in *idInput, locked bool) (*body[api.Saveset], error) {
	set, err := s.saveset(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	in.ID = set.ID
	return bodyOf(s.backend.LockSaveset(ctx, set.ID, locked))
}

type immutableInput struct {
	ID   string `path:"id" maxLength:"64"`
	Body api.ImmutableSpec
}

func (in *immutableInput) audit() (object, detail string) {
	return in.ID, "until " + in.Body.Until.UTC().Format(time.RFC3339)
}

func (s *Server) makeImmutable(ctx context.Context, in *immutableInput) (*body[api.Saveset], error) {
	set, err := s.saveset(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	in.ID = set.ID
	return bodyOf(s.backend.MakeImmutable(ctx, set.ID, in.Body.Until))
}
