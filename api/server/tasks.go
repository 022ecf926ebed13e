package server

import (
	"context"
	"strings"

	"coffer/api"
)

func (s *Server) listTasks(ctx context.Context, _ *noInput) (*body[api.Page[api.Task]], error) {
	c := callerOf(ctx)
	tasks, err := s.backend.Tasks(ctx)
	return listBody(tasks, err, func(t api.Task) bool { return c.Reaches(t.Client) })
}

type taskInput struct {
	Body api.TaskSpec
}

func (in *taskInput) audit() (object, detail string) {
	source := in.Body.Sources
	if in.Body.Type == api.TaskStream {
		source = in.Body.Command
	}
	if m := in.Body.Machine; m != nil {
		source = []string{m.Domain, m.UUID, m.URI}
	}
	return in.Body.Name, "client " + in.Body.Client + ", " + string(in.Body.Type) + " " + clip(strings.Join(source, " "))
}

// clip keeps an audit line readable.
func clip(s string) string {
	const most = 500
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

func (s *Server) addTask(ctx context.Context, in *taskInput) (*body[api.Task], error) {
	if err := checkTask(&in.Body); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.AddTask(ctx, in.Body))
}

// checkTask holds a task's fields against its type.
func checkTask(t *api.TaskSpec) error {
	var faults []api.FieldError
	fault := func(field, msg string) {
		faults = append(faults, api.FieldError{Location: "body." + field, Message: msg})
	}
	switch t.Type {
	case api.TaskPath:
		if len(t.Sources) == 0 {
			fault("sources", "a task of type path needs at least one source")
		}
		if len(t.Command) > 0 || t.StreamName != "" {
			fault("command", "only tasks of type stream have a command")
		}
	case api.TaskStream:
		if len(t.Command) == 0 {
			fault("command", "a task of type stream needs a command")
		}
		if len(t.Sources) > 0 || len(t.Excludes) > 0 || len(t.Images) > 0 || t.OneFileSystem {
			fault("sources", "a task of type stream has a command, no sources and excludes")
		}
		if strings.ContainsAny(t.StreamName, "/\x00") || t.StreamName == "." || t.StreamName == ".." {
			fault("stream_name", "must be a file name without slashes")
		}
	case api.TaskLibvirt:
		checkMachine(t, fault)
	}
	if t.Type != api.TaskLibvirt && (t.Machine != nil || t.Mover != "") {
		fault("libvirt", "only tasks of type libvirt have a domain and a data mover")
	}
	if len(faults) == 0 {
		return nil
	}
	e := api.Errorf(api.CodeBadRequest, "the task %s is not valid", t.Name)
	e.Fields = faults
	return e
}

func (s *Server) showTask(ctx context.Context, in *nameInput) (*body[api.Task], error) {
	t, err := s.backend.Task(ctx, in.Name)
	if err == nil {
		err = reach(ctx, t.Client)
	}
	return bodyOf(t, err)
}

func (s *Server) removeTask(ctx context.Context, in *nameInput) (*noOutput, error) {
	return nil, s.backend.RemoveTask(ctx, in.Name)
}

func (s *Server) listPools(ctx context.Context, _ *noInput) (*body[api.Page[api.Pool]], error) {
	pools, err := s.backend.Pools(ctx)
	return listBody(pools, err, nil)
}

func (s *Server) showPool(ctx context.Context, in *nameInput) (*body[api.Pool], error) {
	return bodyOf(s.backend.Pool(ctx, in.Name))
}
