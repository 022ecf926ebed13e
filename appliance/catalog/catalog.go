package catalog

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver registers itself
)

// FileName is the database's name in its directory.
const FileName = "catalog.db"

// DefaultPool exists from the start, with DefaultRetentionDays.
const (
	DefaultPool          = "default"
	DefaultRetentionDays = 30
)

// readers is the number of connections that read side by side.
const readers = 4

//go:embed migrations/*.sql
var migrations embed.FS

// Options change a Catalog; the zero value works.
type Options struct {
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: silent

	migrations fs.FS // tests: other migrations than the embedded ones
}

// Catalog is an open database.
type Catalog struct {
	dir  string
	opts Options
	w, r *sql.DB
}

// Open opens the database in dir, which must exist, or makes it, and brings its schema up to date.
// KindNewer: a newer program wrote it.
func Open(ctx context.Context, dir string, opts Options) (*Catalog, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.migrations == nil {
		sub, err := fs.Sub(migrations, "migrations")
		if err != nil {
			return nil, err
		}
		opts.migrations = sub
	}
	c := &Catalog{dir: dir, opts: opts}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(c.fail("open", err), c.Close())
	}
	return c, nil
}

func (c *Catalog) open(ctx context.Context) error {
	path := filepath.Join(c.dir, FileName)
	var err error
	if c.w, err = sql.Open("sqlite", dsn(path, "_txlock=immediate")); err != nil {
		return err
	}
	c.w.SetMaxOpenConns(1)
	if err := c.migrate(ctx); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if c.r, err = sql.Open("sqlite", dsn(path, "_pragma=query_only(1)")); err != nil {
		return err
	}
	c.r.SetMaxOpenConns(readers)
	if err := c.seed(ctx); err != nil {
		return err
	}
	return c.KeepBallast()
}

// dsn names the file with the pragmas of every connection.
func dsn(path, extra string) string {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}
	return u.String() + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
		"&_pragma=foreign_keys(1)&_pragma=temp_store(MEMORY)&_pragma=cache_size(-4096)" +
		"&_pragma=journal_size_limit(16777216)&" + extra
}

// Close closes the database. It is safe on a catalog that failed to open.
func (c *Catalog) Close() error {
	var errs []error
	for _, db := range []*sql.DB{c.r, c.w} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return c.fail("close", errors.Join(errs...))
}

// seed makes the rows that exist from the start. A catalog that has them is opened on a full disk, too.
func (c *Catalog) seed(ctx context.Context) error {
	if _, err := c.Pool(ctx, DefaultPool); KindOf(err) != KindNotFound {
		return err
	}
	return c.exec(ctx, "make the pool "+DefaultPool, nil, `INSERT INTO pools (name, retention_days, created_at) VALUES (?, ?, ?)`,
		DefaultPool, DefaultRetentionDays, micros(c.opts.Now()))
}

// migrate applies the pending migrations one by one, each after a copy of the database.
func (c *Catalog) migrate(ctx context.Context) error {
	p, err := goose.NewProvider(goose.DialectSQLite3, c.w, c.opts.migrations, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	sources := p.ListSources()
	newest := sources[len(sources)-1].Version
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if have > newest {
		return &Error{Kind: KindNewer, Op: "open", Err: fmt.Errorf(
			"%s has schema version %d, this program knows up to version %d: it was written by a newer version of Coffer",
			filepath.Join(c.dir, FileName), have, newest)}
	}
	for have < newest {
		if err := c.copyBefore(ctx, have); err != nil {
			return err
		}
		result, err := p.UpByOne(ctx)
		if err != nil {
			return fmt.Errorf("migrate schema from version %d: %w", have, err)
		}
		c.opts.Logger.Info("catalog migrated", "from", have, "to", result.Source.Version)
		have = result.Source.Version
	}
	return nil
}

// copyBefore copies the database before it leaves the schema version. A database without any schema has nothing to lose.
func (c *Catalog) copyBefore(ctx context.Context, version int64) error {
	if version == 0 {
		return nil
	}
	name := fmt.Sprintf("catalog-v%d-%s.db", version, c.opts.Now().UTC().Format("20060102T150405.000Z"))
	if err := c.CopyTo(ctx, filepath.Join(c.dir, name)); err != nil {
		return fmt.Errorf("copy before migration: %w", err)
	}
	return nil
}

// CopyTo writes a consistent copy of the database to path, which must not exist. Durable when it returns nil.
func (c *Catalog) CopyTo(ctx context.Context, path string) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c.fail("copy", err)
	}
	if _, err := c.w.ExecContext(ctx, `VACUUM INTO ?`, tmp); err != nil {
		return errors.Join(c.fail("copy to "+path, err), ignoreMissing(os.Remove(tmp)))
	}
	for _, step := range []func() error{
		func() error { return os.Chmod(tmp, 0o600) },
		func() error { return syncPath(tmp) },
		func() error { return os.Rename(tmp, path) },
		func() error { return syncPath(filepath.Dir(path)) },
	} {
		if err := step(); err != nil {
			return c.fail("copy to "+path, err)
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// write runs f in a transaction that holds the write lock from its start. On a full disk it draws on the ballast and
// tries once more.
func (c *Catalog) write(ctx context.Context, op string, f func(*sql.Tx) error) error {
	return c.writeAs(ctx, essential, op, f)
}

func (c *Catalog) writeAs(ctx context.Context, cl class, op string, f func(*sql.Tx) error) error {
	err := c.writeOnce(ctx, op, f)
	if cl == essential && KindOf(err) == KindNoSpace && c.dropBallast() {
		err = c.writeOnce(ctx, op, f)
	}
	return err
}

func (c *Catalog) writeOnce(ctx context.Context, op string, f func(*sql.Tx) error) error {
	tx, err := c.w.BeginTx(ctx, nil)
	if err != nil {
		return c.fail(op, err)
	}
	if err := f(tx); err != nil {
		_ = tx.Rollback() // the cause is what counts; a rollback that fails leaves nothing behind either
		return c.fail(op, err)
	}
	return c.fail(op, tx.Commit())
}

// exec runs one statement in a transaction; noRow is the error when it touches no row, nil accepts that.
func (c *Catalog) exec(ctx context.Context, op string, noRow error, query string, args ...any) error {
	return c.write(ctx, op, func(tx *sql.Tx) error { return execOne(ctx, tx, noRow, query, args...) })
}

func execOne(ctx context.Context, tx *sql.Tx, noRow error, query string, args ...any) error {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	if noRow == nil {
		return nil
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return err
	}
	return noRow
}

// scanner is a row or a set of rows at one.
type scanner interface{ Scan(dest ...any) error }

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// list collects the rows of a query.
func list[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// one returns the only row of a query; sql.ErrNoRows where there is none.
func one[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	var zero T
	rows, err := list(ctx, q, scan, query, args...)
	if err != nil {
		return zero, err
	}
	if len(rows) == 0 {
		return zero, sql.ErrNoRows
	}
	return rows[0], nil
}
