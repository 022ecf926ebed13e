package dedup

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// manifestObject is the stored form of a Manifest; FORMAT.md explains the fields.
type manifestObject struct {
	Version        int             `json:"version"`
	ID             SavesetID       `json:"id"`
	Domain         digest.DomainID `json:"domain"`
	SealedBy       seal.ID         `json:"sealed_by,omitzero"`
	Run            string          `json:"run,omitzero"`
	Root           recipe.Ref      `json:"root"`
	Side           recipe.Ref      `json:"side,omitzero"`
	Client         string          `json:"client,omitzero"`
	Task           string          `json:"task,omitzero"`
	TaskType       string          `json:"task_type,omitzero"`
	RequestedLevel string          `json:"requested_level,omitzero"`
	Level          string          `json:"level,omitzero"`
	Reason         string          `json:"reason,omitzero"`
	Parent         SavesetID       `json:"parent,omitzero"`
	Started        time.Time       `json:"started,omitzero"`
	Finished       time.Time       `json:"finished,omitzero"`
	Committed      time.Time       `json:"committed"`
	Sources        []string        `json:"sources,omitempty"`
	Warnings       uint64          `json:"warnings,omitzero"`
	Entries        uint64          `json:"entries"`
	Logical        uint64          `json:"logical"`
	New            uint64          `json:"new"`
	Stored         uint64          `json:"stored"`
	Switches       uint64          `json:"switches,omitzero"`
	Meta           json.RawMessage `json:"meta,omitempty"`
	State          stateObject     `json:"state"`
}

// stateObject is the stored form of a State. Saveset and Number repeat the object's name.
type stateObject struct {
	Version        int       `json:"version"`
	Saveset        SavesetID `json:"saveset"`
	Number         uint32    `json:"number"`
	Time           time.Time `json:"time"`
	EOL            time.Time `json:"eol,omitzero"`
	Cause          string    `json:"cause,omitzero"`
	Locked         bool      `json:"locked,omitzero"`
	ImmutableUntil time.Time `json:"immutable_until,omitzero"`
	Deleted        bool      `json:"deleted,omitzero"`
}

func (m *Manifest) object() manifestObject {
	version := objectVersion
	if m.Switches > 0 {
		version = manifestSwitches
	}
	if !m.SealedBy.IsZero() {
		version = manifestSealed
	}
	return manifestObject{
		Version: version, ID: m.ID, Domain: m.Domain, SealedBy: m.SealedBy, Run: m.Run, Root: m.Root, Side: m.Side,
		Client: m.Client, Task: m.Task, TaskType: m.TaskType, RequestedLevel: m.RequestedLevel, Level: m.Level,
		Reason: m.Reason, Parent: m.Parent, Started: m.Started, Finished: m.Finished, Committed: m.Committed,
		Sources: m.Sources, Warnings: m.Warnings, Entries: m.Entries, Logical: m.Logical, New: m.New, Stored: m.Stored,
		Switches: m.Switches, Meta: m.Meta, State: m.State.object(m.ID),
	}
}

func (o *manifestObject) manifest() Manifest {
	return Manifest{
		ID: o.ID, Domain: o.Domain, SealedBy: o.SealedBy, Run: o.Run, Root: o.Root, Side: o.Side,
		Client: o.Client, Task: o.Task, TaskType: o.TaskType, RequestedLevel: o.RequestedLevel, Level: o.Level,
		Reason: o.Reason, Parent: o.Parent, Started: o.Started, Finished: o.Finished, Committed: o.Committed,
		Sources: o.Sources, Warnings: o.Warnings, Entries: o.Entries, Logical: o.Logical, New: o.New, Stored: o.Stored,
		Switches: o.Switches, Meta: o.Meta, State: o.State.state(),
	}
}

func (st State) object(id SavesetID) stateObject {
	return stateObject{Version: objectVersion, Saveset: id, Number: st.Number, Time: st.Time, EOL: st.EOL, Cause: st.Cause,
		Locked: st.Locked, ImmutableUntil: st.ImmutableUntil, Deleted: st.Deleted}
}

func (o stateObject) state() State {
	return State{Number: o.Number, Time: o.Time, EOL: o.EOL, Cause: o.Cause, Locked: o.Locked,
		ImmutableUntil: o.ImmutableUntil, Deleted: o.Deleted}
}

// normal returns the state with times as they are stored.
func (st State) normal() State {
	for _, t := range []*time.Time{&st.Time, &st.EOL, &st.ImmutableUntil} {
		*t = t.UTC().Round(0)
	}
	return st
}

// errDoubt: a deletion, lock or term that nobody can read must not be taken back by what comes after it.
var errDoubt = errors.New("the newest state cannot be read: nothing changes until it is dismissed")

