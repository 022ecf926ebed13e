package server

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"coffer/api"
)

func (s *Server) listExports(ctx context.Context, _ *noInput) (*body[api.Page[api.Export]], error) {
	items, err := s.backend.Exports(ctx)
	return listBody(items, err, func(e api.Export) bool { return reach(ctx, e.Client) == nil })
}

// export returns an export that the caller reaches.
func (s *Server) export(ctx context.Context, id string) (api.Export, error) {
	e, err := s.backend.Export(ctx, id)
	if err == nil {
		err = reach(ctx, e.Client)
	}
	return e, err
}

func (s *Server) showExport(ctx context.Context, in *idInput) (*body[api.Export], error) {
	return bodyOf(s.export(ctx, in.ID))
}

type exportInput struct {
	Body api.ExportSpec
}

func (in *exportInput) audit() (object, detail string) {
	b := in.Body
	detail = "disk " + b.Disk
	if b.Disk == "" {
		detail = "its only disk"
	}
	if b.Overlay {
		detail += ", with overlay"
	}
	if b.BytesLimit > 0 {
		detail += fmt.Sprintf(" of at most %d bytes", b.BytesLimit)
	}
	if len(b.Clients) > 0 {
		detail += ", for " + strings.Join(b.Clients, " ")
	}
	return b.Saveset, clip(detail)
}

// addExport asks that the caller reaches the saveset's client and all who may see the export: an export is a restore to them.
func (s *Server) addExport(ctx context.Context, in *exportInput) (*body[api.Export], error) {
	set, err := s.saveset(ctx, in.Body.Saveset)
	if err != nil {
		return nil, err
	}
	in.Body.Saveset = set.ID
	for _, name := range in.Body.Clients {
		if name == api.ExportAnybody {
			if role := callerOf(ctx).User.Role; !slices.Contains(admins, role) {
				return nil, api.Errorf(api.CodeForbidden, "role %s may not show an export to everybody", role).WithHint("roles that may: %s", roleList(admins))
			}
			continue
		}
		if err := reach(ctx, name); err != nil {
			return nil, err
		}
		if _, err := s.backend.Client(ctx, name); err != nil {
			return nil, err
		}
	}
	return bodyOf(s.backend.AddExport(ctx, in.Body))
}

type dropInput struct {
	ID    string `path:"id" maxLength:"64"`
	Force bool   `query:"force" doc:"also with open connections, which are cut off"`
}

func (in *dropInput) audit() (object, detail string) {
	if in.Force {
		return in.ID, "forced"
	}
	return in.ID, ""
}

func (s *Server) dropExport(ctx context.Context, in *dropInput) (*noOutput, error) {
	if _, err := s.export(ctx, in.ID); err != nil {
		return nil, err
	}
	return nil, s.backend.DropExport(ctx, in.ID, in.Force)
}

func (s *Server) commitExport(ctx context.Context, in *idInput) (*body[api.Run], error) {
	if _, err := s.export(ctx, in.ID); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.CommitExport(ctx, in.ID))
}
