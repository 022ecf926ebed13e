package server

import (
	"context"
	"strings"

	"coffer/api"
)

type backupInput struct {
	Body api.BackupRequest
}

func (in *backupInput) audit() (object, detail string) {
	return in.Body.Task, "level " + string(in.Body.Level)
}

func (s *Server) startBackup(ctx context.Context, in *backupInput) (*body[api.Run], error) {
	t, err := s.backend.Task(ctx, in.Body.Task)
	if err != nil {
		return nil, err
	}
	if err := reach(ctx, t.Client); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.StartBackup(ctx, in.Body))
}

type restoreInput struct {
	Body api.RestoreRequest
}

func (in *restoreInput) audit() (object, detail string) {
	r := in.Body
	detail = "client " + r.Client + ", mode " + string(r.Mode)
	if r.To != "" {
		detail += ", to " + r.To
	}
	if r.Verify {
		detail += ", verify only"
	}
	if len(r.Command) > 0 {
		detail += ", command " + strings.Join(r.Command, " ")
	}
	if paths := r.AllPaths(); len(paths) > 0 {
		detail += ", paths " + strings.ToValidUTF8(strings.Join(paths, " "), "\uFFFD")
	}
	return r.Saveset, clip(detail)
}

// startRestore asks that the caller reaches both the saveset's client and the target.
func (s *Server) startRestore(ctx context.Context, in *restoreInput) (*body[api.Run], error) {
	set, err := s.saveset(ctx, in.Body.Saveset)
	if err != nil {
		return nil, err
	}
	in.Body.Saveset = set.ID
	if in.Body.Client == "" {
		in.Body.Client = set.Client
	}
	if err := reach(ctx, in.Body.Client); err != nil {
		return nil, err
	}
	if err := checkRestore(&in.Body, set); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.StartRestore(ctx, in.Body))
}

// checkRestore holds a restore's fields against each other and the saveset's type.
func checkRestore(r *api.RestoreRequest, set api.Saveset) error {
	switch {
	case len(r.Command) > 0 && set.Type != api.TaskStream:
		return api.Errorf(api.CodeBadRequest, "saveset %s holds files: only a stream can be restored into a command", set.ID).
			WithHint("give a directory to restore to")
	case len(r.Command) > 0 && (r.To != "" || r.Verify || r.Flat):
		return api.Errorf(api.CodeBadRequest, "a restore into a command takes no target, verify or flat")
	case set.Type == api.TaskStream && len(r.Command) == 0 && r.To == "":
		return api.Errorf(api.CodeBadRequest, "saveset %s is a stream: it has no original place", set.ID).
			WithHint("give a command that reads it, or a file to write it to")
	case r.Flat && r.To == "":
		return api.Errorf(api.CodeBadRequest, "a flat restore needs a directory to restore to")
	case r.Flat && r.Verify:
		return api.Errorf(api.CodeBadRequest, "a flat restore cannot be verified: names may be double")
	}
	for _, p := range r.AllPaths() {
		if !strings.HasPrefix(p, "/") {
			return api.Errorf(api.CodeBadRequest, "path %q is not absolute", p)
		}
	}
	return nil
}

type runsInput struct {
	Task   string       `query:"task" maxLength:"64" doc:"only runs of this task"`
	Client string       `query:"client" maxLength:"64" doc:"only runs on this client"`
	Kind   api.RunKind  `query:"kind" enum:"backup,restore" doc:"only this kind"`
	State  api.RunState `query:"state" enum:"queued,active,success,warning,error,cancelled,missed,suppressed" doc:"only runs in this state"`
	PageInput
}

func (s *Server) listRuns(ctx context.Context, in *runsInput) (*body[api.Page[api.Run]], error) {
	return pageBody(s.backend.Runs(ctx, api.RunFilter{Task: in.Task, Client: in.Client, Clients: reachable(ctx), Kind: in.Kind,
		State: in.State, Before: in.Before, Limit: in.Limit}))
}

// run returns a run that the caller reaches.
func (s *Server) run(ctx context.Context, id string) (api.Run, error) {
	r, err := s.backend.Run(ctx, id)
	if err == nil {
		err = reach(ctx, r.Client)
	}
	return r, err
}

func (s *Server) showRun(ctx context.Context, in *idInput) (*body[api.Run], error) {
	return bodyOf(s.run(ctx, in.ID))
}

// cancelRun lets the roles backup and restore stop what they may start.
func (s *Server) cancelRun(ctx context.Context, in *idInput) (*body[api.Run], error) {
	r, err := s.run(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	role := callerOf(ctx).User.Role
	if role.Limited() && string(r.Kind) != string(role) {
		return nil, api.Errorf(api.CodeForbidden, "role %s may not cancel a %s", role, r.Kind)
	}
	return bodyOf(s.backend.CancelRun(ctx, r.ID))
}

type logInput struct {
	ID    string `path:"id" maxLength:"64"`
	After int64  `query:"after" minimum:"0" default:"0" doc:"only notices with a greater number"`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"items in one page"`
}

func (s *Server) runLog(ctx context.Context, in *logInput) (*body[api.Page[api.Notice]], error) {
	r, err := s.run(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	notices, err := s.backend.Notices(ctx, r.ID, in.After, in.Limit)
	p := api.Page[api.Notice]{Items: notices}
	if len(notices) == in.Limit {
		p.Next = itoa(notices[len(notices)-1].Seq)
	}
	return pageBody(p, err)
}
