package dedup

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

const (
	damagePrefix = "damage/"
	damageKind   = "damage"
	// maxRowDigests bounds the digests of one row, and so the object. A frame has at most 4096.
	maxRowDigests = 8192
)

func damageName(n uint64) string { return fmt.Sprintf("%s%016x", damagePrefix, n) }

// damageObject is the stored form of a damageRow; FORMAT.md explains the fields.
type damageObject struct {
	Version   int             `json:"version"`
	Sort      damageSort      `json:"sort"`
	Container string          `json:"container,omitzero"`
	Content   container.Kind  `json:"content,omitzero"`
	Frame     int32           `json:"frame"`
	Digests   []digest.Digest `json:"digests,omitempty"`
	Dormant   []digest.Digest `json:"dormant,omitempty"`
	Unknown   bool            `json:"unknown,omitzero"`
	Object    string          `json:"object,omitzero"`
	Saveset   SavesetID       `json:"saveset,omitzero"`
	Reason    string          `json:"reason,omitzero"`
	Found     time.Time       `json:"found"`
}

func (r *damageRow) object() damageObject {
	o := damageObject{Version: objectVersion, Sort: r.sort, Content: r.Kind, Frame: r.Frame, Digests: r.Digests,
		Dormant: r.dormant, Unknown: r.unknown, Object: r.Object, Saveset: r.Saveset, Reason: r.Reason, Found: r.Found}
	if r.Container != 0 {
		o.Container = r.Container.String()
	}
	return o
}

var errRow = errors.New("not a row of a damage list")

// row checks what came from outside.
func (o *damageObject) row() (damageRow, error) {
	r := damageRow{sort: o.Sort, dormant: o.Dormant, unknown: o.Unknown, Damage: Damage{Kind: o.Content, Frame: o.Frame,
		Digests: o.Digests, Object: o.Object, Saveset: o.Saveset, Reason: o.Reason, Found: o.Found}}
	if o.Container != "" {
		n, err := strconv.ParseUint(o.Container, 16, 64)
		if err != nil || container.ID(n).String() != o.Container {
			return r, errRow
		}
		r.Container = container.ID(n)
	}
	inContainer := r.Container != 0
	ok := len(o.Digests)+len(o.Dormant) <= maxRowDigests && o.Frame >= WholeContainer
	switch o.Sort {
	case damagedFrame:
		ok = ok && inContainer && o.Frame >= 0 && !o.Unknown
	case damagedContainer, damagedShell:
		ok = ok && inContainer && o.Frame == WholeContainer
	case damagedReference:
		ok = ok && o.Frame == WholeContainer && !o.Unknown
	case damagedObject:
		ok = ok && o.Object != "" && !inContainer && len(o.Digests)+len(o.Dormant) == 0 && !o.Unknown
	default:
		ok = false
	}
	if !ok {
		return r, errRow
	}
	return r, nil
}

// loadDamage reads the damage list, before the index is brought level: what is on it takes no entries. A row that is
// damaged itself is logged and left out: its place will be found again.
func (s *Store) loadDamage(ctx context.Context) error {
	for o, err := range s.objects(ctx, damagePrefix) {
		if err != nil {
			return wrap("list damage", "", err)
		}
		if err := s.loadDamageRow(ctx, o.name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) loadDamageRow(ctx context.Context, name string) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(name, damagePrefix), 16, 64)
	if err != nil || damageName(n) != name {
		return nil // not ours
	}
	s.damage.next = max(s.damage.next, n)
	var o damageObject
	var r damageRow
	if err = s.getObject(ctx, damageKind, name, &o); err == nil {
		if r, err = o.row(); err != nil {
			err = &Error{Kind: Damaged, Op: "read damage", Object: name, Err: err}
		}
	}
	switch {
	case KindOf(err) == Damaged:
		s.log.Error("a row of the damage list is damaged itself and does not count", "object", name, "err", err)
		s.noteObject(name, SavesetID{}, err)
		return nil
	case err != nil:
		return err
	}
	if r.Container != 0 && !s.containers.has(r.Container) && r.sort != damagedReference {
		r.sort, r.Frame, r.unknown = damagedReference, WholeContainer, false // it went, and what is missed is still missed
	}
	s.damage.load(n, r)
	if r.spoils() {
		s.containers.spoil(r.Container)
	}
	return nil
}

// load enters a row that was read. Of two about one place, which a crash left, the later one counts.
func (l *damageList) load(number uint64, r damageRow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.rows {
		if r.sort != damagedReference && o.sort == r.sort && o.Container == r.Container && o.Frame == r.Frame && o.Object == r.Object {
			l.gone = append(l.gone, o.number)
			l.rows = append(l.rows[:i], l.rows[i+1:]...)
			break
		}
	}
	l.version++
	r.number, r.version = number, l.version
	l.enter(&r)
}

// saveDamage writes what changed: a row gets a new object, then its old one goes. Between the two, the list says a thing
// twice. It may use the reserve.
func (s *Store) saveDamage(ctx context.Context) error {
	s.damageSave.Lock()
	defer s.damageSave.Unlock()
	rows, gone := s.damage.unsaved()
	for i, r := range rows {
		if err := s.putObject(ctx, damageKind, damageName(r.number), r.object); err != nil {
			s.damage.unwritten(rows[i:])
			s.damage.undeleted(gone)
			return err
		}
		if r.old != 0 {
			gone = append(gone, r.old)
		}
	}
	for i, n := range gone {
		if err := s.deleteObject(ctx, damageName(n)); err != nil && KindOf(err) != NotFound {
			s.damage.undeleted(gone[i:])
			return err
		}
	}
	return nil
}

// unsavedRow is a row to be written: number is the new object's, old the one that it replaces.
type unsavedRow struct {
	row         *damageRow
	object      damageObject
	number, old uint64
}

// unsaved returns what saveDamage has to write and to delete, and takes it for done.
func (l *damageList) unsaved() (rows []unsavedRow, gone []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.rows {
		if !r.stale {
			continue
		}
		l.next++
		u := unsavedRow{row: r, object: r.object(), number: l.next, old: r.number}
		u.object.Digests, u.object.Dormant = append([]digest.Digest(nil), r.Digests...), append([]digest.Digest(nil), r.dormant...)
		r.number, r.stale = u.number, false
		rows = append(rows, u)
	}
	gone, l.gone = l.gone, nil
	return rows, gone
}

// unwritten takes back that rows were written.
func (l *damageList) unwritten(rows []unsavedRow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range rows {
		u.row.stale = true
		if u.old != 0 {
			l.gone = append(l.gone, u.old)
		}
	}
}

func (l *damageList) undeleted(numbers []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = append(l.gone, numbers...)
}
