package api

import "time"

// Level is how much a backup reads.
type Level string

// Levels.
const (
	LevelFull Level = "FULL"
	LevelDiff Level = "DIFF"
	LevelIncr Level = "INCR"
	LevelCopy Level = "COPY"
)

// RunKind is what a run does.
type RunKind string

// Kinds of runs.
const (
	RunBackup  RunKind = "backup"
	RunRestore RunKind = "restore"
)

// RunState is the state of a run, as DOMAIN's "Scheduling" rule 7.
type RunState string

// States of a run.
const (
	RunQueued     RunState = "queued"
	RunActive     RunState = "active"
	RunSuccess    RunState = "success"
	RunWarning    RunState = "warning"
	RunError      RunState = "error"
	RunCancelled  RunState = "cancelled"
	RunMissed     RunState = "missed"
	RunSuppressed RunState = "suppressed"
)

// Final reports whether a run in this state has ended.
func (s RunState) Final() bool { return s != RunQueued && s != RunActive && s != "" }

// Run is one execution of a task, or one restore.
type Run struct {
	ID             string          `json:"id"`
	Kind           RunKind         `json:"kind" enum:"backup,restore"`
	State          RunState        `json:"state" enum:"queued,active,success,warning,error,cancelled,missed,suppressed"`
	Task           string          `json:"task,omitempty"`
	Client         string          `json:"client" doc:"the client whose agent works"`
	User           string          `json:"user,omitempty" doc:"who started it"`
	LevelRequested Level           `json:"level_requested,omitempty" doc:"backups only"`
	LevelEffective Level           `json:"level_effective,omitempty" doc:"backups only, once known"`
	LevelReason    string          `json:"level_reason,omitempty" doc:"requested, no_valid_full, enforce_full, chain_broken, source_changed, cbt_invalid, ndmp_level_exhausted, type_has_no_levels"`
	Saveset        string          `json:"saveset,omitempty" doc:"the saveset made, or restored from"`
	Restore        *RestoreRequest `json:"restore,omitempty" doc:"restores only: what was asked"`
	QueuedAt       time.Time       `json:"queued_at"`
	StartedAt      *time.Time      `json:"started_at,omitempty"`
	EndedAt        *time.Time      `json:"ended_at,omitempty"`
	Reason         string          `json:"reason,omitempty" doc:"why it ended as it did (error, cancelled, warning)"`
	Hint           string          `json:"hint,omitempty" doc:"what to do about it"`
	Warnings       int64           `json:"warnings" doc:"files and events that were noted as warnings"`
	Progress       Progress        `json:"progress" doc:"counters: live while active, final afterwards"`
}

// Progress are the counters of a run.
type Progress struct {
	Entries       int64  `json:"entries" doc:"files, directories and so on done"`
	EntriesTotal  int64  `json:"entries_total,omitempty" doc:"expected number of entries: exact for restores, for backups that of the reference; 0 unknown"`
	Bytes         int64  `json:"bytes" doc:"logical bytes done"`
	BytesTotal    int64  `json:"bytes_total,omitempty" doc:"expected logical bytes; 0 unknown"`
	BytesRead     int64  `json:"bytes_read" doc:"bytes read from the source (backup) or from the store (restore)"`
	BytesNew      int64  `json:"bytes_new" doc:"bytes that the store did not have, before compression"`
	BytesSent     int64  `json:"bytes_sent" doc:"bytes sent over the network"`
	BytesStored   int64  `json:"bytes_stored" doc:"bytes written to the store"`
	FilesNew      int64  `json:"files_new,omitempty"`
	FilesChanged  int64  `json:"files_changed,omitempty"`
	FilesSame     int64  `json:"files_unchanged,omitempty"`
	Stages        Stages `json:"stages" doc:"where the time went"`
	CurrentPath   string `json:"current_path,omitempty" doc:"what is being worked on; live only"`
	SkippedFiles  int64  `json:"files_skipped,omitempty" doc:"restores: left alone because they exist (mode keep)"`
	VerifiedFiles int64  `json:"files_verified,omitempty" doc:"restores with verify: compared equal"`
	DifferFiles   int64  `json:"files_differ,omitempty" doc:"restores with verify: found to differ"`
}

// Stages are busy times in seconds, summed over the workers of a stage; they overlap, so that their sum may exceed the
// run's duration.
type Stages struct {
	Source   float64 `json:"source" doc:"walking and reading the source; restores: writing it"`
	Hashing  float64 `json:"hashing" doc:"cutting and hashing"`
	Compress float64 `json:"compress" doc:"compressing, or decompressing"`
	Network  float64 `json:"network" doc:"waiting for the network"`
	Store    float64 `json:"store" doc:"verifying, encrypting and writing on the appliance; restores: reading"`
}

