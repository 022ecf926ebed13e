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

func (a *app) storeCmd() *cobra.Command {
	return a.group("store", "The deduplicating store", a.storeStatusCmd(), a.storeDamageCmd(), a.storeDismissCmd(), a.gcCmd(), a.checkCmd(), a.repairCmd(),
		a.reindexCmd(), a.usageCmd(), a.storeJobsCmd(), a.storeWatchCmd(), a.storeCancelCmd(),
		a.storeUnlockCmd(), a.storeLockCmd(), a.storeKeyCmd())
}

func (a *app) storeStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the state of the store", Args: cobra.NoArgs,
		Long: `Show the state of the deduplicating store, with the reasons and what to do.

  green       all is well
  yellow      a check is overdue
  red         stored data is damaged: 'coffer store damage' names savesets and files. Backups go on,
              and heal what they meet
  unwritable  it takes no writes: the disk is full up to the reserve, or refuses to write
  locked      it is not open: it waits for its password ('coffer store unlock'), or the reason says more

The daily maintenance deletes what may go, collects garbage, checks a share of the store, and counts.`,
		Example: "  coffer store status\n  coffer store status --json | jq .state",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			s, err := c.Store(ctx)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { a.showStore(w, s) })
		}),
	}
}

func (a *app) showStore(w io.Writer, s api.Store) {
	encrypted := "no"
	if s.Encrypted {
		encrypted = "yes"
	}
	fields(w, "store", s.Name, "state", string(s.State), "path", s.Path, "dedup domain", s.Domain, "encrypted", encrypted,
		"savesets", count(s.Savesets), "containers", count(s.Containers), "chunks", positive(s.Chunks, count), "logical", size(s.LogicalBytes),
		"stored", size(s.StoredBytes), "ratio", storeRatio(s), "garbage", garbage(s.Usage),
		"index", positive(s.IndexBytes, size),
		"free", fmt.Sprintf("%s of %s (reserve %s)", size(s.FreeBytes), size(s.CapacityBytes), size(s.ReserveBytes)),
		"watermarks", watermarks(s.Watermarks),
		"active runs", count(s.ActiveRuns), "damaged", positive(s.DamagedObjects, func(n int64) string { return plural(n, "place", "places") }),
		"last check", a.checked(s.Check), "last gc", a.lastOf(s, api.MaintenanceGC), "works on", working(s.Maintenance),
		"next maintenance", a.clockOr(s.NextMaintenance, "off"))
	for _, r := range s.Reasons {
		fmt.Fprintf(w, "%s: %s\n", r.State, safe(r.Message))
		if r.Hint != "" {
			fmt.Fprintf(w, "  hint: %s\n", safe(r.Hint))
		}
	}
}

// watermarks says how full the store is, and may become.
func watermarks(w api.Watermarks) string {
	if w.High == 0 {
		return ""
	}
	return fmt.Sprintf("%d %% of the disk is used; from %d %% on expired savesets are purged, down to %d %%", w.Used, w.High, w.Low)
}

// positive shows a number that counts only above zero.
func positive(n int64, show func(int64) string) string {
	if n <= 0 {
		return ""
	}
	return show(n)
}

// storeRatio shows what the store saves, and by what where that was counted.
func storeRatio(s api.Store) string {
	if s.StoredBytes <= 0 {
		return ""
	}
	text := fmt.Sprintf("%.1f : 1", float64(s.LogicalBytes)/float64(s.StoredBytes))
	if u := s.Usage; u != nil && u.DedupRatio > 0 && u.CompressionRatio > 0 {
		text += fmt.Sprintf(" (deduplication %.1f, compression %.1f)", u.DedupRatio, u.CompressionRatio)
	}
	return text
}

func garbage(u *api.StoreUsage) string {
	if u == nil {
		return ""
	}
	return positive(u.GarbageBytes, size)
}

// checked says how old the halves of the check are.
func (a *app) checked(c api.StoreCheck) string {
	if c.Objects == nil && c.Pages == nil && c.RoundDone == 0 && c.DueAt == nil {
		return ""
	}
	text := fmt.Sprintf("references %s, stored bytes %s", a.clockOr(c.Objects, "never"), a.clockOr(c.Pages, "never"))
	if c.RoundDone > 0 {
		text += fmt.Sprintf("; %.0f %% of the present round", 100*c.RoundDone)
	}
	if c.DueAt != nil {
		text += "; due by " + a.day(*c.DueAt)
	}
	return text
}