// follow reports whether next may follow st: what immutability allows. The clock is next.Time.
func (st State) follow(next State) error {
	if st.Deleted && !next.Deleted {
		return errors.New("a deleted saveset stays deleted")
	}
	if !next.Time.Before(st.ImmutableUntil) {
		return nil
	}
	until := st.ImmutableUntil.UTC().Format(time.RFC3339)
	switch {
	case next.Deleted && !st.Deleted:
		return errors.New("deletion before " + until)
	case next.ImmutableUntil.Before(st.ImmutableUntil):
		return errors.New("immutable until " + until + ", it can only grow")
	case !st.EOL.IsZero() && !next.EOL.IsZero() && next.EOL.Before(st.EOL) && next.EOL.Before(st.ImmutableUntil):
		return errors.New("end of life before " + until)
	}
	return nil
}

func newSavesetID(now time.Time) SavesetID {
	var id SavesetID
	rand.Read(id[6:])
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(id[:6], ms[2:])
	return id
}

// savesetTable is all manifests with their states, in memory, and who leases them.
type savesetTable struct {
	mu sync.Mutex
	m  map[SavesetID]*savesetEntry // guarded by mu
}

type savesetEntry struct {
	change   sync.Mutex // held while a new state is written
	manifest Manifest   // guarded by savesetTable.mu; only State ever changes
	leases   int        // guarded by savesetTable.mu
	deleting bool       // guarded by savesetTable.mu: State says deleted, and that is not durable yet
	top      uint32     // guarded by change: highest state number in use, valid or not
	loose    string     // guarded by change: a state whose writing failed, and which may be there all the same
}

func newSavesetTable() *savesetTable { return &savesetTable{m: make(map[SavesetID]*savesetEntry)} }

func (t *savesetTable) add(m Manifest, top uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.m[m.ID] = &savesetEntry{manifest: m, top: top}
}

func (t *savesetTable) get(id SavesetID) (*savesetEntry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[id]
	return e, ok
}

func (t *savesetTable) state(e *savesetEntry) State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return e.manifest.State
}

func (t *savesetTable) manifest(e *savesetEntry) Manifest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return e.manifest
}

// all returns the savesets that are not deleted, and those that are, each oldest first.
//
// INVARIANT: one whose deletion is being written is not deleted: it may be taken back, and a crash may undo it.
func (t *savesetTable) all() (live, deleted []Manifest) {
	t.mu.Lock()
	for _, e := range t.m {
		if e.manifest.State.Deleted && !e.deleting {
			deleted = append(deleted, e.manifest)
		} else {
			live = append(live, e.manifest)
		}
	}
	t.mu.Unlock()
	byID := func(a, b Manifest) int { return bytes.Compare(a.ID[:], b.ID[:]) }
	slices.SortFunc(live, byID)
	slices.SortFunc(deleted, byID)
	return live, deleted
}

// drop forgets a saveset whose manifest was removed.
func (t *savesetTable) drop(id SavesetID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.m, id)
}

// setState replaces a state; false when st deletes a saveset that is leased.
func (t *savesetTable) setState(e *savesetEntry, st State) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st.Deleted && !e.manifest.State.Deleted && e.leases > 0 {
		return false
	}
	e.deleting = st.Deleted && (e.deleting || !e.manifest.State.Deleted)
	e.manifest.State = st
	return true
}

// stateIsDurable says that the state of a saveset was written.
func (t *savesetTable) stateIsDurable(e *savesetEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.deleting = false
}

// lease keeps a saveset from deletion until release.
func (t *savesetTable) lease(id SavesetID) (Manifest, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[id]
	if !ok || e.manifest.State.Deleted {
		return Manifest{}, &Error{Kind: NotFound, Op: "open saveset", Object: id.String()}
	}
	e.leases++
	return e.manifest, nil
}

func (t *savesetTable) release(id SavesetID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.m[id]; ok {
		e.leases--
	}
}

