package maintenance

import (
	"encoding/json"
	"fmt"
	"time"

	"coffer/appliance/catalog"
)

// TimeOfDay is a time on the clock of a zone, as time since midnight; Never is none.
type TimeOfDay time.Duration

// Never is no time of the day.
const Never TimeOfDay = -1

// On is the time of the day on the date of t, in t's zone. A time that clocks leave out is moved by as much as they are; of
// one that they repeat it is one of the two.
func (d TimeOfDay) On(t time.Time) time.Time {
	h, m, s := int(d/TimeOfDay(time.Hour)), int(d/TimeOfDay(time.Minute))%60, int(d/TimeOfDay(time.Second))%60
	at := time.Date(t.Year(), t.Month(), t.Day(), h, m, s, 0, t.Location())
	if at.Day() != t.Day() { // the day begins with the time that is left out
		return at.Add(time.Date(t.Year(), t.Month(), t.Day(), h, m, s, 0, time.UTC).Sub(wall(at)))
	}
	return at
}

// wall is what a clock shows at t, as a time of UTC.
func wall(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

// Next is the first such time after t: one on each date.
func (d TimeOfDay) Next(t time.Time) time.Time {
	return d.dated(t, func(at time.Time) bool { return at.After(t) }, -1, 0, 1, 2)
}

// Last is the last such time that is not after t.
func (d TimeOfDay) Last(t time.Time) time.Time {
	return d.dated(t, func(at time.Time) bool { return !at.After(t) }, 1, 0, -1, -2)
}

func (d TimeOfDay) dated(t time.Time, fits func(time.Time) bool, offsets ...int) time.Time {
	noon := time.Date(t.Year(), t.Month(), t.Day(), 12, 0, 0, 0, t.Location()) // dates are counted from a time that exists
	for _, n := range offsets {
		if at := d.On(noon.AddDate(0, 0, n)); fits(at) {
			return at
		}
	}
	return time.Time{} // not reached: the offsets span every case
}

const (
	// clockEvery is how often the clock is looked at: it may be set.
	clockEvery = time.Minute
	// afterStart is how long an appliance that comes up leaves the store to others before it goes on with its maintenance.
	afterStart = 2 * time.Minute
	// maxTries is how often the maintenance of one day is begun.
	maxTries = 3
	// daySetting is the catalog's key of how far the daily maintenance is.
	daySetting = "maintenance.day"
)

// day is how far the maintenance of a day is. It is the JSON in the catalog's setting; part of its format.
type day struct {
	Date  string `json:"date"`           // of its NEWDAY, 2026-11-22
	Steps int    `json:"steps"`          // that have ended
	Tries int    `json:"tries"`          // how often it was begun
	Done  bool   `json:"done,omitempty"` // nothing more to do
}

// daily starts the maintenance of each day, until Stop.
func (m *Manager) daily() {
	up := m.clock()
	if err := m.firstDay(up); err != nil {
		m.log.Error("daily maintenance", "error", err)
	}
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.running.Done():
			return
		}
		now := m.clock()
		m.setNext(m.opts.Config.Start.Next(now))
		if begun := m.opts.Config.Start.Last(now); begun.After(up) || now.Sub(up) >= afterStart {
			if err := m.maintainDay(begun.Format(time.DateOnly)); err != nil && m.running.Err() == nil {
				m.log.Error("daily maintenance", "error", err)
			}
		}
		now = m.clock()
		tick.Reset(min(clockEvery, max(time.Second, m.opts.Config.Start.Next(now).Sub(now))))
	}
}

func (m *Manager) clock() time.Time { return m.now().In(m.opts.Zone) }

func (m *Manager) setNext(t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next = t
}

// firstDay keeps a new appliance from a maintenance of the day that it was made on.
func (m *Manager) firstDay(now time.Time) error {
	d, err := m.loadDay()
	if err != nil || d.Date != "" {
		return err
	}
	return m.saveDay(day{Date: m.opts.Config.Start.Last(now).Format(time.DateOnly), Done: true})
}

// maintainDay does what is left of the maintenance of a day.
func (m *Manager) maintainDay(date string) error {
	d, err := m.loadDay()
	if err != nil {
		return err
	}
	if d.Date != date {
		d = day{Date: date}
	}
	if d.Done {
		return nil
	}
	if _, err := m.opts.Store(); err != nil {
		return nil // the next look may find it open
	}
	if d.Tries >= maxTries {
		m.log.Error("daily maintenance is given up until tomorrow: the appliance ended in the middle of it again and again", "tries", d.Tries)
		d.Done = true
		return m.saveDay(d)
	}
	d.Tries++
	return m.doDay(d)
}

// doDay does the steps of a day that are left. A step that fails does not keep the others from their turn.
func (m *Manager) doDay(d day) error {
	if err := m.saveDay(d); err != nil {
		return err
	}
	steps := m.steps()
	for d.Steps < len(steps) {
		j, err := m.enqueue(m.ctx, steps[d.Steps])
		switch {
		case KindOf(err) == KindWaiting: // somebody asked for the same: that will do
		case err != nil:
			return fmt.Errorf("start %s: %w", steps[d.Steps].Kind, err)
		default:
			<-j.done // Stop ends it, too
		}
		if m.running.Err() != nil {
			return nil // the next start goes on with this step
		}
		d.Steps++
		d.Done = d.Steps == len(steps)
		if err := m.saveDay(d); err != nil {
			return err
		}
	}
	return nil
}

// steps of a daily maintenance, in their order.
func (m *Manager) steps() []Request {
	var out []Request
	add := func(k Kind, s Settings) {
		out = append(out, Request{Kind: k, Settings: s, Trigger: catalog.TriggerDaily})
	}
	if m.opts.Purge != nil {
		add(Purge, Settings{})
	}
	add(GC, Settings{})
	if share := m.opts.Config.Share; share > 0 {
		add(Check, Settings{Share: share})
	} else {
		add(Check, Settings{Half: ObjectsHalf})
	}
	add(Usage, Settings{})
	return out
}

func (m *Manager) loadDay() (d day, err error) {
	text, err := m.opts.Catalog.Setting(m.ctx, daySetting)
	if err == nil && text != "" {
		err = json.Unmarshal([]byte(text), &d)
	}
	if err != nil {
		return d, fmt.Errorf("read how far the day is: %w", err)
	}
	return d, nil
}

func (m *Manager) saveDay(d day) error {
	raw, err := json.Marshal(d)
	if err == nil {
		err = m.opts.Catalog.SetSetting(m.ctx, daySetting, string(raw))
	}
	if err != nil {
		return fmt.Errorf("keep how far the day is: %w", err)
	}
	return nil
}
