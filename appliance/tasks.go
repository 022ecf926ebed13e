package appliance

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/appliance/sms"
	"coffer/dedup/seal"
)

// askPatience is how long an agent has to answer a question about its files.
const askPatience = 20 * time.Second

// tasks implements server.Tasks.
type tasks struct{ *appliance }

var _ server.Tasks = tasks{}

func noTask(name string, err error) error {
	if catalog.KindOf(err) == catalog.KindNotFound {
		return api.Errorf(api.CodeNotFound, "there is no task %q", name).WithHint("see: coffer task list")
	}
	return apiError(err)
}

// Tasks implements server.Tasks.
func (t tasks) Tasks(ctx context.Context) ([]api.Task, error) {
	all, err := t.catalog.Tasks(ctx)
	return mapped(all, apiTask), apiError(err)
}

// Task implements server.Tasks.
func (t tasks) Task(ctx context.Context, name string) (api.Task, error) {
	task, err := t.catalog.Task(ctx, name)
	if err != nil {
		return api.Task{}, noTask(name, err)
	}
	return apiTask(task), nil
}

// AddTask implements server.Tasks.
func (t tasks) AddTask(ctx context.Context, s api.TaskSpec) (api.Task, error) {
	if s.Type == "" {
		s.Type = api.TaskPath
	}
	if s.Pool == "" {
		s.Pool = catalog.DefaultPool
	}
	if s.Type == api.TaskStream && s.StreamName == "" {
		s.StreamName = s.Name
	}
	if faults := checkTask(s); len(faults) > 0 {
		out := api.Errorf(api.CodeBadRequest, "the task %q contradicts itself", s.Name)
		out.Fields = faults
		return api.Task{}, out
	}
	if _, err := t.catalog.Client(ctx, s.Client); err != nil {
		return api.Task{}, noClient(s.Client, err)
	}
	if _, err := t.catalog.Pool(ctx, s.Pool); err != nil {
		return api.Task{}, noPool(s.Pool, err)
	}
	if _, err := t.catalog.Task(ctx, s.Name); err == nil {
		return api.Task{}, api.Errorf(api.CodeExists, "there is a task %q already", s.Name)
	}
	if s.Mover != "" {
		if _, err := t.catalog.Client(ctx, s.Mover); err != nil {
			return api.Task{}, noClient(s.Mover, err)
		}
	}
	err := t.askSources(ctx, &s)
	if err != nil {
		return api.Task{}, err
	}
	task := taskOf(s)
	if task.Options.Seal, err = t.taskSeal(ctx, s.Encryption); err != nil {
		return api.Task{}, err
	}
	made, err := t.catalog.AddTask(ctx, task)
	if catalog.KindOf(err) == catalog.KindExists {
		return api.Task{}, api.Errorf(api.CodeExists, "there is a task %q already", s.Name)
	}
	return apiTask(made), apiError(err)
}

// taskSeal makes the dedup domain of an encrypted task: nobody else writes into it, and so learns from it what others store.
func (t tasks) taskSeal(ctx context.Context, e *api.TaskEncryption) (*catalog.TaskSeal, error) {
	if e == nil {
		return nil, nil
	}
	store, err := t.store.get()
	if err != nil {
		return nil, lockedError(err)
	}
	d, err := store.AddDomain(ctx, seal.MaxPlain)
	if err != nil {
		return nil, apiError(err)
	}
	return &catalog.TaskSeal{Domain: d.ID.String(), KeyID: strings.ToLower(e.KeyID), KeyFile: e.KeyFile}, nil
}

func taskOf(s api.TaskSpec) catalog.Task {
	task := catalog.Task{Name: s.Name, Client: s.Client, Type: string(s.Type), Pool: s.Pool, Options: catalog.TaskOptions{
		Excludes: s.Excludes, Images: s.Images, OneFileSystem: s.OneFileSystem, Command: s.Command, StreamName: s.StreamName,
		PreCommand: s.PreCommand, PostCommand: s.PostCommand, Mover: s.Mover, Libvirt: machineOf(s.Machine)}}
	for _, source := range s.Sources {
		task.Options.Sources = append(task.Options.Sources, []byte(source))
	}
	return task
}

// windowsPath is a path with a drive or a share, as Windows' agents have them.
var windowsPath = regexp.MustCompile(`^([A-Za-z]:[\\/]|\\\\)`)

