package client

import (
	"context"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"coffer/api"
)

const (
	get  = http.MethodGet
	post = http.MethodPost
	put  = http.MethodPut
	del  = http.MethodDelete
)

// fetch gets a document of type T.
func fetch[T any](ctx context.Context, c *Client, path string, q url.Values) (out T, err error) {
	err = c.call(ctx, request{method: get, path: path, query: q}, &out)
	return out, err
}

// send posts or puts a body and decodes the answer of type T.
func send[T any](ctx context.Context, c *Client, method, path string, body any) (out T, err error) {
	err = c.call(ctx, request{method: method, path: path, body: body}, &out)
	return out, err
}

// items gets a list that has no pages.
func items[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	p, err := fetch[api.Page[T]](ctx, c, path, nil)
	return p.Items, err
}

// values makes a query of the pairs whose value is not empty.
func values(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// System says what runs.
func (c *Client) System(ctx context.Context) (api.System, error) {
	return fetch[api.System](ctx, c, "/system", nil)
}

// Login opens a session; use its token with WithToken.
func (c *Client) Login(ctx context.Context, r api.LoginRequest) (api.Session, error) {
	return send[api.Session](ctx, c, post, "/login", r)
}

// Logout ends the session of the client's token.
func (c *Client) Logout(ctx context.Context) error {
	return c.call(ctx, request{method: post, path: "/logout"}, nil)
}

// Whoami says whose the client's token is.
func (c *Client) Whoami(ctx context.Context) (api.Identity, error) {
	return fetch[api.Identity](ctx, c, "/whoami", nil)
}

// ChangePassword changes the caller's own password.
func (c *Client) ChangePassword(ctx context.Context, p api.PasswordChange) error {
	return c.call(ctx, request{method: put, path: "/password", body: p}, nil)
}

// Users lists users.
func (c *Client) Users(ctx context.Context) ([]api.User, error) {
	return items[api.User](ctx, c, "/users")
}

// AddUser adds a user.
func (c *Client) AddUser(ctx context.Context, s api.UserSpec) (api.User, error) {
	return send[api.User](ctx, c, post, "/users", s)
}

// SetUserRole changes what a user may do.
func (c *Client) SetUserRole(ctx context.Context, name string, r api.UserRole) (api.User, error) {
	return send[api.User](ctx, c, put, "/users"+seg(name)+"/role", r)
}

// RemoveUser removes a user.
func (c *Client) RemoveUser(ctx context.Context, name string) error {
	return c.call(ctx, request{method: del, path: "/users" + seg(name)}, nil)
}

// Tokens lists API tokens: the caller's own, for the superuser all.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	return items[api.Token](ctx, c, "/tokens")
}

// AddToken makes an API token for the caller.
func (c *Client) AddToken(ctx context.Context, s api.TokenSpec) (api.NewToken, error) {
	return send[api.NewToken](ctx, c, post, "/tokens", s)
}

// RemoveToken removes an API token.
func (c *Client) RemoveToken(ctx context.Context, id string) error {
	return c.call(ctx, request{method: del, path: "/tokens" + seg(id)}, nil)
}

// Clients lists clients.
func (c *Client) Clients(ctx context.Context) ([]api.Client, error) {
	return items[api.Client](ctx, c, "/clients")
}

// Client returns one client.
func (c *Client) Client(ctx context.Context, name string) (api.Client, error) {
	return fetch[api.Client](ctx, c, "/clients"+seg(name), nil)
}

// AddClient adds a client and returns its enrolment token.
func (c *Client) AddClient(ctx context.Context, s api.ClientSpec) (api.Enrolment, error) {
	return send[api.Enrolment](ctx, c, post, "/clients", s)
}

// NewEnrolment makes a new enrolment token.
func (c *Client) NewEnrolment(ctx context.Context, name string) (api.Enrolment, error) {
	return send[api.Enrolment](ctx, c, post, "/clients"+seg(name)+"/token", nil)
}

// RevokeClient refuses the client's certificates from now on.
func (c *Client) RevokeClient(ctx context.Context, name string) (api.Client, error) {
	return send[api.Client](ctx, c, post, "/clients"+seg(name)+"/revoke", nil)
}

// Tasks lists tasks.
func (c *Client) Tasks(ctx context.Context) ([]api.Task, error) {
	return items[api.Task](ctx, c, "/tasks")
}

// Task returns one task.
func (c *Client) Task(ctx context.Context, name string) (api.Task, error) {
	return fetch[api.Task](ctx, c, "/tasks"+seg(name), nil)
}

// AddTask makes a task.
func (c *Client) AddTask(ctx context.Context, s api.TaskSpec) (api.Task, error) {
	return send[api.Task](ctx, c, post, "/tasks", s)
}

// RemoveTask removes a task.
func (c *Client) RemoveTask(ctx context.Context, name string) error {
	return c.call(ctx, request{method: del, path: "/tasks" + seg(name)}, nil)
}

// Pools lists media pools.
func (c *Client) Pools(ctx context.Context) ([]api.Pool, error) {
	return items[api.Pool](ctx, c, "/pools")
}

// Pool returns one media pool.
func (c *Client) Pool(ctx context.Context, name string) (api.Pool, error) {
	return fetch[api.Pool](ctx, c, "/pools"+seg(name), nil)
}

// Backup starts a backup.
func (c *Client) Backup(ctx context.Context, r api.BackupRequest) (api.Run, error) {
	return send[api.Run](ctx, c, post, "/backups", r)
}

// Restore starts a restore.
func (c *Client) Restore(ctx context.Context, r api.RestoreRequest) (api.Run, error) {
	return send[api.Run](ctx, c, post, "/restores", r)
}

