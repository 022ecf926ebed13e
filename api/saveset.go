package api

import (
	"time"
	"unicode/utf8"
)

// Saveset is one stored copy of one run of one task.
type Saveset struct {
	ID             string    `json:"id"`
	Client         string    `json:"client"`
	Task           string    `json:"task"`
	Type           TaskType  `json:"type" enum:"path,stream"`
	Pool           string    `json:"pool"`
	Run            string    `json:"run,omitempty" doc:"the run that made it"`
	State          RunState  `json:"state" enum:"success,warning" doc:"how that run ended"`
	LevelRequested Level     `json:"level_requested"`
	Level          Level     `json:"level" doc:"effective level"`
	LevelReason    string    `json:"level_reason"`
	Parent         string    `json:"parent,omitempty" doc:"the saveset it was made against"`
	StartedAt      time.Time `json:"started_at" doc:"the moment it shows"`
	EndedAt        time.Time `json:"ended_at"`
	EOL            time.Time `json:"eol" doc:"end of life: kept at least until then"`
	EOLCause       string    `json:"eol_cause,omitempty" doc:"who or what set the end of life: a saveset, a user; empty: the pool"`
	Locked         bool      `json:"locked,omitempty" doc:"nobody deletes it, nor those it needs, whatever their end of life"`
	// ImmutableUntil is absent where there never was a time.
	ImmutableUntil *time.Time   `json:"immutable_until,omitempty" doc:"until then nobody at all deletes it or shortens its end of life"`
	Kept           []KeptReason `json:"kept,omitempty" doc:"where one saveset is shown: why the next purge leaves it; empty: it may go"`
	Entries        int64        `json:"entries"`
	Bytes          int64        `json:"bytes" doc:"logical size of the whole tree"`
	BytesNew       int64        `json:"bytes_new" doc:"bytes that the store did not have, before compression"`
	BytesStored    int64        `json:"bytes_stored" doc:"bytes that it added to the store"`
	Sources        []string     `json:"sources,omitempty"`
	StreamName     string       `json:"stream_name,omitempty" doc:"type stream: name of the one file"`
	Warnings       int64        `json:"warnings"`
	SealedBy       string       `json:"sealed_by,omitempty" doc:"where one saveset is shown: id of the task key without which nobody reads it"`
}

// KeptReason is one reason for which a saveset is kept.
type KeptReason struct {
	Cause KeptCause  `json:"cause" enum:"eol,locked,needed,exported,immutable,newest"`
	Until *time.Time `json:"until,omitempty" doc:"eol, immutable: when the reason ends"`
	By    string     `json:"by,omitempty" doc:"eol: who or what set it; needed: the locked saveset that needs this one; exported: the export"`
}

// KeptCause is why a saveset is kept.
type KeptCause string

// Causes for which savesets are kept.
const (
	KeptEOL       KeptCause = "eol"       // its end of life has not come
	KeptLocked    KeptCause = "locked"    // it is locked
	KeptNeeded    KeptCause = "needed"    // a locked saveset needs it
	KeptExported  KeptCause = "exported"  // served as a block device
	KeptImmutable KeptCause = "immutable" // until a time that has not come
	KeptNewest    KeptCause = "newest"    // the newest restorable one of a task that exists
)

// ImmutableSpec makes a saveset immutable.
type ImmutableSpec struct {
	Until time.Time `json:"until" doc:"until then nobody deletes it or shortens its end of life; it can only be moved further"`
}

// Unseal gives the key of an encrypted task, so that its savesets can be read here for a time.
type Unseal struct {
	Key     string `json:"key" minLength:"1" maxLength:"4096" doc:"contents of the key file; held in memory, never stored, never logged"`
	Minutes int    `json:"minutes,omitempty" minimum:"0" maximum:"10080" doc:"how long the key is held; default: 480"`
}

// String hides the key, so that no log line and no error shows it.
func (Unseal) String() string { return "task key (hidden)" }

// GoString hides the key from %#v.
func (u Unseal) GoString() string { return u.String() }

// Unsealed tells of a key that is held.
type Unsealed struct {
	KeyID string    `json:"key_id" doc:"of the key: all savesets that it seals can be read"`
	Until time.Time `json:"until"`
}

// SavesetFilter selects savesets; zero fields select all. Newest first.
type SavesetFilter struct {
	Client  string
	Task    string
	Clients []string // nil: every client; the server sets it for roles that reach only some
	Before  string   // cursor: savesets older than this id
	Limit   int      // 1..MaxPage; the server has set it
}