// checkTask holds the fields of a task against each other; it reports every fault at once.
func checkTask(s api.TaskSpec) []api.FieldError {
	var faults []api.FieldError
	fault := func(field, format string, args ...any) {
		faults = append(faults, api.FieldError{Location: "body." + field, Message: fmt.Sprintf(format, args...)})
	}
	if e := s.Encryption; e != nil {
		if id, err := seal.ParseID(e.KeyID); err != nil || id.IsZero() {
			fault("encryption.key_id", "%q is not the id of a task key: 'coffer-agent task-key new' on the client prints it", e.KeyID)
		}
		if e.KeyFile != "" && !strings.HasPrefix(e.KeyFile, "/") && !windowsPath.MatchString(e.KeyFile) {
			fault("encryption.key_file", "%q is not an absolute path of the client", e.KeyFile)
		}
	}
	if s.Type == api.TaskStream {
		if len(s.Command) == 0 || s.Command[0] == "" {
			fault("command", "a task of type stream needs the command whose output it stores")
		}
		if len(s.Sources)+len(s.Excludes)+len(s.Images) > 0 || s.OneFileSystem {
			fault("sources", "a task of type stream has neither sources nor excludes")
		}
		if strings.ContainsAny(s.StreamName, "/\x00") || s.StreamName == "." || s.StreamName == ".." {
			fault("stream_name", "%q cannot be a file's name", s.StreamName)
		}
		return faults
	}
	if s.Type == api.TaskLibvirt {
		checkMachine(s, fault)
		return faults
	}
	if len(s.Sources) == 0 {
		fault("sources", "a task of type path needs at least one source")
	}
	for i, source := range s.Sources {
		switch {
		case !strings.HasPrefix(source, "/") && !windowsPath.MatchString(source):
			fault(fmt.Sprintf("sources[%d]", i), "%q is not an absolute path", source)
		case strings.ContainsRune(source, 0):
			fault(fmt.Sprintf("sources[%d]", i), "a path has no NUL byte")
		}
	}
	if len(s.Command) > 0 || s.StreamName != "" {
		fault("command", "a task of type path has no command: use pre_command and post_command, or type stream")
	}
	return faults
}

// askSources asks the agent whether all sources exist. A stream's command is asked for when it is an absolute path.
func (t tasks) askSources(ctx context.Context, s *api.TaskSpec) error {
	if s.Type == api.TaskLibvirt {
		return t.askMachine(ctx, s)
	}
	paths := s.Sources
	if s.Type == api.TaskStream {
		if !strings.HasPrefix(s.Command[0], "/") {
			return nil
		}
		paths = s.Command[:1]
	}
	if err := t.jobs.Admit(ctx, s.Client); err != nil {
		return apiError(err)
	}
	order := sms.Order{ID: newID("o"), Kind: sms.OrderStat, Stat: &sms.StatOrder{}}
	for _, p := range paths {
		order.Stat.Paths = append(order.Stat.Paths, sms.Path(p))
	}
	ctx, done := context.WithTimeoutCause(ctx, askPatience, errNoAnswer)
	defer done()
	reply, err := t.agents.Send(ctx, s.Client, order)
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.CodeTimeout, "the agent of client %s did not answer within %s", s.Client, askPatience)
	}
	if err != nil {
		return apiError(err)
	}
	return sourcesExist(s.Client, paths, reply.Stat)
}

func sourcesExist(client string, paths []string, reply *sms.StatReply) error {
	if reply == nil || len(reply.Files) != len(paths) {
		return api.Errorf(api.CodeSourceRefused, "the agent of client %s did not answer for every source", client)
	}
	var faults []api.FieldError
	for i, f := range reply.Files {
		switch {
		case f.Exists:
		case f.Error != "":
			faults = append(faults, api.FieldError{Message: fmt.Sprintf("%s: %s", paths[i], f.Error)})
		default:
			faults = append(faults, api.FieldError{Message: paths[i] + " does not exist"})
		}
	}
	if len(faults) == 0 {
		return nil
	}
	out := api.Errorf(api.CodeSourceRefused, "client %s does not have this source", client).
		WithHint("check the spelling, and that its file system is mounted")
	out.Fields = faults
	return out
}

// RemoveTask implements server.Tasks.
func (t tasks) RemoveTask(ctx context.Context, name string) error {
	err := t.catalog.RemoveTask(ctx, name)
	if catalog.KindOf(err) == catalog.KindInUse {
		return api.Errorf(api.CodeInUse, "a run of task %s has not ended", name).WithHint("wait for it, or cancel it")
	}
	if err != nil {
		return noTask(name, err)
	}
	return nil
}

func noPool(name string, err error) error {
	if catalog.KindOf(err) == catalog.KindNotFound {
		return api.Errorf(api.CodeNotFound, "there is no media pool %q", name).WithHint("see: coffer pool list")
	}
	return apiError(err)
}

// Pools implements server.Tasks.
func (t tasks) Pools(ctx context.Context) ([]api.Pool, error) {
	all, err := t.catalog.Pools(ctx)
	return mapped(all, apiPool), apiError(err)
}

// Pool implements server.Tasks.
func (t tasks) Pool(ctx context.Context, name string) (api.Pool, error) {
	p, err := t.catalog.Pool(ctx, name)
	if err != nil {
		return api.Pool{}, noPool(name, err)
	}
	return apiPool(p), nil
}