// lastOf shows how the last job of a kind ended.
func (a *app) lastOf(s api.Store, kind api.MaintenanceKind) string {
	for _, m := range s.Last {
		if m.Kind != kind {
			continue
		}
		text := fmt.Sprintf("%s, %s", a.clockOr(m.EndedAt, "-"), m.State)
		if m.Report.GC != nil {
			text += ", freed " + size(m.Report.GC.FreedBytes)
		}
		if m.State != api.RunSuccess && m.Reason != "" {
			text += ": " + m.Reason
		}
		return text
	}
	return ""
}

func working(m *api.Maintenance) string {
	if m == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s)%s", m.Kind, m.ID, howFar(m.Progress))
}

func (a *app) storeDamageCmd() *cobra.Command {
	return &cobra.Command{
		Use: "damage", Short: "List what is damaged, and which savesets and files it harms", Args: cobra.NoArgs,
		Long: `List the damaged places of the store, and the savesets and files that do not read back because of them.
What is not named here is not harmed: other savesets, and other files of the same savesets, restore.

Damage heals when a backup meets the same data again (agents are asked for it even where a file has not
changed), by 'coffer store repair', with --from also out of another store of the same dedup domain, and by
deleting the savesets that are harmed and collecting garbage.`,
		Example: "  coffer store damage\n  coffer store damage --json | jq '.savesets[].files[].path'",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := c.Damage(ctx)
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { a.showDamage(w, r) })
		}),
	}
}

func (a *app) storeDismissCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "dismiss OBJECT", Short: "Give up a damaged record of a saveset that nothing heals", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Give up a damaged record of a saveset, which 'coffer store damage' names: a manifest or a state. Garbage
collection waits while a manifest cannot be read, for nobody knows what its saveset needs. Put the file back
from a copy of the store, if there is one; else this says that it is lost.

