package catalog

import (
	"context"
	"database/sql"
	"time"
)

// Damage is one row of the damage list, as the store tells it.
type Damage struct {
	Container string // empty: a small object, or a place that is not known
	Kind      string // data, nodes
	Frame     int64  // -1: no frame is meant
	Object    string // the small object that is damaged
	Saveset   string // whose Object is
	Digests   []string
	Reason    string
	Found     time.Time
}

// HarmedSaveset is a saveset that damage harms.
type HarmedSaveset struct {
	Saveset string
	Object  string // its own object that is damaged
	Paths   []string
	More    int64 // paths beyond those that are kept
}

// SetDamage replaces the damage list, and with harmed not nil whom it harms, too, in one step.
func (c *Catalog) SetDamage(ctx context.Context, list []Damage, harmed []HarmedSaveset) error {
	return c.write(ctx, "set the damage list", func(tx *sql.Tx) error {
		if err := putDamage(ctx, tx, list); err != nil || harmed == nil {
			return err
		}
		return putHarmed(ctx, tx, harmed)
	})
}

func putDamage(ctx context.Context, tx *sql.Tx, list []Damage) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM damage`); err != nil {
		return err
	}
	for i, d := range list {
		digests, err := toJSON(d.Digests)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO damage (n, container, kind, frame, object, saveset, digests, reason, found_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, i, d.Container, d.Kind, d.Frame, d.Object, d.Saveset, digests, d.Reason, micros(d.Found)); err != nil {
			return err
		}
	}
	return nil
}

func putHarmed(ctx context.Context, tx *sql.Tx, harmed []HarmedSaveset) error {
	for _, table := range []string{"damage_paths", "damage_savesets"} {
		if _, err := tx.ExecContext(ctx, `DELETE FROM `+table); err != nil {
			return err
		}
	}
	for _, h := range harmed {
		if _, err := tx.ExecContext(ctx, `INSERT INTO damage_savesets (saveset, object, more) VALUES (?, ?, ?)`, h.Saveset, h.Object, h.More); err != nil {
			return err
		}
		for i, p := range h.Paths {
			if _, err := tx.ExecContext(ctx, `INSERT INTO damage_paths (saveset, n, path) VALUES (?, ?, ?)`, h.Saveset, i, []byte(p)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Damage returns the damage list.
func (c *Catalog) Damage(ctx context.Context) ([]Damage, error) {
	out, err := list(ctx, c.r, func(s scanner) (d Damage, err error) {
		err = s.Scan(&d.Container, &d.Kind, &d.Frame, &d.Object, &d.Saveset, asJSON{&d.Digests}, &d.Reason, when{&d.Found})
		return d, err
	}, `SELECT container, kind, frame, object, saveset, digests, reason, found_at FROM damage ORDER BY n`)
	return out, c.fail("damage list", err)
}

// HarmedSavesets returns whom the damage list harms, newest first.
func (c *Catalog) HarmedSavesets(ctx context.Context) ([]HarmedSaveset, error) {
	type row struct {
		HarmedSaveset
		n    sql.NullInt64
		path []byte
	}
	rows, err := list(ctx, c.r, func(s scanner) (r row, err error) {
		err = s.Scan(&r.Saveset, &r.Object, &r.More, &r.n, &r.path)
		return r, err
	}, `SELECT s.saveset, s.object, s.more, p.n, p.path FROM damage_savesets s LEFT JOIN damage_paths p ON p.saveset = s.saveset
		ORDER BY s.saveset DESC, p.n`)
	var out []HarmedSaveset
	for _, r := range rows {
		if n := len(out); n == 0 || out[n-1].Saveset != r.Saveset {
			out = append(out, r.HarmedSaveset)
		}
		if r.n.Valid {
			h := &out[len(out)-1]
			h.Paths = append(h.Paths, string(r.path))
		}
	}
	return out, c.fail("savesets that damage harms", err)
}
