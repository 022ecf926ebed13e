package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"coffer/api"
)

func (s *Server) store(ctx context.Context, _ *noInput) (*body[api.Store], error) {
	return bodyOf(s.backend.Store(ctx))
}

func (s *Server) damage(ctx context.Context, _ *noInput) (*body[api.DamageReport], error) {
	return bodyOf(s.backend.Damage(ctx))
}

type dismissInput struct {
	Body api.DismissRequest
}

func (in *dismissInput) audit() (object, detail string) { return in.Body.Object, "" }

func (s *Server) dismiss(ctx context.Context, in *dismissInput) (*noOutput, error) {
	return nil, s.backend.Dismiss(ctx, in.Body.Object)
}

// metrics hands the call to the backend's collectors. They answer in more than one format, so that huma has no part in it.
func (s *Server) metrics(context.Context, *noInput) (*raw, error) {
	return &raw{func(c huma.Context) {
		call := humagin.Unwrap(c)
		s.backend.Metrics().ServeHTTP(call.Writer, call.Request)
	}}, nil
}

type maintenanceInput struct {
	Body api.MaintenanceRequest
}

func (in *maintenanceInput) audit() (object, detail string) {
	o := in.Body.Options
	var parts []string
	add := func(set bool, format string, args ...any) {
		if set {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(o.Sparse > 0, "sparse %g", o.Sparse)
	add(o.Budget > 0, "budget %g s", o.Budget)
	add(o.Rate > 0, "rate %d bytes/s", o.Rate)
	add(o.Half != "", "half %s", o.Half)
	add(o.Shallow, "shallow")
	add(o.Share > 0, "share %g", o.Share)
	for _, f := range o.From {
		add(true, "from %s", f.Path)
	}
	return string(in.Body.Kind), clip(strings.Join(parts, ", "))
}

// startMaintenance lets operators start jobs; what names files of the appliance, or takes the store out of service, is for
// those who set it up.
func (s *Server) startMaintenance(ctx context.Context, in *maintenanceInput) (*body[api.Maintenance], error) {
	privileged := in.Body.Kind == api.MaintenanceReindex || len(in.Body.Options.From) > 0
	if role := callerOf(ctx).User.Role; privileged && role == api.RoleOperator {
		return nil, api.Errorf(api.CodeForbidden, "role %s may not make the index anew, nor read other stores", role).
			WithHint("roles that may: %s", roleList(admins))
	}
	for _, f := range in.Body.Options.From {
		for _, p := range []string{f.Path, f.KeyFile} {
			if p != "" && !strings.HasPrefix(p, "/") {
				return nil, api.Errorf(api.CodeBadRequest, "path %q is not absolute", p)
			}
		}
	}
	return bodyOf(s.backend.StartMaintenance(ctx, in.Body))
}

type maintenanceListInput struct {
	Kind  api.MaintenanceKind `query:"kind" enum:"gc,check,repair,reindex,usage,purge" doc:"only this kind"`
	State api.RunState        `query:"state" enum:"queued,active,success,warning,error,cancelled" doc:"only jobs in this state"`
	PageInput
}

func (s *Server) listMaintenance(ctx context.Context, in *maintenanceListInput) (*body[api.Page[api.Maintenance]], error) {
	return pageBody(s.backend.MaintenanceJobs(ctx, api.MaintenanceFilter{Kind: in.Kind, State: in.State, Before: in.Before, Limit: in.Limit}))
}

func (s *Server) showMaintenance(ctx context.Context, in *idInput) (*body[api.Maintenance], error) {
	return bodyOf(s.backend.MaintenanceJob(ctx, in.ID))
}

func (s *Server) cancelMaintenance(ctx context.Context, in *idInput) (*body[api.Maintenance], error) {
	return bodyOf(s.backend.CancelMaintenance(ctx, in.ID))
}

type maintenanceWatchInput struct {
	ID            string `path:"id" maxLength:"64"`
	Authorization string `header:"Authorization" hidden:"true"`
}

// watchMaintenance streams a job: as it is now, then every change until it has ended. The last event is the job in its
// final state; a stream that ends without it was cut off, and may be opened anew.
func (s *Server) watchMaintenance(ctx context.Context, in *maintenanceWatchInput) (*raw, error) {
	j, err := s.backend.MaintenanceJob(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &raw{func(c huma.Context) {
		w := &maintenanceWatch{server: s, id: j.ID, out: newEventWriter(c)}
		s.stream(c.Context(), in.Authorization, "maintenance job "+j.ID, api.EventFilter{Maintenance: j.ID}, w)
	}}, nil
}

// maintenanceWatch is the watch of one maintenance job.
type maintenanceWatch struct {
	server *Server
	id     string
	out    *eventWriter
}

var _ watch = (*maintenanceWatch)(nil)

func (w *maintenanceWatch) alive() error { return w.out.comment("alive") }

// start sends the job as it is; one that has ended ends the stream.
func (w *maintenanceWatch) start(ctx context.Context) error {
	j, err := w.server.backend.MaintenanceJob(ctx, w.id)
	if err != nil {
		return err
	}
	return w.event(ctx, api.Event{Type: api.EventMaintenance, Time: time.Now().UTC(), Maintenance: &j})
}

func (w *maintenanceWatch) event(_ context.Context, e api.Event) error {
	if e.Type != api.EventMaintenance || e.Maintenance == nil {
		return nil
	}
	if err := w.out.send(e); err != nil {
		return err
	}
	if e.Maintenance.State.Final() {
		return errEnded
	}
	return nil
}
