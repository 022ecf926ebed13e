package server

import (
	"context"
	"io"
	"net/http"
	"time"

	"coffer/api"
)

// Backend is what the server serves: the appliance's brain. All methods may be called from any number of goroutines at
// once. They return *api.Error (or an error that wraps one) where they know what the caller should be told; every other
// error is answered as "internal" and logged. The context carries the caller ([api.CallerFrom]) and ends when the
// caller goes away.
//
// The server has checked the caller's role and, for roles that reach only some clients, the client of the object, before
// it calls a method; it has checked the shape of the input, too (lengths, enums, limits), but not its meaning. It records
// every change, restore and login in the audit log by [Audit.Record]: the backend records only what happens without a
// call.
type Backend interface {
	Accounts
	Clients
	Tasks
	VMs
	Runs
	Savesets
	Exports
	Guests
	Audit
	Machine
	Store
	StoreKeys
}

// Accounts are users, their sessions and their API tokens.
type Accounts interface {
	// Login checks a password and opens a session. Wrong name and wrong password are the same error,
	// CodeBadCredentials, and take the same time. The server limits the rate of failures.
	Login(ctx context.Context, req api.LoginRequest) (api.Session, error)
	// Authenticate finds whose bearer token it is: a session's or an API token's. CodeUnauthenticated otherwise.
	Authenticate(ctx context.Context, token string) (api.Identity, error)
	// Logout ends the session with this id.
	Logout(ctx context.Context, tokenID string) error
	// ChangePassword changes user's password, clears MustChange and ends the user's other sessions, all but the one
	// named by keepTokenID. CodeBadCredentials when Old is wrong, CodeWeakPassword when New does not do.
	ChangePassword(ctx context.Context, user, keepTokenID string, c api.PasswordChange) error

	// Users lists all users by name.
	Users(ctx context.Context) ([]api.User, error)
	// AddUser makes a user who must change the password at the first login. CodeExists.
	AddUser(ctx context.Context, s api.UserSpec) (api.User, error)
	// SetUserRole changes role and clients. CodeNotFound; CodeConflict for the last superuser.
	SetUserRole(ctx context.Context, name string, r api.UserRole) (api.User, error)
	// RemoveUser removes a user with all sessions and tokens. CodeNotFound; CodeConflict for the last superuser.
	RemoveUser(ctx context.Context, name string) error

	// Tokens lists the API tokens of one user, or of all when user is empty; no sessions.
	Tokens(ctx context.Context, user string) ([]api.Token, error)
	// AddToken makes an API token for user.
	AddToken(ctx context.Context, user string, s api.TokenSpec) (api.NewToken, error)
	// RemoveToken removes an API token. CodeNotFound.
	RemoveToken(ctx context.Context, id string) error
}

// Clients are the machines that are backed up.
type Clients interface {
	// Clients lists all clients by name.
	Clients(ctx context.Context) ([]api.Client, error)
	// Client returns one. CodeNotFound.
	Client(ctx context.Context, name string) (api.Client, error)
	// AddClient adds a client and makes its first enrolment token. CodeExists.
	AddClient(ctx context.Context, s api.ClientSpec) (api.Enrolment, error)
	// NewEnrolment makes a further enrolment token (the machine was rebuilt, or was revoked); earlier unused ones end.
	NewEnrolment(ctx context.Context, name string) (api.Enrolment, error)
	// RevokeClient refuses the client's certificates from now on and closes its connections.
	RevokeClient(ctx context.Context, name string) (api.Client, error)
}

// Tasks are what is backed up, and the pools are where to.
type Tasks interface {
	// Tasks lists all tasks by name.
	Tasks(ctx context.Context) ([]api.Task, error)
	// Task returns one. CodeNotFound.
	Task(ctx context.Context, name string) (api.Task, error)
	// AddTask makes a task. CodeExists; CodeNotFound for client or pool; CodeSourceRefused, with the agent's words, when
	// a source does not exist; CodeClientOffline when that cannot be asked.
	AddTask(ctx context.Context, s api.TaskSpec) (api.Task, error)
	// RemoveTask removes a task; its savesets stay. CodeNotFound; CodeInUse while a run of it is active.
	RemoveTask(ctx context.Context, name string) error

	// Pools lists all media pools by name.
	Pools(ctx context.Context) ([]api.Pool, error)
	// Pool returns one. CodeNotFound.
	Pool(ctx context.Context, name string) (api.Pool, error)
}

