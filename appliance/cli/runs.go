package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

func (a *app) backupCmd() *cobra.Command {
	var level string
	var noWait bool
	cmd := &cobra.Command{
		Use: "backup TASK", Short: "Back up a task now", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.taskNames()),
		Long: `Start a backup of a task and follow it until it ends.

Levels: FULL reads everything; DIFF what changed since the last FULL; INCR (the default) what changed
since the last backup; COPY is a FULL outside the chain. A DIFF or INCR without a valid FULL runs as
FULL. Whatever the level, the saveset shows the whole tree of that moment.

Ctrl-C leaves the run going; 'coffer run cancel' stops it. The exit code is 0 for success, 3 for
warning, 4 for error or cancelled.`,
		Example: `  coffer backup web1-etc
  coffer backup web1-etc --level FULL
  coffer backup web1-etc --json | jq .progress.bytes_new`,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			run, err := c.Backup(ctx, api.BackupRequest{Task: args[0], Level: api.Level(strings.ToUpper(level))})
			if err != nil {
				return err
			}
			return a.follow(ctx, c, run, noWait)
		}),
	}
	cmd.Flags().StringVarP(&level, "level", "l", "INCR", "FULL, DIFF, INCR or COPY")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return at once; 'coffer run watch' follows it")
	flagValues(cmd, "level", "FULL", "DIFF", "INCR", "COPY")
	return cmd
}

// follow shows a run until it ends, then its result; the error is its exit code.
func (a *app) follow(ctx context.Context, c *client.Client, run api.Run, noWait bool) error {
	if noWait {
		return a.print(run, func(w io.Writer) {
			fmt.Fprintf(w, "Run %s is %s; follow it with 'coffer run watch %s'.\n", run.ID, run.State, run.ID)
		})
	}
	p := a.progress(run)
	last, err := c.WatchRun(ctx, run.ID, 0, func(e api.Event) error { p.event(e); return nil })
	p.done()
	if ctx.Err() != nil {
		a.note("\nRun %s goes on; 'coffer run watch %[1]s' follows it, 'coffer run cancel %[1]s' stops it.", run.ID)
		return errInterrupted
	}
	if err != nil {
		return err
	}
	if err := a.print(last, func(w io.Writer) { a.result(w, last) }); err != nil {
		return err
	}
	switch last.State {
	case api.RunSuccess:
		return nil
	case api.RunWarning:
		return codeError(exitWarning)
	}
	return codeError(exitRunFailed)
}

// result tells how a run ended.
func (a *app) result(w io.Writer, r api.Run) {
	p := r.Progress
	fmt.Fprintf(w, "%s: %s in %s\n", title(r), r.State, span(took(r)))
	if r.Reason != "" {
		fmt.Fprintf(w, "  %s\n", safe(r.Reason))
	}
	if r.Hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", safe(r.Hint))
	}
	if r.LevelRequested != "" && (r.LevelRequested != r.LevelEffective || r.LevelReason != "requested") && r.LevelReason != "" {
		fmt.Fprintf(w, "  %s was asked for: %s\n", r.LevelRequested, reasonText(r.LevelReason))
	}
	fmt.Fprintf(w, "  %s, %s; %s\n", plural(p.Entries, "entry", "entries"), size(p.Bytes), movedText(r))
	if t := stagesText(r); t != "" {
		fmt.Fprintf(w, "  busy: %s\n", t)
	}
	if r.Warnings > 0 {
		fmt.Fprintf(w, "  %s: 'coffer run log %s' shows them\n", plural(r.Warnings, "warning", "warnings"), r.ID)
	}
	if r.Kind == api.RunBackup && r.Saveset != "" {
		fmt.Fprintf(w, "  saveset %s\n", r.Saveset)
	}
}

func movedText(r api.Run) string {
	p := r.Progress
	if r.Kind == api.RunBackup {
		return fmt.Sprintf("read %s, new %s, sent %s, stored %s", size(p.BytesRead), size(p.BytesNew), size(p.BytesSent), size(p.BytesStored))
	}
	parts := []string{"read " + size(p.BytesRead)}
	for _, x := range []struct {
		n    int64
		text string
	}{{p.SkippedFiles, "kept as they were"}, {p.VerifiedFiles, "verified"}, {p.DifferFiles, "differ"}} {
		if x.n > 0 {
			parts = append(parts, count(x.n)+" "+x.text)
		}
	}
	return strings.Join(parts, ", ")
}

