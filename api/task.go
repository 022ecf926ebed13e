package api

import "time"

// TaskType is the kind of source a task reads.
type TaskType string

// Task types of this version.
const (
	TaskPath   TaskType = "path"   // files and directories
	TaskStream TaskType = "stream" // a command's output
)

// Task is WHAT is backed up.
type Task struct {
	Name          string    `json:"name"`
	Client        string    `json:"client"`
	Type          TaskType  `json:"type" enum:"path,stream,libvirt"`
	Sources       []string  `json:"sources,omitempty" doc:"type path: absolute paths"`
	Excludes      []string  `json:"excludes,omitempty" doc:"gitignore-like patterns"`
	Images        []string  `json:"images,omitempty" doc:"type path: gitignore-like patterns of files that are stored as disk images"`
	OneFileSystem bool      `json:"one_file_system,omitempty" doc:"do not cross into other file systems"`
	Command       []string  `json:"command,omitempty" doc:"type stream: program and arguments whose output is stored"`
	StreamName    string    `json:"stream_name,omitempty" doc:"type stream: name of the one file in the saveset"`
	PreCommand    []string  `json:"pre_command,omitempty" doc:"run on the client before the backup; failing fails the run"`
	PostCommand   []string  `json:"post_command,omitempty" doc:"run on the client after the backup"`
	Pool          string    `json:"pool" doc:"media pool that its savesets go to"`
	CreatedAt     time.Time `json:"created_at"`
	Machine       *Machine  `json:"libvirt,omitempty" doc:"type libvirt: the virtual machine"`
	Mover         string    `json:"mover,omitempty" doc:"client whose agent reads for it (data mover); absent: the task's own client"`
	// Encryption is absent where the task is not encrypted by a key of its own.
	Encryption *TaskEncryption `json:"encryption,omitempty" doc:"the client seals all with a key that the appliance does not have"`
}

// TaskEncryption names the key of an encrypted task.
type TaskEncryption struct {
	KeyID   string `json:"key_id" pattern:"^[0-9a-fA-F]{32}$" doc:"what 'coffer-agent task-key new' printed"`
	KeyFile string `json:"key_file,omitempty" maxLength:"4096" doc:"where the key lies on the client; default: the agent's own place"`
}

// TaskSpec makes a task.
type TaskSpec struct {
	Name          string   `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$"`
	Client        string   `json:"client" minLength:"1" maxLength:"64"`
	Type          TaskType `json:"type,omitempty" enum:"path,stream,libvirt" default:"path"`
	Sources       []string `json:"sources,omitempty" maxItems:"1000" doc:"type path: absolute paths"`
	Excludes      []string `json:"excludes,omitempty" maxItems:"10000" doc:"gitignore-like patterns"`
	Images        []string `json:"images,omitempty" maxItems:"1000" doc:"type path: gitignore-like patterns of files that are stored as disk images"`
	OneFileSystem bool     `json:"one_file_system,omitempty" doc:"do not cross into other file systems"`
	Command       []string `json:"command,omitempty" maxItems:"1000" doc:"type stream: program and arguments whose output is stored"`
	StreamName    string   `json:"stream_name,omitempty" maxLength:"255" doc:"type stream: name of the one file in the saveset; default is the task's name"`
	PreCommand    []string `json:"pre_command,omitempty" maxItems:"1000"`
	PostCommand   []string `json:"post_command,omitempty" maxItems:"1000"`
	Pool          string   `json:"pool,omitempty" maxLength:"64" doc:"default: the pool named default"`
	Machine       *Machine `json:"libvirt,omitempty" doc:"type libvirt: the virtual machine"`
	Mover         string   `json:"mover,omitempty" maxLength:"64" doc:"type libvirt: client whose agent reads for it (data mover); default: the task's own client"`
	// Encryption makes the task an encrypted one.
	Encryption *TaskEncryption `json:"encryption,omitempty" doc:"the client seals all with a key that the appliance does not have"`
}

// Pool is a media pool: the target of backups and the owner of their retention.
type Pool struct {
	Name          string    `json:"name"`
	RetentionDays int       `json:"retention_days" doc:"a saveset's EOL is its end of writing plus this"`
	Savesets      int64     `json:"savesets" doc:"how many it holds"`
	Bytes         int64     `json:"bytes" doc:"logical bytes of its savesets"`
	Stored        int64     `json:"stored_bytes" doc:"bytes that its savesets added to the store when they were made"`
	CreatedAt     time.Time `json:"created_at"`
}
