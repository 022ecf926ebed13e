package appliance

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"coffer/api"
	"coffer/appliance/catalog"
	"coffer/appliance/jobs"
)

// mapped converts a slice; the result is never nil.
func mapped[A, B any](in []A, f func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

// at is a time of the API that may be absent.
func at(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func apiUser(u catalog.User) api.User {
	return api.User{Name: u.Name, Role: api.Role(u.Role), Clients: u.Clients, MustChange: u.MustChange, CreatedAt: u.CreatedAt, LastLogin: at(u.LastLogin)}
}

func apiToken(t catalog.Token) api.Token {
	return api.Token{ID: t.ID, User: t.User, Name: t.Name, CreatedAt: t.CreatedAt, ExpiresAt: at(t.ExpiresAt), LastUsed: at(t.LastUsed)}
}

func apiAudit(e catalog.AuditEntry) api.AuditEntry {
	return api.AuditEntry{ID: strconv.FormatInt(e.ID, 10), Time: e.Time, User: e.User, Remote: e.Remote, Action: e.Action,
		Object: e.Object, OK: e.OK, Detail: e.Detail}
}

func apiTask(t catalog.Task) api.Task {
	out := api.Task{Name: t.Name, Client: t.Client, Type: api.TaskType(t.Type), Excludes: t.Options.Excludes,
		Images: t.Options.Images, OneFileSystem: t.Options.OneFileSystem, Command: t.Options.Command, StreamName: t.Options.StreamName,
		PreCommand: t.Options.PreCommand, PostCommand: t.Options.PostCommand, Pool: t.Pool, CreatedAt: t.CreatedAt}
	for _, s := range t.Options.Sources {
		out.Sources = append(out.Sources, strings.ToValidUTF8(string(s), "\uFFFD"))
	}
	out.Machine, out.Mover = apiMachine(t.Options.Libvirt), t.Options.Mover
	if s := t.Options.Seal; s != nil {
		out.Encryption = &api.TaskEncryption{KeyID: s.KeyID, KeyFile: s.KeyFile}
	}
	return out
}

func apiPool(p catalog.Pool) api.Pool {
	return api.Pool{Name: p.Name, RetentionDays: p.RetentionDays, Savesets: p.Savesets, Bytes: p.Bytes, Stored: p.Stored, CreatedAt: p.CreatedAt}
}

func apiSaveset(s catalog.Saveset) api.Saveset {
	return api.Saveset{ID: s.ID, Client: s.Client, Task: s.Task, Type: api.TaskType(s.TaskType), Pool: s.Pool, Run: s.Run,
		State: api.RunState(s.State), LevelRequested: api.Level(s.LevelRequested), Level: api.Level(s.Level), LevelReason: s.Reason,
		Parent: s.Parent, StartedAt: s.Started, EndedAt: s.Ended, EOL: s.EOL, EOLCause: s.EOLCause,
		Locked: s.Locked, ImmutableUntil: at(s.ImmutableUntil), Entries: s.Entries, Bytes: s.Logical, BytesNew: s.New,
		BytesStored: s.Stored, Sources: s.Sources, StreamName: s.StreamName, Warnings: s.Warnings}
}

func apiRun(i jobs.Info) api.Run {
	out := api.Run{ID: i.ID, Kind: api.RunKind(i.Kind), State: api.RunState(i.State), Task: i.Task, Client: i.Client, User: i.User,
		LevelRequested: api.Level(i.LevelRequested), LevelEffective: api.Level(i.Level), LevelReason: i.LevelReason, Saveset: i.Saveset,
		QueuedAt: i.Queued, StartedAt: at(i.Started), EndedAt: at(i.Ended), Reason: i.Reason, Hint: i.Hint, Warnings: i.Warnings,
		Progress: apiProgress(i)}
	out.Restore = restoreRequest(i.Request)
	return out
}

// restoreRequest is what a restore was asked to do; nil for other runs, and for what does not read.
func restoreRequest(raw json.RawMessage) *api.RestoreRequest {
	var req api.RestoreRequest
	if len(raw) == 0 || json.Unmarshal(raw, &req) != nil {
		return nil
	}
	return &req
}

func verifies(raw json.RawMessage) bool {
	req := restoreRequest(raw)
	return req != nil && req.Verify
}

func apiProgress(i jobs.Info) api.Progress {
	c := i.Progress.Counters
	p := api.Progress{
		Entries: int64(c.Entries), EntriesTotal: int64(i.Progress.TotalEntries), Bytes: int64(c.BytesRead), BytesTotal: int64(i.Progress.TotalBytes),
		BytesRead: int64(c.BytesRead), BytesNew: int64(c.BytesNew), BytesSent: int64(c.BytesSent), BytesStored: int64(i.Progress.Stored),
		FilesChanged: int64(c.Files), FilesSame: int64(c.Unchanged), DifferFiles: int64(i.Progress.Different),
		Stages: api.Stages{Source: i.Stages.Source.Seconds(), Hashing: i.Stages.Hashing.Seconds(), Compress: i.Stages.Compress.Seconds(),
			Network: i.Stages.Network.Seconds(), Store: i.Stages.Store.Seconds()},
	}
	if i.Progress.Logical > 0 {
		p.Bytes = int64(i.Progress.Logical)
	}
	p.CurrentPath, _ = api.Text(string(i.Progress.Current))
	if i.Kind == catalog.RunRestore {
		p.FilesChanged, p.FilesSame, p.SkippedFiles = 0, 0, int64(c.Unchanged)
		if verifies(i.Request) {
			p.VerifiedFiles = max(0, int64(c.Files)-p.DifferFiles)
		} else {
			p.FilesNew = int64(c.Files)
		}
	}
	return p
}

func apiNotice(n catalog.Notice) api.Notice {
	out := api.Notice{Seq: n.Seq, Time: n.Time, Severity: api.Severity(n.Severity), Code: n.Code, Message: n.Message}
	out.Path, out.PathRaw = api.Text(n.Path)
	return out
}

// page cuts a list that was read with one item more than the limit: the cursor is the last item's, where more follow.
func page[A, B any](items []A, limit int, conv func(A) B, cursor func(A) string) api.Page[B] {
	var out api.Page[B]
	if limit > 0 && len(items) > limit {
		items = items[:limit]
		out.Next = cursor(items[limit-1])
	}
	out.Items = mapped(items, conv)
	return out
}