func (t *savesetTable) list() []Manifest {
	t.mu.Lock()
	out := make([]Manifest, 0, len(t.m))
	for _, e := range t.m {
		if !e.manifest.State.Deleted {
			out = append(out, e.manifest)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b Manifest) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return out
}

// loadSavesets reads all manifests and states. One that is damaged is logged and left out: the others must stay
// readable. One of a newer format, or of a key that is not there, is an error: then the whole store is.
func (s *Store) loadSavesets(ctx context.Context) error {
	for o, err := range s.objects(ctx, manifestPrefix) {
		if err != nil {
			return wrap("list manifests", "", err)
		}
		m, err := s.readManifest(ctx, o)
		switch {
		case KindOf(err) == Damaged:
			id, _ := ParseSavesetID(strings.TrimPrefix(o.name, manifestPrefix))
			s.noteObject(o.name, id, err)
		case err != nil:
			return err
		default:
			s.sets.add(m, 0)
		}
	}
	return s.loadStates(ctx)
}

func (s *Store) readManifest(ctx context.Context, at object) (Manifest, error) {
	var o manifestObject
	if err := s.readObject(ctx, manifestKind, at, &o); err != nil {
		return Manifest{}, err
	}
	if manifestName(o.ID) != at.name {
		return Manifest{}, &Error{Kind: Damaged, Op: "read manifest", Object: at.name, Err: fmt.Errorf("it is that of %v", o.ID)}
	}
	return o.manifest(), nil
}

// loadStates applies the states in order of their numbers: they are listed so.
func (s *Store) loadStates(ctx context.Context) error {
	for o, err := range s.objects(ctx, statePrefix) {
		if err != nil {
			return wrap("list states", "", err)
		}
		hexID, hexNumber, _ := strings.Cut(strings.TrimPrefix(o.name, statePrefix), "/")
		id, err := ParseSavesetID(hexID)
		n, ok := parseNumber(hexNumber)
		e, known := s.sets.get(id)
		if err != nil || !ok || !known {
			continue // not ours, or of a saveset whose manifest is damaged
		}
		e.top = max(e.top, n)
		if err := s.loadState(ctx, o, e, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) loadState(ctx context.Context, at object, e *savesetEntry, n uint32) error {
	var o stateObject
	name := at.name
	err := s.readObject(ctx, stateKind, at, &o)
	unreadable := KindOf(err) == Damaged
	if err == nil && (o.Saveset != e.manifest.ID || o.Number != n) {
		err = &Error{Kind: Damaged, Op: "read state", Object: name, Err: errors.New("it is another one's")}
	}
	if err == nil {
		if bad := e.manifest.State.follow(o.state()); bad != nil {
			err = &Error{Kind: Damaged, Op: "read state", Object: name, Err: bad}
		}
	}
	if KindOf(err) == Damaged {
		s.noteObject(name, e.manifest.ID, err)
		if unreadable {
			e.manifest.State.Doubt = name
		}
		return nil
	}
	if err != nil {
		return err
	}
	e.manifest.State = o.state()
	return nil
}

// Savesets returns all savesets that are not deleted, oldest first, each with its newest valid state.
func (s *Store) Savesets(ctx context.Context) ([]Manifest, error) {
	if err := s.alive(); err != nil {
		return nil, err
	}
	return s.sets.list(), ctx.Err()
}

// Saveset returns one saveset, deleted ones included. Kind NotFound.
func (s *Store) Saveset(ctx context.Context, id SavesetID) (Manifest, error) {
	if err := s.alive(); err != nil {
		return Manifest{}, err
	}
	e, ok := s.sets.get(id)
	if !ok {
		return Manifest{}, &Error{Kind: NotFound, Op: "find saveset", Object: id.String()}
	}
	s.sets.mu.Lock()
	defer s.sets.mu.Unlock()
	return e.manifest, ctx.Err()
}

// SetState writes a new state of a saveset and returns it with its number and time. Durable when it returns. The change
// function gets the newest state and returns what it shall be; Number and Time are filled in. Kinds NotFound,
// Immutable (never below immutable_until), InUse (deletion of a leased saveset).
func (s *Store) SetState(ctx context.Context, id SavesetID, change func(State) State) (State, error) {
	if err := s.alive(); err != nil {
		return State{}, err
	}
	e, ok := s.sets.get(id)
	if !ok {
		return State{}, &Error{Kind: NotFound, Op: "set state", Object: id.String()}
	}
	e.change.Lock()
	defer e.change.Unlock()
	return s.changeState(ctx, e, change)
}

// changeState is SetState with e.change held.
func (s *Store) changeState(ctx context.Context, e *savesetEntry, change func(State) State) (State, error) {
	old := s.sets.state(e)
	next := change(old)
	next.Time = s.opts.Now()
	next = next.normal()
	if old.Doubt != "" {
		return State{}, &Error{Kind: Damaged, Op: "set state", Object: old.Doubt, Err: errDoubt}
	}
	if err := old.follow(next); err != nil {
		return State{}, &Error{Kind: Immutable, Op: "set state", Object: e.manifest.ID.String(), Err: err}
	}
	return s.writeState(ctx, e, old, next)
}

// writeState needs e.change held. It may use the reserve: a deletion is what makes space. A deletion counts in memory
// before it is written, so that no lease can come in between; it is taken back when it cannot be written.
//
// INVARIANT: nothing is written behind a state that failed while that may be there: the next Open would hold what was
// reported as done against what was not.
func (s *Store) writeState(ctx context.Context, e *savesetEntry, old, next State) (State, error) {
	if err := s.dropLoose(ctx, e); err != nil {
		return State{}, err
	}
	id := e.manifest.ID
	for {
		e.top++
		next.Number = e.top
		if !s.sets.setState(e, next) {
			return State{}, &Error{Kind: InUse, Op: "delete saveset", Object: id.String()}
		}
		name := stateName(id, next.Number)
		err := s.putObject(ctx, stateKind, name, next.object(id))
		if err == nil {
			s.sets.stateIsDurable(e)
			return next, nil
		}
		s.sets.setState(e, old)
		if !errors.Is(err, blob.ErrExists) {
			e.loose = name
			return State{}, err
		}
	}
}

// dropLoose removes what a state that failed may have left, for good. It needs e.change held.
func (s *Store) dropLoose(ctx context.Context, e *savesetEntry) error {
	if e.loose == "" {
		return nil
	}
	if err := s.deleteObject(ctx, e.loose); err != nil {
		return err
	}
	e.loose = ""
	return nil
}