// BackupRequest starts a backup at once.
type BackupRequest struct {
	Task  string `json:"task" minLength:"1" maxLength:"64"`
	Level Level  `json:"level,omitempty" enum:"FULL,DIFF,INCR,COPY" default:"INCR" doc:"an INCR or DIFF without a valid FULL runs as FULL"`
}

// RestoreMode says what happens to a file that exists.
type RestoreMode string

// Restore modes.
const (
	RestoreKeep       RestoreMode = "keep"        // the existing file stays
	RestoreOverwrite  RestoreMode = "overwrite"   // the saveset's file replaces it
	RestoreNewVersion RestoreMode = "new-version" // the restored file gets a new name
)

// RestoreRequest starts a restore at once.
type RestoreRequest struct {
	Saveset  string      `json:"saveset" minLength:"1" maxLength:"64" doc:"id of the saveset"`
	Client   string      `json:"client,omitempty" maxLength:"64" doc:"client to restore to; default: the saveset's own"`
	To       string      `json:"to,omitempty" maxLength:"65536" doc:"directory to restore below, or the file to write a stream to; empty: the original place"`
	Paths    []string    `json:"paths,omitempty" maxItems:"10000" doc:"absolute paths in the saveset; empty: everything"`
	Include  []string    `json:"include,omitempty" maxItems:"10000" doc:"only entries that match one of these patterns"`
	Exclude  []string    `json:"exclude,omitempty" maxItems:"10000" doc:"no entries that match one of these patterns"`
	Mode     RestoreMode `json:"mode,omitempty" enum:"keep,overwrite,new-version" default:"keep" doc:"what to do with files that exist"`
	Flat     bool        `json:"flat,omitempty" doc:"all files directly in the target directory, without their paths"`
	Verify   bool        `json:"verify,omitempty" doc:"compare with what is there, write nothing"`
	Command  []string    `json:"command,omitempty" maxItems:"1000" doc:"stream savesets: program and arguments that read the stream on standard input"`
	RawPaths [][]byte    `json:"paths_base64,omitempty" maxItems:"10000" doc:"paths that are not UTF-8, base64; added to paths"`
}

// AllPaths returns the paths of the request as bytes in strings, UTF-8 or not.
func (r *RestoreRequest) AllPaths() []string {
	all := append([]string(nil), r.Paths...)
	for _, p := range r.RawPaths {
		all = append(all, string(p))
	}
	return all
}

// RunFilter selects runs; zero fields select all. Newest first.
type RunFilter struct {
	Task    string
	Client  string
	Clients []string // nil: every client; the server sets it for roles that reach only some
	Kind    RunKind
	State   RunState
	Before  string // cursor: runs older than this id
	Limit   int    // 1..MaxPage; the server has set it
}

// Severity of a notice.
type Severity string

// Severities.
const (
	SeverityInfo    Severity = "info"
	SeverityWarning Severity = "warning"
	SeverityError   Severity = "error"
)

// Notice is one line of a run's log: something about a file, or about the run.
type Notice struct {
	Seq      int64     `json:"seq" doc:"number within the run, ascending from 1"`
	Time     time.Time `json:"time"`
	Severity Severity  `json:"severity" enum:"info,warning,error"`
	Code     string    `json:"code,omitempty" doc:"name of the kind of notice, like changed_while_read"`
	Path     string    `json:"path,omitempty" doc:"the file it is about"`
	PathRaw  []byte    `json:"path_base64,omitempty" doc:"the path's bytes where they are not UTF-8"`
	Message  string    `json:"message"`
}

// EventType is the kind of an event.
type EventType string

// Kinds of events. Part of the API: they are the names of the server-sent events.
const (
	EventRun    EventType = "run"    // a run changed: state or counters
	EventNotice EventType = "notice" // a run noted something
	EventClient EventType = "client" // a client came, went or changed

	EventMaintenance EventType = "maintenance" // a maintenance job of the store changed
)

// Event is a change that watchers are told of. Exactly the field of its type is set (notices name their run besides).
type Event struct {
	Type   EventType `json:"type" enum:"run,notice,client,maintenance"`
	Time   time.Time `json:"time"`
	Run    *Run      `json:"run,omitempty" doc:"the run as it is now"`
	RunID  string    `json:"run_id,omitempty" doc:"with a notice: whose it is"`
	Notice *Notice   `json:"notice,omitempty"`
	Client *Client   `json:"client,omitempty"`

	Maintenance *Maintenance `json:"maintenance,omitempty" doc:"the maintenance job as it is now"`
}

// EventFilter selects events; zero fields select all.
type EventFilter struct {
	Run         string // only events of this run
	Maintenance string // only events of this maintenance job
}