func stagesText(r api.Run) string {
	s := r.Progress.Stages
	var parts []string
	for _, x := range []struct {
		name    string
		seconds float64
	}{{"source", s.Source}, {"hashing", s.Hashing}, {"compression", s.Compress}, {"network", s.Network}, {"store", s.Store}} {
		if x.seconds >= 0.05 {
			parts = append(parts, x.name+" "+span(time.Duration(x.seconds*float64(time.Second))))
		}
	}
	return strings.Join(parts, ", ")
}

// title names a run in a few words.
func title(r api.Run) string {
	if r.Kind == api.RunRestore {
		verb := "restore"
		if r.Restore != nil && r.Restore.Verify {
			verb = "verify"
		}
		return fmt.Sprintf("%s of %s to %s", verb, short(r.Saveset), r.Client)
	}
	level := r.LevelEffective
	if level == "" {
		level = r.LevelRequested
	}
	return fmt.Sprintf("%s %s", r.Task, level)
}

// short is the beginning of a long id.
func short(id string) string {
	const most = 12
	if len(id) > most {
		return id[:most]
	}
	return id
}

func took(r api.Run) time.Duration {
	start := r.QueuedAt
	if r.StartedAt != nil {
		start = *r.StartedAt
	}
	if r.EndedAt == nil {
		return 0
	}
	return r.EndedAt.Sub(start)
}

// reasonText says in words why a run has the level it has.
func reasonText(reason string) string {
	switch reason {
	case "no_valid_full":
		return "there is no valid FULL yet"
	case "enforce_full":
		return "a FULL was due"
	case "chain_broken":
		return "a saveset of the chain is deleted or damaged"
	case "source_changed":
		return "the task's source or excludes changed"
	case "type_has_no_levels":
		return "a stream is always read in full"
	case "cbt_invalid":
		return "changed-block tracking was not valid"
	case "ndmp_level_exhausted":
		return "the NDMP levels are used up"
	}
	return strings.ReplaceAll(reason, "_", " ")
}

func (a *app) runCmd() *cobra.Command {
	return a.group("run", "Backups and restores, past and present", a.runListCmd(), a.runShowCmd(), a.runWatchCmd(), a.runLogCmd(), a.runCancelCmd())
}

func (a *app) runListCmd() *cobra.Command {
	var f api.RunFilter
	var kind, state string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List runs, newest first", Args: cobra.NoArgs,
		Example: "  coffer run list --task web1-etc\n  coffer run list --state error --limit 20",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			f.Kind, f.State = api.RunKind(kind), api.RunState(state)
			runs, err := pages(f.Limit, func(before string, limit int) (api.Page[api.Run], error) {
				f.Before, f.Limit = before, limit
				return c.Runs(ctx, f)
			})
			if err != nil {
				return err
			}
			return printList(a, runs, "There are no such runs.",
				newTable("ID", "STATE", "KIND", "WHAT", "CLIENT", "STARTED", ">TOOK", ">READ", ">STORED", ">WARNINGS"), a.runRow)
		}),
	}
	cmd.Flags().StringVar(&f.Task, "task", "", "only runs of this task")
	cmd.Flags().StringVar(&f.Client, "client", "", "only runs on this client")
	cmd.Flags().StringVar(&kind, "kind", "", "only backup, or only restore")
	cmd.Flags().StringVar(&state, "state", "", "only runs in this state")
	cmd.Flags().IntVar(&f.Limit, "limit", 50, "at most so many; 0 means all")
	flagComplete(cmd, "task", a.taskNames())
	flagComplete(cmd, "client", a.clientNames())
	flagValues(cmd, "kind", "backup", "restore")
	flagValues(cmd, "state", "queued", "active", "success", "warning", "error", "cancelled", "missed", "suppressed")
	return cmd
}

func (a *app) runRow(r api.Run) []string {
	what := string(r.LevelEffective)
	if what == "" {
		what = string(r.LevelRequested)
	}
	what = r.Task + " " + what
	if r.Kind == api.RunRestore {
		what = short(r.Saveset)
	}
	duration := "-"
	if r.EndedAt != nil {
		duration = span(took(r))
	}
	stored := size(r.Progress.BytesStored)
	if r.Kind == api.RunRestore {
		stored = "-"
	}
	return []string{r.ID, string(r.State), string(r.Kind), what, r.Client, a.clockOr(r.StartedAt, "-"), duration, size(r.Progress.BytesRead), stored, count(r.Warnings)}
}

