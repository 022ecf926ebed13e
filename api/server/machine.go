package server

import (
	"context"

	"coffer/api"
)

func (s *Server) system(ctx context.Context, _ *noInput) (*body[api.System], error) {
	return bodyOf(s.backend.System(ctx))
}

func (s *Server) mountStatus(ctx context.Context, _ *noInput) (*body[api.Mount], error) {
	return bodyOf(s.backend.Mount(ctx))
}

type mountInput struct {
	Body api.MountSpec
}

func (in *mountInput) audit() (object, detail string) {
	if in.Body.On {
		return "on", ""
	}
	return "off", ""
}

func (s *Server) setMount(ctx context.Context, in *mountInput) (*body[api.Mount], error) {
	return bodyOf(s.backend.SetMount(ctx, in.Body.On))
}
