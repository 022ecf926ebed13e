package server

import (
	"context"

	"coffer/api"
)

type unsealInput struct {
	ID   string `path:"id" maxLength:"64"`
	Body api.Unseal
}

func (in *unsealInput) audit() (object, detail string) { return in.ID, "" }

func (s *Server) unsealSaveset(ctx context.Context, in *unsealInput) (*body[api.Unsealed], error) {
	set, err := s.saveset(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	in.ID = set.ID // the audit log names it whole
	return bodyOf(s.backend.UnsealSaveset(ctx, set.ID, in.Body))
}

func (s *Server) sealSaveset(ctx context.Context, in *idInput) (*noOutput, error) {
	set, err := s.saveset(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	in.ID = set.ID // the audit log names it whole
	return nil, s.backend.SealSaveset(ctx, set.ID)
}
