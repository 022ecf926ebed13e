package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

// latestPrefix before a task's name stands for the task's newest saveset.
const latestPrefix = "latest:"

const idHelp = `ID is a saveset's id, its first characters (at least six), or latest:TASK for the newest one of a task.`

// resolve returns a saveset's id of what was given on the command line.
func resolve(ctx context.Context, c *client.Client, id string) (string, error) {
	task, ok := strings.CutPrefix(id, latestPrefix)
	if !ok {
		return id, nil
	}
	p, err := c.Savesets(ctx, api.SavesetFilter{Task: task, Limit: 1})
	if err != nil {
		return "", err
	}
	if len(p.Items) == 0 {
		return "", api.Errorf(api.CodeNotFound, "task %s has no saveset", task).WithHint("'coffer saveset list' shows all")
	}
	return p.Items[0].ID, nil
}

func (a *app) savesetCmd() *cobra.Command {
	return a.group("saveset", "What is stored: list, look into, download, keep, delete", a.savesetListCmd(), a.savesetShowCmd(), a.savesetLsCmd(), a.savesetGetCmd(),
		a.savesetDeleteCmd(), a.savesetLockCmd(true), a.savesetLockCmd(false), a.savesetImmutableCmd(), a.savesetUnsealCmd(), a.savesetSealCmd())
}

func (a *app) savesetListCmd() *cobra.Command {
	var f api.SavesetFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List savesets, newest first", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			sets, err := pages(f.Limit, func(before string, limit int) (api.Page[api.Saveset], error) {
				f.Before, f.Limit = before, limit
				return c.Savesets(ctx, f)
			})
			if err != nil {
				return err
			}
			return printList(a, sets, "There are no such savesets.",
				newTable("ID", "TASK", "CLIENT", "LEVEL", "TAKEN", ">ENTRIES", ">SIZE", ">NEW", ">STORED", "KEPT UNTIL"), func(s api.Saveset) []string {
					return []string{s.ID, s.Task, s.Client, string(s.Level), a.clock(s.StartedAt), count(s.Entries), size(s.Bytes), size(s.BytesNew),
						size(s.BytesStored), a.day(s.EOL)}
				})
		}),
	}
	cmd.Flags().StringVar(&f.Task, "task", "", "only savesets of this task")
	cmd.Flags().StringVar(&f.Client, "client", "", "only savesets of this client")
	cmd.Flags().IntVar(&f.Limit, "limit", 0, "at most so many; 0 means all")
	flagComplete(cmd, "task", a.taskNames())
	flagComplete(cmd, "client", a.clientNames())
	return cmd
}

func (a *app) savesetShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a saveset", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.savesetAndPath()), Long: "Show a saveset.\n\n" + idHelp,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := resolve(ctx, c, args[0])
			if err != nil {
				return err
			}
			s, err := c.Saveset(ctx, id)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) {
				level := string(s.Level)
				if s.LevelReason != "requested" && s.LevelReason != "" {
					level += " (" + string(s.LevelRequested) + " was asked for: " + reasonText(s.LevelReason) + ")"
				}
				fields(w, "saveset", s.ID, "task", s.Task, "client", s.Client, "type", string(s.Type), "level", level, "state", string(s.State),
					"taken", a.clock(s.StartedAt), "ended", a.clock(s.EndedAt), "kept until", a.clock(s.EOL), "kept because", a.keptText(s.Kept), "pool", s.Pool, "run", s.Run, "made against", s.Parent,
					"sources", words(s.Sources), "stream", s.StreamName, "encrypted with key", s.SealedBy, "entries", count(s.Entries), "size", size(s.Bytes), "new", size(s.BytesNew), "stored", size(s.BytesStored))
			})
		}),
	}
}

func (a *app) savesetLsCmd() *cobra.Command {
	var names bool
	cmd := &cobra.Command{
		Use: "ls ID [PATH]", Short: "List a directory of a saveset", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: a.savesetAndPath(),
		Long:    "List a directory of a saveset, over REST: no agent and no mount is needed.\n\n" + idHelp,
		Example: "  coffer saveset ls latest:web1-etc /etc\n  coffer saveset ls 6f1c2a90 / --names",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := resolve(ctx, c, args[0])
			if err != nil {
				return err
			}
			path := "/"
			if len(args) == 2 {
				path = args[1]
			}
			return a.listTree(ctx, c, id, path, names)
		}),
	}
	cmd.Flags().BoolVarP(&names, "names", "1", false, "names only, one a line")
	return cmd
}

// listTree lists a directory page by page; with --json as one document.
func (a *app) listTree(ctx context.Context, c *client.Client, id, path string, names bool) error {
	var whole api.Listing
	for after := ""; ; {
		l, err := c.List(ctx, id, path, after, api.MaxPage)
		if err != nil {
			return err
		}
		after = l.Cursor()
		if a.json {
			whole.Path, whole.Entry, whole.Items = l.Path, l.Entry, append(whole.Items, l.Items...)
		} else if err := a.printEntries(l, names); err != nil {
			return err
		}
		if after == "" {
			break
		}
	}
	if !a.json {
		return nil
	}
	return a.print(whole, nil)
}

