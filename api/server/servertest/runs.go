package servertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"coffer/api"
	"coffer/api/server"
)

// Clients lists clients.
func (b *Backend) Clients(context.Context) ([]api.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return sorted(b.clients), nil
}

// Client returns a client.
func (b *Backend) Client(_ context.Context, name string) (api.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.clients[name]
	if !ok {
		return c, notFound("client", name)
	}
	return c, nil
}

// AddClient adds a client.
func (b *Backend) AddClient(_ context.Context, s api.ClientSpec) (api.Enrolment, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.clients[s.Name]; ok {
		return api.Enrolment{}, api.Errorf(api.CodeExists, "there is a client %s already", s.Name).WithHint("'coffer client token %s' makes a new enrolment token", s.Name)
	}
	b.clients[s.Name] = api.Client{Name: s.Name, State: api.ClientPending, CreatedAt: Epoch}
	return enrolment(s.Name), b.Fail
}

func enrolment(name string) api.Enrolment {
	return api.Enrolment{Client: name, Token: "coffer-enrol-" + name, ExpiresAt: Epoch.Add(time.Hour), Server: "backup1:11301"}
}

// NewEnrolment makes a token.
func (b *Backend) NewEnrolment(ctx context.Context, name string) (api.Enrolment, error) {
	if _, err := b.Client(ctx, name); err != nil {
		return api.Enrolment{}, err
	}
	return enrolment(name), b.Fail
}

// RevokeClient revokes a client.
func (b *Backend) RevokeClient(ctx context.Context, name string) (api.Client, error) {
	c, err := b.Client(ctx, name)
	if err != nil {
		return c, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c.State = api.ClientRevoked
	b.clients[name] = c
	b.publish(api.Event{Type: api.EventClient, Client: &c})
	return c, b.Fail
}

// Tasks lists tasks.
func (b *Backend) Tasks(context.Context) ([]api.Task, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return sorted(b.tasks), nil
}

// Task returns a task.
func (b *Backend) Task(_ context.Context, name string) (api.Task, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, ok := b.tasks[name]
	if !ok {
		return t, notFound("task", name).(*api.Error).WithHint("'coffer task list' shows them")
	}
	return t, nil
}

// AddTask adds a task; a source /missing is refused.
func (b *Backend) AddTask(ctx context.Context, s api.TaskSpec) (api.Task, error) {
	if _, err := b.Client(ctx, s.Client); err != nil {
		return api.Task{}, err
	}
	if slices.Contains(s.Sources, "/missing") {
		return api.Task{}, api.Errorf(api.CodeSourceRefused, "client %s refuses source /missing: no such file or directory", s.Client)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := api.Task{Name: s.Name, Client: s.Client, Type: s.Type, Sources: s.Sources, Excludes: s.Excludes, Images: s.Images, OneFileSystem: s.OneFileSystem, Command: s.Command,
		StreamName: s.StreamName, PreCommand: s.PreCommand, PostCommand: s.PostCommand, Pool: "default", CreatedAt: Epoch, Encryption: s.Encryption,
		Machine: s.Machine, Mover: s.Mover}
	b.tasks[s.Name] = t
	return t, b.Fail
}

// RemoveTask removes a task.
func (b *Backend) RemoveTask(ctx context.Context, name string) error {
	if _, err := b.Task(ctx, name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.tasks, name)
	return b.Fail
}

var pool = api.Pool{Name: "default", RetentionDays: 30, Savesets: 3, Bytes: 156 << 20, Stored: 39 << 20, CreatedAt: Epoch}

// Pools lists the one pool.
func (b *Backend) Pools(context.Context) ([]api.Pool, error) { return []api.Pool{pool}, nil }

// Pool returns it.
func (b *Backend) Pool(_ context.Context, name string) (api.Pool, error) {
	if name != pool.Name {
		return api.Pool{}, notFound("pool", name)
	}
	return pool, nil
}

// StartBackup starts a run that a test ends; tasks of client db1, which is offline, are refused.
func (b *Backend) StartBackup(ctx context.Context, r api.BackupRequest) (api.Run, error) {
	t, err := b.Task(ctx, r.Task)
	if err != nil {
		return api.Run{}, err
	}
	if t.Client == "db1" {
		return api.Run{}, api.Errorf(api.CodeClientOffline, "client db1 is offline; it was last seen at %s", Epoch.Format(time.RFC3339)).
			WithHint("start coffer-agent on it, or see why it cannot reach the appliance")
	}
	return b.start(ctx, api.Run{Kind: api.RunBackup, Task: t.Name, Client: t.Client, LevelRequested: r.Level, LevelEffective: r.Level, LevelReason: "requested"}), b.Fail
}

// StartRestore starts a run that a test ends.
func (b *Backend) StartRestore(ctx context.Context, r api.RestoreRequest) (api.Run, error) {
	b.mu.Lock()
	b.Restores = append(b.Restores, r)
	b.mu.Unlock()
	return b.start(ctx, api.Run{Kind: api.RunRestore, Client: r.Client, Saveset: r.Saveset, Restore: &r}), b.Fail
}

func (b *Backend) start(ctx context.Context, r api.Run) api.Run {
	caller, _ := api.CallerFrom(ctx)
	r.User = caller.User.Name
	b.mu.Lock()
	defer b.mu.Unlock()
	b.runCount++
	at := Epoch.Add(48 * time.Hour)
	r.ID, r.State, r.QueuedAt, r.StartedAt = fmt.Sprintf("run-%04d", b.runCount), api.RunActive, at, &at
	b.runs = append(b.runs, r)
	b.publish(api.Event{Type: api.EventRun, Run: &r})
	return r
}

// Update changes a run and tells the watchers.
func (b *Backend) Update(id string, change func(*api.Run)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.runs {
		if b.runs[i].ID == id {
			change(&b.runs[i])
			r := b.runs[i]
			b.publish(api.Event{Type: api.EventRun, Run: &r})
		}
	}
}

// End ends a run in a state, 10 seconds after its start.
func (b *Backend) End(id string, s api.RunState, reason string) {
	b.Update(id, func(r *api.Run) {
		end := r.StartedAt.Add(10 * time.Second)
		r.State, r.Reason, r.EndedAt = s, reason, &end
	})
}

// Note adds a notice to a run's log and tells the watchers.
func (b *Backend) Note(id string, n api.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n.Seq, n.Time = int64(len(b.notices[id])+1), Epoch
	b.notices[id] = append(b.notices[id], n)
	b.publish(api.Event{Type: api.EventNotice, RunID: id, Notice: &n})
}

// publish tells the watchers; the lock is held.
func (b *Backend) publish(e api.Event) {
	e.Time = Epoch
	for ch, f := range b.subs {
		if f.Run != "" && f.Run != e.RunID && (e.Run == nil || e.Run.ID != f.Run) ||
			f.Maintenance != "" && (e.Maintenance == nil || e.Maintenance.ID != f.Maintenance) {
			continue
		}
		select {
		case ch <- e:
		default:
			close(ch)
			delete(b.subs, ch)
		}
	}
}

// Drop closes every subscription, as the backend does with watchers that are too slow.
func (b *Backend) Drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		close(ch)
	}
	clear(b.subs)
}

