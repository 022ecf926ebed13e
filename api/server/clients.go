package server

import (
	"context"

	"coffer/api"
)

func (s *Server) listClients(ctx context.Context, _ *noInput) (*body[api.Page[api.Client]], error) {
	c := callerOf(ctx)
	clients, err := s.backend.Clients(ctx)
	return listBody(clients, err, func(cl api.Client) bool { return c.Reaches(cl.Name) })
}

type clientInput struct {
	Body api.ClientSpec
}

func (in *clientInput) audit() (object, detail string) { return in.Body.Name, "" }

func (s *Server) addClient(ctx context.Context, in *clientInput) (*body[api.Enrolment], error) {
	return bodyOf(s.backend.AddClient(ctx, in.Body))
}

func (s *Server) showClient(ctx context.Context, in *nameInput) (*body[api.Client], error) {
	if err := reach(ctx, in.Name); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.Client(ctx, in.Name))
}

func (s *Server) enrolClient(ctx context.Context, in *nameInput) (*body[api.Enrolment], error) {
	return bodyOf(s.backend.NewEnrolment(ctx, in.Name))
}

func (s *Server) revokeClient(ctx context.Context, in *nameInput) (*body[api.Client], error) {
	return bodyOf(s.backend.RevokeClient(ctx, in.Name))
}