func (a *app) printEntries(l api.Listing, names bool) error {
	items := l.Items
	if l.Entry.Type != api.EntryDir {
		items = []api.Entry{l.Entry}
	}
	t := newTable("", ">", ">", ">", "", "")
	t.rows = nil
	var b strings.Builder
	for _, e := range items {
		if names {
			name := e.RawName() // its very bytes for programs
			if a.Terminal {
				name = safe(name)
			}
			fmt.Fprintln(&b, name)
			continue
		}
		t.add(modeText(e), fmt.Sprint(e.UID), fmt.Sprint(e.GID), sizeCell(e), a.clock(e.MTime), nameCell(e))
	}
	t.write(&b)
	_, err := io.WriteString(a.Out, b.String())
	return err
}

func sizeCell(e api.Entry) string {
	switch e.Type {
	case api.EntryChar, api.EntryBlock:
		return fmt.Sprintf("%d, %d", e.Major, e.Minor)
	}
	return size(e.Size)
}

func nameCell(e api.Entry) string {
	switch e.Type {
	case api.EntryDir:
		return e.RawName() + "/"
	case api.EntrySymlink:
		return e.RawName() + " -> " + e.RawTarget()
	}
	return e.RawName()
}

// modeText shows type and permissions as ls does.
func modeText(e api.Entry) string {
	kind := map[api.EntryType]byte{api.EntryFile: '-', api.EntryDir: 'd', api.EntrySymlink: 'l', api.EntryChar: 'c', api.EntryBlock: 'b', api.EntryFifo: 'p', api.EntrySocket: 's'}[e.Type]
	b := []byte("?rwxrwxrwx")
	b[0] = kind
	for i := range 9 {
		if e.Mode>>(8-i)&1 == 0 {
			b[i+1] = '-'
		}
	}
	for _, special := range []struct {
		bit uint32
		at  int
		set byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if e.Mode&special.bit == 0 {
			continue
		}
		if b[special.at] == '-' {
			special.set -= 'a' - 'A'
		}
		b[special.at] = special.set
	}
	return string(b)
}

type getOptions struct {
	output string
	tar    bool
	force  bool
}

func (a *app) savesetGetCmd() *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use: "get ID [PATH]", Short: "Download a file, or a tree as tar", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: a.savesetAndPath(),
		Long: `Download out of a saveset, over REST: no agent and no mount is needed.

A regular file comes as it is; a directory comes as a tar with owners, modes, nanosecond times, hard
links and extended attributes (GNU tar restores those with --xattrs --xattrs-include='*'). Without
PATH, a stream's saveset yields the stream, any other the whole tree.

` + idHelp,
		Example: `  coffer saveset get latest:web1-etc /etc/fstab -o -
  coffer saveset get 6f1c2a90 /etc -o etc.tar
  coffer saveset get latest:db1-shop -o - | pg_restore -d shop_test`,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := resolve(ctx, c, args[0])
			if err != nil {
				return err
			}
			path := ""
			if len(args) == 2 {
				path = args[1]
			}
			return a.get(ctx, c, id, path, o)
		}),
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", "", `file to write; "-" is standard output (default: its name, here)`)
	cmd.Flags().BoolVar(&o.tar, "tar", false, "a tar even of a single file")
	cmd.Flags().BoolVar(&o.force, "force", false, "overwrite a file that exists")
	return cmd
}

func (a *app) get(ctx context.Context, c *client.Client, id, path string, o getOptions) error {
	if path == "" {
		s, err := c.Saveset(ctx, id)
		if err != nil {
			return err
		}
		path = "/"
		if s.Type == api.TaskStream && s.StreamName != "" {
			path = "/" + s.StreamName
		}
	}
	format := "auto"
	if o.tar {
		format = "tar"
	}
	content, err := c.Get(ctx, id, path, format)
	if err != nil {
		return err
	}
	defer content.Close()
	if o.output == "-" {
		return a.copyOut(a.Out, content, path)
	}
	name := o.output
	if name == "" {
		name = filepath.Base(filepath.Clean("/" + content.Name))
	}
	return a.save(name, content, path, o.force)
}

func (a *app) copyOut(w io.Writer, content *client.Content, path string) error {
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, content, make([]byte, 256<<10)); err != nil {
		return api.Errorf(api.CodeUnexpectedResponse, "the download of %s was cut off: %v", path, err).
			WithHint("what was written is not whole; the appliance's log says why")
	}
	return nil
}

// save writes a download beside its place and renames it when it is whole.
func (a *app) save(name string, content *client.Content, path string, force bool) error {
	if _, err := os.Lstat(name); err == nil && !force {
		return api.Errorf(api.CodeExists, "%s exists", name).WithHint("--force overwrites it, -o names another file")
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".coffer-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	err = a.copyOut(tmp, content, path)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // the error that matters is err
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return a.print(map[string]any{"file": name, "bytes": info.Size(), "tar": content.Tar}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n", safe(name), size(info.Size()))
	})
}
