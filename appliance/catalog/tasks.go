package catalog

import (
	"context"
	"database/sql"
	"time"
)

// Task types of this version.
const (
	TaskPath   = "path"
	TaskStream = "stream"
	// TaskLibvirt is a virtual machine of a KVM host.
	TaskLibvirt = "libvirt"
)

// Task is WHAT is backed up.
type Task struct {
	Name, Client, Type, Pool string
	CreatedAt                time.Time
	Options                  TaskOptions
}

// TaskOptions is the part of a task that the catalog keeps as JSON. Paths are bytes and stand there in base64.
type TaskOptions struct {
	Sources       [][]byte `json:"sources,omitempty"`
	Excludes      []string `json:"excludes,omitempty"`
	Images        []string `json:"images,omitempty"` // patterns of files that are stored as disk images
	OneFileSystem bool     `json:"one_file_system,omitempty"`
	Command       []string `json:"command,omitempty"`
	StreamName    string   `json:"stream_name,omitempty"`
	PreCommand    []string `json:"pre_command,omitempty"`
	PostCommand   []string `json:"post_command,omitempty"`
	// Seal is set for an encrypted task.
	Seal *TaskSeal `json:"seal,omitempty"`
	// Mover is the client whose agent reads for the task (the data mover); empty: the task's own client.
	Mover string `json:"mover,omitempty"`
	// Libvirt is set for tasks of that type.
	Libvirt *TaskMachine `json:"libvirt,omitempty"`
}

// TaskMachine is the virtual machine of a task of type libvirt.
type TaskMachine struct {
	URI          string   `json:"uri,omitempty"` // of the libvirtd; empty: the worker's own
	UUID         string   `json:"uuid,omitempty"`
	Domain       string   `json:"domain,omitempty"` // its name
	ExcludeDisks []string `json:"exclude_disks,omitempty"`
	Quiesce      string   `json:"quiesce,omitempty"`
	ScratchDir   string   `json:"scratch_dir,omitempty"`
	// Generated says that the task was made for a domain that was found, and goes with it.
	Generated bool `json:"generated,omitempty"`
}

// Worker is the client whose agent carries the task out.
func (t Task) Worker() string {
	if t.Options.Mover != "" {
		return t.Options.Mover
	}
	return t.Client
}

// TaskSeal is how a task is encrypted: by a key that only the client has, in a dedup domain that only this task writes.
type TaskSeal struct {
	Domain  string `json:"domain"`
	KeyID   string `json:"key_id"`
	KeyFile string `json:"key_file,omitempty"` // on the client; empty: the agent's own place
}

// Pool is a media pool.
type Pool struct {
	Name          string
	RetentionDays int
	CreatedAt     time.Time
	// Savesets, Bytes (logical) and Stored are sums over the pool's savesets.
	Savesets, Bytes, Stored int64
}

// Retention is the pool's retention as a duration. A day has 24 hours here: EOL is a date, not an appointment.
func (p Pool) Retention() time.Duration { return time.Duration(p.RetentionDays) * 24 * time.Hour }

const taskColumns = `SELECT name, client, type, pool, options, created_at FROM tasks`

func scanTask(row scanner) (Task, error) {
	var t Task
	err := row.Scan(&t.Name, &t.Client, &t.Type, &t.Pool, asJSON{&t.Options}, when{&t.CreatedAt})
	return t, err
}

// Tasks lists all tasks by name.
func (c *Catalog) Tasks(ctx context.Context) ([]Task, error) {
	out, err := list(ctx, c.r, scanTask, taskColumns+` ORDER BY name`)
	return out, c.fail("list tasks", err)
}

// Task returns one task; KindNotFound.
func (c *Catalog) Task(ctx context.Context, name string) (Task, error) {
	out, err := one(ctx, c.r, scanTask, taskColumns+` WHERE name = ?`, name)
	return out, c.fail("task "+name, err)
}

// AddTask makes a task and returns it with its time. KindExists; KindInUse: client or pool do not exist.
func (c *Catalog) AddTask(ctx context.Context, t Task) (Task, error) {
	t.CreatedAt = fromMicros(micros(c.opts.Now()))
	options, err := toJSON(t.Options)
	if err != nil {
		return t, c.fail("add task "+t.Name, err)
	}
	err = c.exec(ctx, "add task "+t.Name, nil, `INSERT INTO tasks (name, client, type, pool, options, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
		t.Name, t.Client, t.Type, t.Pool, options, micros(t.CreatedAt))
	return t, err
}

// SetTaskOptions changes what a task does; its name, client, type and pool stay. KindNotFound.
func (c *Catalog) SetTaskOptions(ctx context.Context, name string, o TaskOptions) error {
	op := "change task " + name
	options, err := toJSON(o)
	if err != nil {
		return c.fail(op, err)
	}
	return c.write(ctx, op, func(tx *sql.Tx) error {
		return execOne(ctx, tx, failf(KindNotFound, "%s", op), `UPDATE tasks SET options = ? WHERE name = ?`, options, name)
	})
}

// RemoveTask removes a task; its savesets and runs stay. KindNotFound; KindInUse while a run of it has not ended.
func (c *Catalog) RemoveTask(ctx context.Context, name string) error {
	op := "remove task " + name
	return c.write(ctx, op, func(tx *sql.Tx) error {
		var busy int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM runs WHERE task = ? AND kind = 'backup' AND state IN ('queued', 'active')`, name).Scan(&busy)
		if err != nil {
			return err
		}
		if busy > 0 {
			return failf(KindInUse, "%s", op)
		}
		return execOne(ctx, tx, failf(KindNotFound, "%s", op), `DELETE FROM tasks WHERE name = ?`, name)
	})
}

const poolColumns = `SELECT p.name, p.retention_days, p.created_at, count(s.id), coalesce(sum(s.bytes_logical), 0), coalesce(sum(s.bytes_stored), 0)
	FROM pools p LEFT JOIN savesets s ON s.pool = p.name AND s.deleted_at IS NULL`

func scanPool(row scanner) (Pool, error) {
	var p Pool
	err := row.Scan(&p.Name, &p.RetentionDays, when{&p.CreatedAt}, &p.Savesets, &p.Bytes, &p.Stored)
	return p, err
}

// Pools lists all pools by name.
func (c *Catalog) Pools(ctx context.Context) ([]Pool, error) {
	out, err := list(ctx, c.r, scanPool, poolColumns+` GROUP BY p.name ORDER BY p.name`)
	return out, c.fail("list pools", err)
}

// Pool returns one pool; KindNotFound.
func (c *Catalog) Pool(ctx context.Context, name string) (Pool, error) {
	out, err := one(ctx, c.r, scanPool, poolColumns+` WHERE p.name = ? GROUP BY p.name`, name)
	return out, c.fail("pool "+name, err)
}