// VMs are the virtual machines of hosts.
type VMs interface {
	// VMs lists the machines of the libvirtd at uri, which the agent of the client host reaches. CodeNotFound;
	// CodeClientOffline; CodeSourceRefused, with the agent's words, when libvirtd cannot be reached.
	VMs(ctx context.Context, host, uri string) (api.VMList, error)
	// SyncVMs makes tasks for them and keeps those in step; errors like VMs'.
	SyncVMs(ctx context.Context, host string, s api.VMSync) (api.VMSyncReport, error)
}

// Runs are backups and restores, past and present.
type Runs interface {
	// StartBackup queues a backup and returns its run. CodeNotFound; CodeClientOffline with last-seen time and what to do.
	StartBackup(ctx context.Context, r api.BackupRequest) (api.Run, error)
	// StartRestore queues a restore and returns its run; errors like StartBackup's. Client is never empty.
	StartRestore(ctx context.Context, r api.RestoreRequest) (api.Run, error)
	// Runs lists runs, newest first.
	Runs(ctx context.Context, f api.RunFilter) (api.Page[api.Run], error)
	// Run returns one, with its present counters. CodeNotFound.
	Run(ctx context.Context, id string) (api.Run, error)
	// Notices returns a run's log: at most limit notices with Seq > after, ascending.
	Notices(ctx context.Context, id string, after int64, limit int) ([]api.Notice, error)
	// CancelRun asks a run to stop and returns it as it is then. CodeConflict when it has ended.
	CancelRun(ctx context.Context, id string) (api.Run, error)
	// Subscribe tells of changes from now on, until ctx ends; then the channel is closed. The backend never waits for
	// a subscriber: it may leave out counters (only the newest state of a run matters) but no change of state; a
	// subscriber that is hopelessly behind has its channel closed.
	Subscribe(ctx context.Context, f api.EventFilter) (<-chan api.Event, error)
}

// Savesets are what the store holds.
type Savesets interface {
	// Savesets lists savesets, newest first.
	Savesets(ctx context.Context, f api.SavesetFilter) (api.Page[api.Saveset], error)
	// Saveset returns one by its id; an unambiguous prefix of at least 6 characters will do. CodeNotFound; CodeConflict
	// when the prefix is ambiguous.
	Saveset(ctx context.Context, id string) (api.Saveset, error)
	// DeleteSaveset deletes a saveset, whole id. CodeConflict, with what to do: it is locked, needed by a locked one or
	// immutable; or, unless force, its end of life has not come or it is the newest of its task. CodeInUse while it is read.
	DeleteSaveset(ctx context.Context, id string, force bool) error
	// LockSaveset locks a saveset, or takes the lock away.
	LockSaveset(ctx context.Context, id string, locked bool) (api.Saveset, error)
	// MakeImmutable keeps everybody from deleting a saveset until a time. CodeConflict when that is earlier than it was.
	MakeImmutable(ctx context.Context, id string, until time.Time) (api.Saveset, error)
	// UnsealSaveset holds the key of the saveset's encrypted task in memory for a time, so that all its savesets can be
	// read. CodeConflict for one that is not sealed, CodeWrongTaskKey.
	UnsealSaveset(ctx context.Context, id string, u api.Unseal) (api.Unsealed, error)
	// SealSaveset forgets that key. CodeConflict for a saveset that is not sealed.
	SealSaveset(ctx context.Context, id string) error
	// OpenTree opens a saveset's tree under a lease until Close. The id is a whole one. CodeKeyNeeded for a sealed one
	// whose key is not held.
	OpenTree(ctx context.Context, id string) (Tree, error)
}