// Runs lists a page of runs, newest first; the filter's Clients is not sent.
func (c *Client) Runs(ctx context.Context, f api.RunFilter) (api.Page[api.Run], error) {
	return fetch[api.Page[api.Run]](ctx, c, "/runs", values("task", f.Task, "client", f.Client, "kind", string(f.Kind),
		"state", string(f.State), "before", f.Before, "limit", number(f.Limit)))
}

// Run returns one run.
func (c *Client) Run(ctx context.Context, id string) (api.Run, error) {
	return fetch[api.Run](ctx, c, "/runs"+seg(id), nil)
}

// CancelRun asks a run to stop.
func (c *Client) CancelRun(ctx context.Context, id string) (api.Run, error) {
	return send[api.Run](ctx, c, post, "/runs"+seg(id)+"/cancel", nil)
}

// Notices returns a page of a run's log: notices with a number greater than after.
func (c *Client) Notices(ctx context.Context, id string, after int64, limit int) (api.Page[api.Notice], error) {
	return fetch[api.Page[api.Notice]](ctx, c, "/runs"+seg(id)+"/notices", values("after", strconv.FormatInt(after, 10), "limit", number(limit)))
}

// Savesets lists a page of savesets, newest first; the filter's Clients is not sent.
func (c *Client) Savesets(ctx context.Context, f api.SavesetFilter) (api.Page[api.Saveset], error) {
	return fetch[api.Page[api.Saveset]](ctx, c, "/savesets", values("client", f.Client, "task", f.Task, "before", f.Before, "limit", number(f.Limit)))
}

// Saveset returns one saveset; an unambiguous beginning of its id will do.
func (c *Client) Saveset(ctx context.Context, id string) (api.Saveset, error) {
	return fetch[api.Saveset](ctx, c, "/savesets"+seg(id), nil)
}

// DeleteSaveset deletes a saveset; force also before its end of life, and the newest of a task.
func (c *Client) DeleteSaveset(ctx context.Context, id string, force bool) error {
	r := request{method: del, path: "/savesets" + seg(id)}
	if force {
		r.query = values("force", "true")
	}
	return c.call(ctx, r, nil)
}

// UnsealSaveset gives the key of a saveset's encrypted task, to read it there for a time.
func (c *Client) UnsealSaveset(ctx context.Context, id string, u api.Unseal) (api.Unsealed, error) {
	return send[api.Unsealed](ctx, c, post, "/savesets"+seg(id)+"/unseal", u)
}

// SealSaveset has that key forgotten.
func (c *Client) SealSaveset(ctx context.Context, id string) error {
	return c.call(ctx, request{method: post, path: "/savesets" + seg(id) + "/seal"}, nil)
}

// LockSaveset locks a saveset, or takes the lock away.
func (c *Client) LockSaveset(ctx context.Context, id string, locked bool) (api.Saveset, error) {
	verb := "/unlock"
	if locked {
		verb = "/lock"
	}
	return send[api.Saveset](ctx, c, post, "/savesets"+seg(id)+verb, nil)
}

// MakeImmutable keeps everybody from deleting a saveset until a time.
func (c *Client) MakeImmutable(ctx context.Context, id string, until time.Time) (api.Saveset, error) {
	return send[api.Saveset](ctx, c, put, "/savesets"+seg(id)+"/immutable", api.ImmutableSpec{Until: until})
}

// List returns the object at path in a saveset and, for a directory, a page of its entries after a name.
func (c *Client) List(ctx context.Context, id, path, after string, limit int) (api.Listing, error) {
	return fetch[api.Listing](ctx, c, "/savesets"+seg(id)+"/entries", values("path", path, "after", after, "limit", number(limit)))
}

// Content is a download; the reader fails when it was cut off.
type Content struct {
	io.ReadCloser
	Tar  bool
	Name string // file name that the appliance proposes
	Size int64  // -1 when unknown, as of a tar
}

// Get downloads a file, or a tree as tar: format is auto, file or tar.
func (c *Client) Get(ctx context.Context, id, path, format string) (*Content, error) {
	res, err := c.open(ctx, request{method: get, path: "/savesets" + seg(id) + "/content", query: values("path", path, "format", format),
		accept: "application/octet-stream, application/x-tar"})
	if err != nil {
		return nil, err
	}
	out := &Content{ReadCloser: res.Body, Size: res.ContentLength, Tar: res.Header.Get("Content-Type") == "application/x-tar"}
	if _, params, err := mime.ParseMediaType(res.Header.Get("Content-Disposition")); err == nil {
		out.Name = params["filename"]
	}
	return out, nil
}

// Mount returns the state of the mount of all savesets.
func (c *Client) Mount(ctx context.Context) (api.Mount, error) {
	return fetch[api.Mount](ctx, c, "/mount", nil)
}

// SetMount turns the mount of all savesets on or off.
func (c *Client) SetMount(ctx context.Context, on bool) (api.Mount, error) {
	return send[api.Mount](ctx, c, put, "/mount", api.MountSpec{On: on})
}

// AuditLog lists a page of the audit log, newest first.
func (c *Client) AuditLog(ctx context.Context, f api.AuditFilter) (api.Page[api.AuditEntry], error) {
	since := ""
	if !f.Since.IsZero() {
		since = f.Since.UTC().Format(time.RFC3339Nano)
	}
	return fetch[api.Page[api.AuditEntry]](ctx, c, "/audit", values("user", f.User, "action", f.Action, "since", since,
		"before", f.Before, "limit", number(f.Limit)))
}