// pages gets at most limit items (0: all) of a list that comes in pages.
func pages[T any](limit int, page func(before string, limit int) (api.Page[T], error)) ([]T, error) {
	var all []T
	for before := ""; ; {
		n := api.DefaultPage
		if limit > 0 {
			n = min(n, limit-len(all))
		}
		p, err := page(before, n)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Items...)
		if p.Next == "" || limit > 0 && len(all) >= limit {
			return all, nil
		}
		before = p.Next
	}
}

func (a *app) runShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a run", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.runIDs("")),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.Run(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { a.showRun(w, r) })
		}),
	}
}

func (a *app) showRun(w io.Writer, r api.Run) {
	level := string(r.LevelEffective)
	if r.LevelReason != "" && r.LevelReason != "requested" {
		level += " (" + string(r.LevelRequested) + " was asked for: " + reasonText(r.LevelReason) + ")"
	}
	lasted := ""
	if r.EndedAt != nil {
		lasted = span(took(r))
	}
	warnings := ""
	if r.Warnings > 0 {
		warnings = count(r.Warnings)
	}
	p := r.Progress
	fields(w, "run", r.ID, "kind", string(r.Kind), "state", string(r.State), "reason", r.Reason, "hint", r.Hint, "task", r.Task, "client", r.Client,
		"level", level, "saveset", r.Saveset, "started by", r.User, "queued", a.clock(r.QueuedAt), "started", a.clockOr(r.StartedAt, ""),
		"ended", a.clockOr(r.EndedAt, ""), "took", lasted, "warnings", warnings, "entries", count(p.Entries), "size", size(p.Bytes),
		"moved", movedText(r), "busy", stagesText(r), "working on", p.CurrentPath)
}

func (a *app) runWatchCmd() *cobra.Command {
	return &cobra.Command{
		Use: "watch ID", Short: "Follow a run until it ends", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.runIDs(api.RunActive)),
		Long: "Follow a run until it ends; the exit code is the run's, as for 'coffer backup'. Ctrl-C leaves it going.",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.Run(ctx, args[0])
			if err != nil {
				return err
			}
			return a.follow(ctx, c, r, false)
		}),
	}
}

func (a *app) runCancelCmd() *cobra.Command {
	return &cobra.Command{
		Use: "cancel ID", Short: "Stop a run", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.runIDs(api.RunActive)),
		Long: "Ask a run to stop. It ends cancelled and leaves no saveset; what it stored is reused by the next run.",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.CancelRun(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { fmt.Fprintf(w, "Run %s is asked to stop; it is %s.\n", r.ID, r.State) })
		}),
	}
}

func (a *app) runLogCmd() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "log ID", Short: "Show a run's log: warnings, files that were noted", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.runIDs("")),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if wait {
				_, err := c.WatchRun(ctx, args[0], 0, func(e api.Event) error {
					if e.Notice == nil {
						return nil
					}
					return a.print(e.Notice, func(w io.Writer) { fmt.Fprintln(w, a.noticeLine(*e.Notice)) })
				})
				return err
			}
			notices, err := a.notices(ctx, c, args[0])
			if err != nil {
				return err
			}
			return a.print(api.Page[api.Notice]{Items: notices}, func(w io.Writer) {
				if len(notices) == 0 {
					fmt.Fprintln(w, "The run noted nothing.")
				}
				for _, n := range notices {
					fmt.Fprintln(w, a.noticeLine(n))
				}
			})
		}),
	}
	cmd.Flags().BoolVarP(&wait, "follow", "f", false, "wait for more until the run ends")
	return cmd
}

func (a *app) notices(ctx context.Context, c *client.Client, id string) ([]api.Notice, error) {
	all := []api.Notice{}
	for after := int64(0); ; {
		p, err := c.Notices(ctx, id, after, api.MaxPage)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Items...)
		if p.Next == "" {
			return all, nil
		}
		after = p.Items[len(p.Items)-1].Seq
	}
}

func (a *app) noticeLine(n api.Notice) string {
	path := n.Path
	if n.PathRaw != nil {
		path = string(n.PathRaw)
	}
	text := n.Message
	if path != "" {
		text = path + ": " + text
	}
	return fmt.Sprintf("%s  %-7s  %s", a.clock(n.Time), n.Severity, safe(text))
}
