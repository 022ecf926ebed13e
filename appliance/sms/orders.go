package sms

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

// Path is a path or file name of a client: bytes, mostly but not always UTF-8. In JSON it is a string where it is UTF-8
// and {"base64": "…"} where it is not, so that nothing is lost.
type Path string

type rawPath struct {
	Base64 string `json:"base64"`
}

// MarshalJSON implements json.Marshaler.
func (p Path) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return json.Marshal(string(p))
	}
	return json.Marshal(rawPath{base64.StdEncoding.EncodeToString([]byte(p))})
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Path) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		*p = Path(s)
		return err
	}
	var raw rawPath
	if err := json.Unmarshal(b, &raw); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	s, err := base64.StdEncoding.DecodeString(raw.Base64)
	*p = Path(s)
	return err
}

// OrderKind names what an order asks for.
type OrderKind string

// The orders.
const (
	OrderBackup  OrderKind = "backup"
	OrderRestore OrderKind = "restore"
	OrderCancel  OrderKind = "cancel"
	OrderStat    OrderKind = "stat"
	OrderBrowse  OrderKind = "browse"
	// OrderSealedBackup is a backup whose Seal is set. It is a kind of its own so that an agent which cannot seal refuses
	// it, and never sends in clear what its task encrypts.
	OrderSealedBackup OrderKind = "sealed_backup"
)

// Order is what the appliance asks an agent to do. Exactly the part that Kind names is set. An agent accepts a backup or
// restore at once and works on it in a run that it opens with the order's token; the others it answers with a Reply.
type Order struct {
	ID      string        `json:"id"`
	Kind    OrderKind     `json:"kind"`
	Backup  *BackupOrder  `json:"backup,omitempty"`
	Restore *RestoreOrder `json:"restore,omitempty"`
	Cancel  *CancelOrder  `json:"cancel,omitempty"`
	Stat    *StatOrder    `json:"stat,omitempty"`
	Browse  *BrowseOrder  `json:"browse,omitempty"`
	VMList  *VMListOrder  `json:"vm_list,omitempty"`
	Machine *MachineOrder `json:"machine,omitempty"`
}

// Validate checks that the part which Kind names is there. An unknown Kind is no error: the agent refuses it by name.
func (o Order) Validate() error {
	var ok bool
	switch o.Kind {
	case OrderBackup:
		ok = o.Backup != nil && o.Backup.Seal == nil
	case OrderSealedBackup:
		ok = o.Backup != nil && o.Backup.Seal != nil
	case OrderRestore:
		ok = o.Restore != nil
	case OrderCancel:
		ok = o.Cancel != nil
	case OrderStat:
		ok = o.Stat != nil
	case OrderBrowse:
		ok = o.Browse != nil
	case OrderVMList:
		ok = o.VMList != nil
	case OrderMachine:
		ok = o.Machine != nil
	default:
		ok = true
	}
	if !ok {
		return fmt.Errorf("order %s: the part %q is missing", o.ID, o.Kind)
	}
	return nil
}

// Task types that an agent knows.
const (
	TaskPath   = "path"
	TaskStream = "stream"
)

// BackupOrder starts a backup run.
type BackupOrder struct {
	RunID    string `json:"run_id"`
	Token    Token  `json:"token"`
	Task     string `json:"task"`
	TaskType string `json:"task_type"` // TaskPath, TaskStream or TaskLibvirt
	// Level is the effective level. ReadAll says that every file is read again (FULL and COPY but synthetic ones); where
	// it is false, files that match the parent of the run are taken from it.
	Level   string `json:"level"`
	ReadAll bool   `json:"read_all,omitempty"`

	// Path tasks.
	Sources       []Path   `json:"sources,omitempty"`  // absolute
	Excludes      []string `json:"excludes,omitempty"` // gitignore-like globs
	Images        []string `json:"images,omitempty"`   // globs like Excludes: regular files to store as disk images
	OneFileSystem bool     `json:"one_file_system,omitempty"`

	// Stream tasks: the command's standard output is stored as one file with the name StreamName.
	StreamName string   `json:"stream_name,omitempty"`
	Command    []string `json:"command,omitempty"`

	// Libvirt is set for tasks of that type.
	Libvirt *LibvirtSource `json:"libvirt,omitempty"`

	// Pre and post commands; a failing pre command fails the run unless PreFailureWarns.
	PreCommand      []string `json:"pre_command,omitempty"`
	PostCommand     []string `json:"post_command,omitempty"`
	PreFailureWarns bool     `json:"pre_failure_warns,omitempty"`

	// Seal is set for an encrypted task, in an order of kind OrderSealedBackup.
	Seal *Sealing `json:"seal,omitempty"`
}

