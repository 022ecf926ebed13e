package catalog

import (
	"context"
	"database/sql"
	"time"
)

// SavesetUsage is what a saveset takes, as the last count found.
type SavesetUsage struct {
	Saveset string
	Counted time.Time
	// Unique and UniqueStored bytes are in this saveset alone, before compression and as stored; Shared are the logical
	// bytes that others hold as well.
	Unique, UniqueStored, Shared int64
}

// ClientUsage is what the savesets of a client take, as the last count found.
type ClientUsage struct {
	Client               string
	Counted              time.Time
	Savesets, Logical    int64
	Unique, UniqueStored int64 // in savesets of this client alone
}

// SetUsage replaces what the last count found.
func (c *Catalog) SetUsage(ctx context.Context, sets []SavesetUsage, clients []ClientUsage) error {
	return c.writeAs(ctx, ordinary, "set usage", func(tx *sql.Tx) error {
		for _, table := range []string{"saveset_usage", "client_usage"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table); err != nil {
				return err
			}
		}
		for _, u := range sets {
			if _, err := tx.ExecContext(ctx, `INSERT INTO saveset_usage (saveset, counted_at, unique_bytes, unique_stored, shared_bytes)
				VALUES (?, ?, ?, ?, ?)`, u.Saveset, micros(u.Counted), u.Unique, u.UniqueStored, u.Shared); err != nil {
				return err
			}
		}
		for _, u := range clients {
			if _, err := tx.ExecContext(ctx, `INSERT INTO client_usage (client, counted_at, savesets, bytes_logical, unique_bytes, unique_stored)
				VALUES (?, ?, ?, ?, ?, ?)`, u.Client, micros(u.Counted), u.Savesets, u.Logical, u.Unique, u.UniqueStored); err != nil {
				return err
			}
		}
		return nil
	})
}

// SavesetUsage returns what a saveset takes; KindNotFound when it has not been counted yet.
func (c *Catalog) SavesetUsage(ctx context.Context, id string) (SavesetUsage, error) {
	out, err := one(ctx, c.r, func(s scanner) (u SavesetUsage, err error) {
		err = s.Scan(&u.Saveset, when{&u.Counted}, &u.Unique, &u.UniqueStored, &u.Shared)
		return u, err
	}, `SELECT saveset, counted_at, unique_bytes, unique_stored, shared_bytes FROM saveset_usage WHERE saveset = ?`, id)
	return out, c.fail("usage of saveset "+id, err)
}

// ClientUsage returns what each client takes, by name.
func (c *Catalog) ClientUsage(ctx context.Context) ([]ClientUsage, error) {
	out, err := list(ctx, c.r, func(s scanner) (u ClientUsage, err error) {
		err = s.Scan(&u.Client, when{&u.Counted}, &u.Savesets, &u.Logical, &u.Unique, &u.UniqueStored)
		return u, err
	}, `SELECT client, counted_at, savesets, bytes_logical, unique_bytes, unique_stored FROM client_usage ORDER BY client`)
	return out, c.fail("usage of clients", err)
}
