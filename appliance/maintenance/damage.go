package maintenance

import (
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"coffer/appliance/catalog"
	"coffer/dedup"
)

const (
	// maxHarmedPaths is how many paths of one saveset the damage list names.
	maxHarmedPaths = 1000
	// damageEvery is how often the store's damage list is looked at without a cause.
	damageEvery = time.Minute
	// searchPause times the duration of a search for harmed savesets is how long the next one waits.
	searchPause = 9
)

// urgency says why the damage list is looked at.
type urgency uint8

const (
	onTick  urgency = iota // it may have changed
	onTouch                // whom it harms may have changed, too
	atOnce                 // likewise, and somebody waits to know
)

// damageList keeps the catalog's damage list level with the store's.
type damageList struct {
	wake chan struct{}

	mu       sync.Mutex // held while the list is brought level; guards the four below
	known    []dedup.Damage
	loaded   bool // known is what the catalog has
	stale    bool // whom the list harms may not be what the catalog has
	searchAt time.Time

	state struct {
		sync.Mutex // guards the one below
		searching  bool
	}
}

// DamageMayHaveChanged says that something wrote to, deleted from or read the store.
func (m *Manager) DamageMayHaveChanged() { signal(m.list.wake) }

// HarmsKnown reports whether the catalog says whom the present damage list harms.
func (m *Manager) HarmsKnown() bool {
	m.list.state.Lock()
	defer m.list.state.Unlock()
	return !m.list.state.searching
}

func (l *damageList) setStale(stale bool) {
	l.stale = stale
	l.state.Lock()
	l.state.searching = stale
	l.state.Unlock()
}

// keepDamage brings the list level when it is told to, and every minute.
func (m *Manager) keepDamage() {
	tick := time.NewTicker(damageEvery)
	defer tick.Stop()
	why := onTouch
	for {
		m.syncDamage(why)
		select {
		case <-tick.C:
			why = onTick
		case <-m.list.wake:
			why = onTouch
		case <-m.running.Done():
			return
		}
	}
}

// syncDamage takes the store's damage list into the catalog.
func (m *Manager) syncDamage(why urgency) {
	store, err := m.opts.Store()
	if err != nil {
		return // what the catalog has is the last that was known
	}
	m.list.mu.Lock()
	defer m.list.mu.Unlock()
	if err := m.list.sync(m, store, why); err != nil && m.running.Err() == nil {
		m.log.Error("the catalog's damage list is not the store's", "error", err)
	}
}

func (l *damageList) sync(m *Manager, store Store, why urgency) error {
	list := store.Damage()
	changed := !l.loaded || !slices.EqualFunc(list, l.known, sameDamage)
	if len(list) == 0 && !changed {
		return nil
	}
	if changed {
		var none []catalog.HarmedSaveset
		if len(list) == 0 {
			none = []catalog.HarmedSaveset{}
		}
		if err := m.opts.Catalog.SetDamage(m.ctx, mapped(list, damageRow), none); err != nil {
			return err
		}
		if len(list) > len(l.known) {
			m.log.Error("stored data is damaged", "places", len(list), "see", "coffer store damage")
		}
		l.known, l.loaded = list, true
	}
	l.setStale(len(list) > 0 && (l.stale || changed || why != onTick))
	if !l.stale || why != atOnce && !changed && m.now().Before(l.searchAt) {
		return nil
	}
	return l.search(m, store)
}

// search asks whom the list harms.
func (l *damageList) search(m *Manager, store Store) error {
	start := m.now()
	affected, err := store.Affected(m.running, maxHarmedPaths)
	l.searchAt = m.now().Add(searchPause * m.now().Sub(start))
	if err != nil {
		return fmt.Errorf("search for savesets that damage harms: %w", err)
	}
	if err := m.opts.Catalog.SetDamage(m.ctx, mapped(l.known, damageRow), mapped(affected, harmedRow)); err != nil {
		return err
	}
	l.setStale(false)
	return nil
}

func sameDamage(a, b dedup.Damage) bool {
	return a.Container == b.Container && a.Frame == b.Frame && a.Kind == b.Kind && a.Object == b.Object && a.Saveset == b.Saveset &&
		a.Reason == b.Reason && a.Found.Equal(b.Found) && slices.Equal(a.Digests, b.Digests)
}

func mapped[A, B any](in []A, f func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

func damageRow(d dedup.Damage) catalog.Damage {
	row := catalog.Damage{Kind: d.Kind.String(), Frame: int64(d.Frame), Object: d.Object, Reason: d.Reason, Found: d.Found}
	if d.Container != (dedup.Damage{}).Container {
		row.Container = d.Container.String()
	}
	if d.Saveset != (dedup.SavesetID{}) {
		row.Saveset = d.Saveset.String()
	}
	for _, g := range d.Digests {
		row.Digests = append(row.Digests, hex.EncodeToString(g[:]))
	}
	return row
}

func harmedRow(a dedup.Affected) catalog.HarmedSaveset {
	return catalog.HarmedSaveset{Saveset: a.Saveset.String(), Object: a.Object, Paths: a.Paths, More: a.More}
}