// Sealing says with which task key a saveset is sealed. The key itself never leaves the client.
type Sealing struct {
	// KeyID is what the key must be: 32 hex digits.
	KeyID string `json:"key_id"`
	// KeyFile is where the key lies on the client; empty means the agent's own place for the task.
	KeyFile Path `json:"key_file,omitempty"`
	// Task names that place; only in a restore, whose order names no task otherwise.
	Task string `json:"task,omitempty"`
}

// Existing says what a restore does with a file that exists already.
type Existing string

// The ways to treat existing files.
const (
	ExistingKeep       Existing = "keep"
	ExistingOverwrite  Existing = "overwrite"
	ExistingNewVersion Existing = "new_version"
)

// RestoreOrder starts a restore run. The saveset's root comes with the run's welcome.
type RestoreOrder struct {
	RunID     string `json:"run_id"`
	Token     Token  `json:"token"`
	SavesetID string `json:"saveset_id"`
	TaskType  string `json:"task_type"`
	// Sources are those of the saveset: directories that only lead to them keep their metadata where they exist, and are
	// not compared. Without any, all directories belong to the sources.
	Sources []Path `json:"sources,omitempty"`

	// Paths are absolute paths within the saveset; none means everything.
	Paths []Path `json:"paths,omitempty"`
	// Target is the directory to restore into; empty means the original places.
	Target Path `json:"target,omitempty"`
	// Flat drops the directories of the saveset: every file goes directly into Target.
	Flat     bool     `json:"flat,omitempty"`
	Existing Existing `json:"existing,omitempty"` // empty means keep
	Include  []string `json:"include,omitempty"`
	Exclude  []string `json:"exclude,omitempty"`
	// Verify compares with what is there and writes nothing.
	Verify bool `json:"verify,omitempty"`

	// Stream tasks: the stream is piped into Command, or, when there is none, written to the file Target, under its own
	// name where Target is a directory or ends in a slash.
	Command []string `json:"command,omitempty"`

	// Seal is set for a saveset of an encrypted task.
	Seal *Sealing `json:"seal,omitempty"`
}

// CancelOrder ends a run that may not have been opened yet. A run that is open gets its cancel on its own stream, too.
type CancelOrder struct {
	RunID  string `json:"run_id"`
	Reason string `json:"reason"`
}

// StatOrder asks what lies at some absolute paths.
type StatOrder struct {
	Paths []Path `json:"paths"`
}

// StatReply answers StatOrder, in its order.
type StatReply struct {
	Files []FileInfo `json:"files"`
}

// FileInfo tells about one file of a client. Error says why there is nothing to tell.
type FileInfo struct {
	Path   Path      `json:"path"` // as asked; the name alone in a BrowseReply
	Exists bool      `json:"exists"`
	Mode   uint32    `json:"mode,omitempty"` // Linux st_mode with type bits
	UID    uint32    `json:"uid,omitempty"`
	GID    uint32    `json:"gid,omitempty"`
	Size   uint64    `json:"size,omitempty"`
	MTime  time.Time `json:"mtime,omitzero"`
	Target Path      `json:"target,omitempty"` // of a symlink
	Error  string    `json:"error,omitempty"`
}

// BrowseOrder lists a directory of a client: the names after After, in order of their bytes, at most Limit (up to 1000).
type BrowseOrder struct {
	Path  Path `json:"path"`
	After Path `json:"after,omitempty"`
	Limit int  `json:"limit,omitempty"`
}

// BrowseReply answers BrowseOrder.
type BrowseReply struct {
	Files []FileInfo `json:"files"`
	More  bool       `json:"more,omitempty"`
}

// Reply is an agent's answer to an order that it accepted. Backup, restore and cancel orders have an empty one.
type Reply struct {
	Stat    *StatReply    `json:"stat,omitempty"`
	Browse  *BrowseReply  `json:"browse,omitempty"`
	VMList  *VMListReply  `json:"vm_list,omitempty"`
	Machine *MachineReply `json:"machine,omitempty"`
}