// Watchers is the number of subscriptions.
func (b *Backend) Watchers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs)
}

// Subscribe watches.
func (b *Backend) Subscribe(ctx context.Context, f api.EventFilter) (<-chan api.Event, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan api.Event, 64)
	b.subs[ch] = f
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.subs[ch]; ok {
			delete(b.subs, ch)
			close(ch)
		}
	})
	return ch, nil
}

// Runs lists runs.
func (b *Backend) Runs(_ context.Context, f api.RunFilter) (p api.Page[api.Run], _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range slices.Backward(b.runs) {
		if (f.Task == "" || r.Task == f.Task) && (f.Client == "" || r.Client == f.Client) && (f.Clients == nil || slices.Contains(f.Clients, r.Client)) &&
			(f.Kind == "" || r.Kind == f.Kind) && (f.State == "" || r.State == f.State) && (f.Before == "" || r.ID < f.Before) {
			p.Items = append(p.Items, r)
		}
	}
	return cut(p, f.Limit, func(r api.Run) string { return r.ID }), nil
}

// Run returns a run.
func (b *Backend) Run(_ context.Context, id string) (api.Run, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.runs {
		if r.ID == id {
			return r, nil
		}
	}
	return api.Run{}, notFound("run", id)
}

// Notices returns a run's log.
func (b *Backend) Notices(_ context.Context, id string, after int64, limit int) ([]api.Notice, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.notices[id]
	all = all[min(int(after), len(all)):]
	return slices.Clone(all[:min(limit, len(all))]), nil
}

// CancelRun ends a run at once.
func (b *Backend) CancelRun(ctx context.Context, id string) (api.Run, error) {
	r, err := b.Run(ctx, id)
	if err != nil {
		return r, err
	}
	if r.State.Final() {
		return r, api.Errorf(api.CodeConflict, "run %s has ended %s already", id, r.State)
	}
	b.End(id, api.RunCancelled, "cancelled by a user")
	return b.Run(ctx, id)
}

// Savesets lists savesets.
func (b *Backend) Savesets(_ context.Context, f api.SavesetFilter) (p api.Page[api.Saveset], _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := f.Before == ""
	for _, s := range slices.Backward(b.savesets) {
		if before && (f.Task == "" || s.Task == f.Task) && (f.Client == "" || s.Client == f.Client) && (f.Clients == nil || slices.Contains(f.Clients, s.Client)) {
			p.Items = append(p.Items, s)
		}
		before = before || s.ID == f.Before
	}
	return cut(p, f.Limit, func(s api.Saveset) string { return s.ID }), nil
}

// Saveset returns a saveset by its id or a prefix.
func (b *Backend) Saveset(_ context.Context, id string) (api.Saveset, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.savesets {
		if s.ID == id || (len(id) >= 6 && strings.HasPrefix(s.ID, id)) {
			s.Kept = []api.KeptReason{{Cause: api.KeptEOL, Until: &s.EOL}}
			return s, nil
		}
	}
	return api.Saveset{}, notFound("saveset", id).(*api.Error).WithHint("'coffer saveset list' shows them")
}

// OpenTree opens the one sample tree.
func (b *Backend) OpenTree(context.Context, string) (server.Tree, error) { return b.tree, nil }
