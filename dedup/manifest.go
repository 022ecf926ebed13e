package dedup

import (
	"encoding/hex"
	"encoding/json"
	"time"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// SavesetID names a saveset: 6 bytes of milliseconds since 1970, then 10 random bytes, so that ids sort by time.
type SavesetID [16]byte

// String returns 32 hex digits.
func (id SavesetID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names nothing.
func (id SavesetID) IsZero() bool { return id == SavesetID{} }

// ParseSavesetID reads what String wrote.
func ParseSavesetID(s string) (SavesetID, error) {
	var id SavesetID
	if len(s) != 2*len(id) {
		return id, &Error{Kind: Invalid, Op: "parse saveset id", Object: s}
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return SavesetID{}, &Error{Kind: Invalid, Op: "parse saveset id", Object: s, Err: err}
	}
	return id, nil
}

// MarshalText implements encoding.TextMarshaler.
func (id SavesetID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *SavesetID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = SavesetID{}
		return nil
	}
	v, err := ParseSavesetID(string(b))
	*id = v
	return err
}

// Draft is what a run knows about its saveset when it commits. The engine fills the rest of the Manifest.
type Draft struct {
	// Root is the root directory node. Side is the side stream; its zero value means none.
	Root, Side recipe.Ref
	// Client, Task and TaskType are names as the catalog had them.
	Client, Task, TaskType string
	// RequestedLevel, Level (the effective one) and Reason as DOMAIN.md's Levels.
	RequestedLevel, Level, Reason string
	// Parent is the reference of a DIFF or INCR; zero for none.
	Parent            SavesetID
	Started, Finished time.Time
	// Sources are the paths (or the stream's name) that were read.
	Sources []string
	// Warnings counts what the run noted.
	Warnings uint64
	// State is the saveset's first state: its EOL and cause.
	State State
	// Meta is for the caller: a JSON value that the engine keeps and does not read. At most 1 MiB.
	Meta json.RawMessage
}

// Manifest is one saveset: immutable, authenticated, whole. State is the newest valid one at the time of the call.
type Manifest struct {
	ID     SavesetID
	Domain digest.DomainID
	// SealedBy is the task key without which nobody reads the saveset; zero: it is not sealed.
	SealedBy seal.ID
	Run      string
	Root     recipe.Ref
	Side     recipe.Ref

	Client, Task, TaskType        string
	RequestedLevel, Level, Reason string
	Parent                        SavesetID
	Started, Finished             time.Time
	// Committed is when the manifest was written, by the store's clock.
	Committed time.Time
	Sources   []string
	Warnings  uint64

	// Entries and Logical (bytes) describe the whole saveset; New (plain bytes) and Stored (bytes in containers, nodes
	// included) what this run added.
	Entries, Logical, New, Stored uint64
	// Switches is how often a reader of the whole saveset goes to another container, when it reads each 64 MiB in the order
	// in which they are stored: the containers of each such window, added up. What the run did not ask for is taken to lie
	// as it did for the parent. 0: not known (the run of an older program).
	Switches uint64
	Meta     json.RawMessage

	State State
}

// SwitchesPerMiB returns Switches for each MiB of the saveset; 0 when that is not known.
func (m *Manifest) SwitchesPerMiB() float64 {
	if m.Logical == 0 {
		return 0
	}
	return float64(m.Switches) * (1 << 20) / float64(m.Logical)
}

// State is what may change about a saveset after its manifest is written. Each change is a new numbered object; the
// highest valid number wins.
type State struct {
	// Number is filled by the engine: 0 is the state inside the manifest.
	Number uint32
	// Time is when the state was written, filled by the engine.
	Time time.Time
	// EOL is the end of life; zero means none was given.
	EOL time.Time
	// Cause says who or what set this state: a saveset's id, a user.
	Cause string
	// Locked: no deletion whatever the EOL.
	Locked bool
	// ImmutableUntil can only grow while it lies in the future.
	ImmutableUntil time.Time
	// Deleted: the saveset is gone for every reader; GC may take its chunks.
	Deleted bool
	// Doubt, filled by the engine and never stored, names a newer state that cannot be read. It may have said anything: the
	// saveset cannot be changed or deleted (Kind Damaged) until that is dismissed.
	Doubt string
}