// Tree is an open saveset. Methods may be called concurrently. Paths are absolute, clean, slash-separated bytes; "/" is
// the root, whose entry is a directory of mode 0755 without a name.
type Tree interface {
	// Stat returns the entry at path, with its extended attributes. CodeNotFound.
	Stat(ctx context.Context, path string) (api.Entry, error)
	// List returns at most limit entries of the directory at path whose names are greater than after (bytes), in the
	// order of their names' bytes, with extended attributes. more says that further ones follow.
	List(ctx context.Context, path, after string, limit int) (entries []api.Entry, more bool, err error)
	// Open reads the content of the regular file at path; the reader yields exactly Size bytes, holes as zeros, or fails.
	Open(ctx context.Context, path string) (io.ReadCloser, error)
	// Close ends the lease.
	Close() error
}

// Exports are disks of savesets that are served as block devices.
type Exports interface {
	// Exports lists all exports, the oldest first.
	Exports(ctx context.Context) ([]api.Export, error)
	// Export returns one. CodeNotFound.
	Export(ctx context.Context, id string) (api.Export, error)
	// AddExport makes an export; the saveset's id is a whole one. CodeNotFound for the saveset or disk, CodeBadRequest for
	// what is no disk or not the only one, CodeKeyNeeded, CodeStoreLocked.
	AddExport(ctx context.Context, s api.ExportSpec) (api.Export, error)
	// DropExport removes an export with what was written to it. CodeInUse with open connections, unless force, and while it
	// is committed.
	DropExport(ctx context.Context, id string, force bool) error
	// CommitExport starts to make a saveset of what was written to an export. CodeConflict where it has no overlay, CodeInUse
	// with open connections.
	CommitExport(ctx context.Context, id string) (api.Run, error)
}

// Audit is the audit log.
type Audit interface {
	// Record appends an entry; ID and Time are the backend's to set when empty. When it fails, the call that should have
	// been recorded is answered as failed.
	Record(ctx context.Context, e api.AuditEntry) error
	// AuditLog lists entries, newest first.
	AuditLog(ctx context.Context, f api.AuditFilter) (api.Page[api.AuditEntry], error)
}

// Machine is the appliance itself, and the mount of all savesets.
type Machine interface {
	// System says what runs.
	System(ctx context.Context) (api.System, error)
	// Metrics serves the appliance's metrics in the formats of Prometheus.
	Metrics() http.Handler
	// Mount returns the state of the mount of all savesets.
	Mount(ctx context.Context) (api.Mount, error)
	// SetMount turns the mount on or off; either is a success when it is so already. CodeMountFailed.
	SetMount(ctx context.Context, on bool) (api.Mount, error)
}

// Store is the deduplicating store and its maintenance.
type Store interface {
	// Store returns the state of the store; it answers when the store is locked, too.
	Store(ctx context.Context) (api.Store, error)
	// Dismiss gives up a damaged manifest or state, by its name on the damage list. CodeNotFound when it is not there;
	// CodeConflict while something that can be read says that the saveset must stay.
	Dismiss(ctx context.Context, object string) error
	// Damage returns the damage list with whom it harms.
	Damage(ctx context.Context) (api.DamageReport, error)
	// StartMaintenance queues a maintenance job and returns it. CodeBadRequest for options that do not go with the kind,
	// CodeConflict while another job of the kind waits, CodeNotSupported where the appliance cannot do it.
	StartMaintenance(ctx context.Context, r api.MaintenanceRequest) (api.Maintenance, error)
	// MaintenanceJobs lists maintenance jobs, newest first.
	MaintenanceJobs(ctx context.Context, f api.MaintenanceFilter) (api.Page[api.Maintenance], error)
	// MaintenanceJob returns one as it is now. CodeNotFound.
	MaintenanceJob(ctx context.Context, id string) (api.Maintenance, error)
	// CancelMaintenance asks a job to stop and returns it as it is then. CodeConflict when it has ended.
	CancelMaintenance(ctx context.Context, id string) (api.Maintenance, error)
}