With its manifest the saveset is given up. Where only the newest state is lost, the one before it counts
again, and the saveset is locked until somebody unlocks it. A saveset of which a record that can be read
says that it is locked or immutable is not given up. Role superuser only.`,
		Example: "  coffer store dismiss manifests/01a20205eab0e2aedcf231c1e320f42c",
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		if err := a.sure(yes, "Give up "+args[0]+"? Nobody can take that back."); err != nil {
			return err
		}
		if err := c.Dismiss(ctx, args[0]); err != nil {
			return err
		}
		return a.removed("Record", args[0], "'coffer store damage' shows what is left")
	})
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) showDamage(w io.Writer, r api.DamageReport) {
	if len(r.Places) == 0 {
		fmt.Fprintln(w, "Nothing is known to be damaged.")
		return
	}
	t := newTable("PLACE", "KIND", ">CHUNKS", "FOUND", "REASON")
	for _, d := range r.Places {
		t.add(place(d), orText(d.Kind, "object"), chunksOf(d), a.clock(d.FoundAt), d.Reason)
	}
	t.write(w)
	if r.Harms == api.HarmUnknown {
		fmt.Fprintln(w, "\nThe savesets are being searched for what this harms; the list below may be that of earlier damage.")
	}
	if len(r.Savesets) == 0 && r.Harms == api.HarmKnown {
		fmt.Fprintln(w, "\nNo saveset needs what is damaged: garbage collection takes it off the list.")
	}
	for _, s := range r.Savesets {
		a.showHarmed(w, s)
	}
	if r.Hint != "" {
		fmt.Fprintf(w, "\nhint: %s\n", safe(r.Hint))
	}
}

// place names where damage lies.
func place(d api.Damage) string {
	switch {
	case d.Object != "":
		return d.Object
	case d.Container == "":
		return "unknown"
	case d.Frame == nil:
		return "container " + d.Container
	}
	return fmt.Sprintf("container %s frame %d", d.Container, *d.Frame)
}

func chunksOf(d api.Damage) string {
	if len(d.Digests) == 0 {
		return "-"
	}
	return count(int64(len(d.Digests)))
}

func (a *app) showHarmed(w io.Writer, s api.DamagedSaveset) {
	fmt.Fprintf(w, "\nsaveset %s  %s %s %s\n", s.Saveset, safe(s.Task), s.Level, a.clock(s.StartedAt))
	if s.Object != "" {
		fmt.Fprintf(w, "  its own record %s is damaged\n", safe(s.Object))
	}
	for _, f := range s.Files {
		p := f.Path
		if f.PathRaw != nil {
			p = string(f.PathRaw)
		}
		fmt.Fprintf(w, "  %s\n", safe(p))
	}
	if s.More > 0 {
		fmt.Fprintf(w, "  and %s\n", plural(s.More, "more file", "more files"))
	}
}

func (a *app) storeJobsCmd() *cobra.Command {
	var f api.MaintenanceFilter
	var kind, state string
	cmd := &cobra.Command{
		Use: "jobs", Short: "List maintenance jobs of the store, newest first", Args: cobra.NoArgs,
		Example: "  coffer store jobs\n  coffer store jobs --kind check --state warning",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			f.Kind, f.State = api.MaintenanceKind(kind), api.RunState(state)
			jobs, err := pages(f.Limit, func(before string, limit int) (api.Page[api.Maintenance], error) {
				f.Before, f.Limit = before, limit
				return c.MaintenanceJobs(ctx, f)
			})
			if err != nil {
				return err
			}
			return printList(a, jobs, "There are no such jobs.", newTable("ID", "STATE", "KIND", "STARTED BY", "STARTED", ">TOOK", "RESULT"), a.jobRow)
		}),
	}
	cmd.Flags().StringVar(&kind, "kind", "", "only gc, check, repair, reindex, usage or purge")
	cmd.Flags().StringVar(&state, "state", "", "only jobs in this state")
	cmd.Flags().IntVar(&f.Limit, "limit", 50, "at most so many; 0 means all")
	flagValues(cmd, "kind", "gc", "check", "repair", "reindex", "usage", "purge")
	flagValues(cmd, "state", "queued", "active", "success", "warning", "error", "cancelled")
	return cmd
}

func (a *app) jobRow(m api.Maintenance) []string {
	by, took, result := m.User, "-", m.Reason
	if m.Trigger != api.TriggerManual {
		by = "daily"
	}
	if m.EndedAt != nil {
		took = span(jobTook(m))
	} else if m.State == api.RunActive {
		result = strings.TrimSpace(howFar(m.Progress))
	}
	if lines := reportLines(m.Report); result == "" && len(lines) > 0 {
		result = lines[0]
	}
	return []string{m.ID, string(m.State), string(m.Kind), by, a.clockOr(m.StartedAt, "-"), took, result}
}

func jobTook(m api.Maintenance) time.Duration {
	start := m.QueuedAt
	if m.StartedAt != nil {
		start = *m.StartedAt
	}
	if m.EndedAt == nil {
		return 0
	}
	return m.EndedAt.Sub(start)
}

func (a *app) storeWatchCmd() *cobra.Command {
	return &cobra.Command{
		Use: "watch ID", Short: "Follow a maintenance job until it ends", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.jobIDs("")),
		Long: "Follow a maintenance job until it ends, and show what it brought; the exit code is the job's, as for 'coffer store gc'.",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			m, err := c.MaintenanceJob(ctx, args[0])
			if err != nil {
				return err
			}
			return a.followJob(ctx, c, m, false)
		}),
	}
}

func (a *app) storeCancelCmd() *cobra.Command {
	return &cobra.Command{
		Use: "cancel ID", Short: "Stop a maintenance job", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.jobIDs(api.RunActive)),
		Long: "Ask a maintenance job to stop. What it has done stays done, and the next job of its kind goes on from there.",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			m, err := c.CancelMaintenance(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(m, func(w io.Writer) { fmt.Fprintf(w, "Maintenance job %s is asked to stop; it is %s.\n", m.ID, m.State) })
		}),
	}
}

func (a *app) jobIDs(state api.RunState) completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		jobs, _ := c.MaintenanceJobs(ctx, api.MaintenanceFilter{State: state, Limit: 50})
		for _, m := range jobs.Items {
			out = append(out, m.ID+"\t"+string(m.State)+" "+string(m.Kind)+" "+a.clock(m.QueuedAt))
		}
		return out
	})
}