// EntryType is the type of a file-system object.
type EntryType string

// Types of entries.
const (
	EntryFile    EntryType = "file"
	EntryDir     EntryType = "dir"
	EntrySymlink EntryType = "symlink"
	EntryChar    EntryType = "char"
	EntryBlock   EntryType = "block"
	EntryFifo    EntryType = "fifo"
	EntrySocket  EntryType = "socket"
)

// Entry is one object of a saveset's tree.
type Entry struct {
	Name       string    `json:"name" doc:"name in its directory; bytes that are not UTF-8 read U+FFFD, see name_base64"`
	NameRaw    []byte    `json:"name_base64,omitempty" doc:"the name's bytes where they are not UTF-8"`
	Type       EntryType `json:"type" enum:"file,dir,symlink,char,block,fifo,socket"`
	Mode       uint32    `json:"mode" doc:"permission bits with setuid, setgid and sticky, as a number (octal 07777)"`
	UID        uint32    `json:"uid"`
	GID        uint32    `json:"gid"`
	Size       int64     `json:"size" doc:"files: logical size; directories: logical bytes of everything below"`
	MTime      time.Time `json:"mtime" doc:"RFC 3339 with nanoseconds, years 0001 to 9999; outside them the nearest of these"`
	MTimeSec   int64     `json:"mtime_sec" doc:"modification time in seconds since 1970, exact"`
	MTimeNsec  uint32    `json:"mtime_nsec" doc:"nanoseconds beside mtime_sec"`
	Target     string    `json:"target,omitempty" doc:"symlinks: where it points"`
	TargetRaw  []byte    `json:"target_base64,omitempty"`
	Major      uint32    `json:"major,omitempty" doc:"devices"`
	Minor      uint32    `json:"minor,omitempty"`
	LinkGroup  uint64    `json:"link_group,omitempty" doc:"entries of one saveset with the same number are hard links of one file"`
	EntryCount int64     `json:"entries,omitempty" doc:"directories: number of entries below"`
	Xattrs     []Xattr   `json:"xattrs,omitempty"`
}

// Xattr is one extended attribute; POSIX ACLs are among them.
type Xattr struct {
	Name  string `json:"name"`
	Value []byte `json:"value" doc:"base64"`
}

// SetName sets Name and, for names that are not UTF-8, NameRaw.
func (e *Entry) SetName(name string) { e.Name, e.NameRaw = Text(name) }

// SetTarget sets Target and, for targets that are not UTF-8, TargetRaw.
func (e *Entry) SetTarget(t string) { e.Target, e.TargetRaw = Text(t) }

// SetMTime sets the three forms of the modification time.
func (e *Entry) SetMTime(sec int64, nsec uint32) {
	e.MTimeSec, e.MTimeNsec = sec, nsec
	const first, last = -62135596800, 253402300799 // 0001-01-01T00:00:00Z, 9999-12-31T23:59:59Z
	e.MTime = time.Unix(min(max(sec, first), last), int64(nsec)).UTC()
}

// RawName returns the name's true bytes.
func (e *Entry) RawName() string { return raw(e.Name, e.NameRaw) }

// RawTarget returns the symlink target's true bytes.
func (e *Entry) RawTarget() string { return raw(e.Target, e.TargetRaw) }

func raw(text string, bytes []byte) string {
	if bytes != nil {
		return string(bytes)
	}
	return text
}

// Text returns s in readable UTF-8 and, when s is not UTF-8 itself, its bytes.
func Text(s string) (text string, bytes []byte) {
	if utf8.ValidString(s) {
		return s, nil
	}
	return string([]rune(s)), []byte(s)
}

// Listing is one page of a directory of a saveset, or the one entry that a path names.
type Listing struct {
	Path  string  `json:"path" doc:"the path that was asked for"`
	Entry Entry   `json:"entry" doc:"the object at that path"`
	Items []Entry `json:"items" doc:"directories: entries in the order of their names' bytes" nullable:"false"`
	Next  string  `json:"next,omitempty" doc:"cursor of the next page: the last name; absent on the last page"`
	// NextRaw is the cursor where the last name is not UTF-8.
	NextRaw []byte `json:"next_base64,omitempty" doc:"the cursor's bytes where they are not UTF-8"`
}

// Cursor returns the cursor's true bytes; "" on the last page.
func (l *Listing) Cursor() string { return raw(l.Next, l.NextRaw) }
