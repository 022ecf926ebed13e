package cli

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"

	"coffer/api"
	"coffer/api/client"
)

// jobCmd makes a command that starts a maintenance job and follows it; request reads its flags.
func (a *app) jobCmd(cmd *cobra.Command, request func() (api.MaintenanceRequest, error)) *cobra.Command {
	var detach bool
	cmd.Args = cobra.NoArgs
	cmd.Long += `

Ctrl-C leaves the job going; 'coffer store cancel' stops it. The exit code is 0 for success, 3 for warning,
4 for error or cancelled. Maintenance runs beside backups and restores, one job at a time.`
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, _ []string) error {
		req, err := request()
		if err != nil {
			return err
		}
		m, err := c.StartMaintenance(ctx, req)
		if err != nil {
			return err
		}
		return a.followJob(ctx, c, m, detach)
	})
	cmd.Flags().BoolVar(&detach, "detach", false, "return at once; 'coffer store watch' follows the job")
	return cmd
}

func (a *app) gcCmd() *cobra.Command {
	o := api.MaintenanceOptions{}
	var budget time.Duration
	var rate byteSize
	cmd := &cobra.Command{
		Use: "gc", Short: "Collect garbage: give back what no saveset needs",
		Long: `Collect garbage. Containers in which nothing is used are deleted; sparse, small and old-key ones are rewritten,
their living chunks together, and then deleted. Chunks of broken runs stay for three days, so that the next run
reuses them.`,
		Example: "  coffer store gc\n  coffer store gc --budget 1h --rate 50MiB",
	}
	a.jobCmd(cmd, func() (api.MaintenanceRequest, error) {
		o.Budget, o.Rate = budget.Seconds(), int64(rate)
		return api.MaintenanceRequest{Kind: api.MaintenanceGC, Options: o}, nil
	})
	cmd.Flags().Float64Var(&o.Sparse, "sparse", 0, "live share of bytes, 0 to 1, below which a container is rewritten (default: as configured)")
	cmd.Flags().DurationVar(&budget, "budget", 0, "stop after this time; the next gc goes on (default: as configured)")
	cmd.Flags().Var(&rate, "rate", "bytes a second that may be read and written, like 50MiB (default: as configured)")
	return cmd
}

func (a *app) checkCmd() *cobra.Command {
	o := api.MaintenanceOptions{}
	var rate byteSize
	var part share
	var objects, pages bool
	cmd := &cobra.Command{
		Use: "check", Short: "Check that what is stored reads back",
		Long: `Check the store: that every reference of every saveset leads somewhere (objects), and that stored bytes are what was
stored (pages). By default all of both, with every frame decrypted and every digest computed anew; --shallow holds
stored bytes against their checksums only. What is damaged goes on the list of 'coffer store damage', and the job
ends warning. The daily maintenance checks a share, so that all is checked in turn.`,
		Example: "  coffer store check\n  coffer store check --pages --share 10% --rate 100MiB\n  coffer store check --objects",
	}
	a.jobCmd(cmd, func() (api.MaintenanceRequest, error) {
		if objects && pages {
			return api.MaintenanceRequest{}, usagef("--objects and --pages exclude each other: without both, both are checked")
		}
		if objects {
			o.Half = api.CheckObjects
		}
		if pages {
			o.Half = api.CheckPages
		}
		o.Rate, o.Share = int64(rate), float64(part)
		return api.MaintenanceRequest{Kind: api.MaintenanceCheck, Options: o}, nil
	})
	cmd.Flags().BoolVar(&objects, "objects", false, "references only")
	cmd.Flags().BoolVar(&pages, "pages", false, "stored bytes only")
	cmd.Flags().BoolVar(&o.Shallow, "shallow", false, "checksums only, without decrypting")
	cmd.Flags().Var(&part, "share", "share of all containers, like 10%, from where the last check stopped (default: all)")
	cmd.Flags().Var(&rate, "rate", "bytes a second that may be read, like 100MiB (default: as configured)")
	return cmd
}

func (a *app) repairCmd() *cobra.Command {
	var from []string
	cmd := &cobra.Command{
		Use: "repair", Short: "Mend what is damaged, as far as it can be",
		Long: `Mend what is on the damage list: chunks that read back again or that nobody needs leave it, second copies in the
store take the place of damaged ones, and whole records of torn containers are salvaged. With --from, chunks are
also fetched from another store of the same dedup domain: a directory on the appliance, and after a comma its key
file where that is not the appliance's own. Nothing is written there. What stays damaged is healed by the next
backup that meets it. --from needs the role admin.`,
		Example: "  coffer store repair\n  coffer store repair --from /mnt/replica/store,/mnt/replica/store.key",
	}
	a.jobCmd(cmd, func() (api.MaintenanceRequest, error) {
		req := api.MaintenanceRequest{Kind: api.MaintenanceRepair}
		for _, f := range from {
			path, keyFile, _ := strings.Cut(f, ",")
			req.Options.From = append(req.Options.From, api.RepairSource{Path: path, KeyFile: keyFile})
		}
		return req, nil
	})
	cmd.Flags().StringArrayVar(&from, "from", nil, "DIRECTORY[,KEYFILE] of another store of the same domain (may be repeated)")
	return cmd
}

func (a *app) reindexCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reindex", Short: "Make the index of the store anew",
		Long: `Drop the index and make it anew from the containers. The store is closed for that time: runs that are active end
with an error, and restores are refused. It is needed only where the index is suspected; one that is lost, behind
or damaged is made anew at the start by itself. Needs the role admin.`,
		Example: "  coffer store reindex",
	}
	return a.jobCmd(cmd, func() (api.MaintenanceRequest, error) {
		return api.MaintenanceRequest{Kind: api.MaintenanceReindex}, nil
	})
}

func (a *app) usageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "usage", Short: "Count what savesets use and share",
		Long: `Count the chunks that savesets use: what each has alone, what several share, and what is garbage. The daily
maintenance counts, too; 'coffer store status' and 'coffer saveset show' tell the figures of the last count.`,
		Example: "  coffer store usage",
	}
	return a.jobCmd(cmd, func() (api.MaintenanceRequest, error) {
		return api.MaintenanceRequest{Kind: api.MaintenanceUsage}, nil
	})
}

// byteSize is a flag for a number of bytes, like 50MiB.
type byteSize int64

// String shows the value as it may be given.
func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*b), 10)
}

// Type names the value in help texts.
func (b *byteSize) Type() string { return "size" }

// Set reads the value.
func (b *byteSize) Set(s string) error {
	number, unit := strings.TrimSpace(s), int64(1)
	for i, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if rest, ok := strings.CutSuffix(number, u); ok {
			number, unit = strings.TrimSpace(rest), 1<<(10*(i+1))
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("%q is not a number with KiB, MiB, GiB or TiB", s)
	}
	*b = byteSize(n * unit)
	return nil
}

// share is a flag for a part of a whole, like 10% or 0.1.
type share float64

// String shows the value as it may be given.
func (s *share) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*s), 'g', -1, 64)
}

// Type names the value in help texts.
func (s *share) Type() string { return "share" }

// Set reads the value.
func (s *share) Set(text string) error {
	number, percent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v > 0 && v <= 1) {
		return fmt.Errorf("%q is no share like 10%% or 0.1", text)
	}
	*s = share(v)
	return nil
}

// followJob shows a maintenance job until it ends, then its result; the error is its exit code.
func (a *app) followJob(ctx context.Context, c *client.Client, m api.Maintenance, detach bool) error {
	if detach {
		return a.print(m, func(w io.Writer) {
			fmt.Fprintf(w, "Maintenance job %s is %s; follow it with 'coffer store watch %s'.\n", m.ID, m.State, m.ID)
		})
	}
	p := a.jobProgress(m)
	last, err := c.WatchMaintenance(ctx, m.ID, func(e api.Event) error { p.event(e); return nil })
	p.done()
	if ctx.Err() != nil {
		a.note("\nMaintenance job %s goes on; 'coffer store watch %[1]s' follows it, 'coffer store cancel %[1]s' stops it.", m.ID)
		return errInterrupted
	}
	if err != nil {
		return err
	}
	if err := a.print(last, func(w io.Writer) { jobResult(w, last) }); err != nil {
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

// jobProgress shows a job while it works, as progress does a run.
func (a *app) jobProgress(m api.Maintenance) progress {
	switch {
	case a.Terminal && a.width() > 0:
		b := &jobBar{}
		b.job.Store(&m)
		b.box, b.line = a.draw(b.before, b.after)
		return b
	case a.json:
		return silent{}
	}
	a.note("%s: maintenance job %s", m.Kind, m.ID)
	return &jobLines{a: a, last: time.Now()}
}

// jobLines shows how far a job is now and then, and each new phase.
type jobLines struct {
	a     *app
	phase string
	last  time.Time
}

func (l *jobLines) event(e api.Event) {
	if e.Maintenance == nil || e.Maintenance.State.Final() {
		return
	}
	p := e.Maintenance.Progress
	if p.Phase == "" || p.Phase == l.phase && time.Since(l.last) < plainEvery {
		return
	}
	l.phase, l.last = p.Phase, time.Now()
	l.a.note("%s:%s", e.Maintenance.Kind, howFar(p))
}

func (l *jobLines) done() {}

// jobBar is one line that moves.
type jobBar struct {
	job  atomic.Pointer[api.Maintenance]
	box  *mpb.Progress
	line *mpb.Bar
}

func (b *jobBar) before() string {
	m := b.job.Load()
	return strings.TrimSpace(string(m.Kind) + " " + m.Progress.Phase)
}

func (b *jobBar) after() string {
	m := b.job.Load()
	if m.State == api.RunQueued {
		return " queued: another job works"
	}
	p := m.Progress
	p.Phase = "" // it stands before the bar
	return howFar(p)
}

func (b *jobBar) event(e api.Event) {
	if e.Maintenance == nil {
		return
	}
	b.job.Store(e.Maintenance)
	p := e.Maintenance.Progress
	b.line.SetTotal(max(p.Total, p.Done+1, 1), false) // the bar is full when the job has ended, not before
	b.line.SetCurrent(p.Done)
}

func (b *jobBar) done() {
	b.line.Abort(true)
	b.box.Wait()
}

// howFar shows progress: phase, counters, share, speed, time left; a space before each part.
func howFar(p api.MaintenanceProgress) string {
	amount := func(n int64) string {
		if p.Unit == "bytes" {
			return size(n)
		}
		return count(n)
	}
	var b strings.Builder
	if p.Phase != "" {
		b.WriteString(" " + p.Phase)
	}
	unit := p.Unit
	if unit == "bytes" {
		unit = ""
	}
	switch {
	case p.Total > 0:
		fmt.Fprintf(&b, " %s of %s %s", amount(p.Done), amount(p.Total), unit)
		fmt.Fprintf(&b, " (%d %%)", min(100, 100*p.Done/p.Total))
	case p.Done > 0:
		fmt.Fprintf(&b, " %s %s", amount(p.Done), unit)
	}
	switch {
	case p.Rate >= 10 || unit == "" && p.Rate >= 1:
		fmt.Fprintf(&b, " %s/s", amount(int64(p.Rate)))
	case p.Rate >= 0.1:
		fmt.Fprintf(&b, " %.1f/s", p.Rate)
	}
	if p.SecondsLeft >= 1 {
		fmt.Fprintf(&b, " %s left", span(time.Duration(p.SecondsLeft*float64(time.Second))))
	}
	return strings.ReplaceAll(b.String(), "  ", " ")
}

// jobResult tells how a job ended.
func jobResult(w io.Writer, m api.Maintenance) {
	fmt.Fprintf(w, "%s: %s in %s\n", m.Kind, m.State, span(jobTook(m)))
	if m.Reason != "" {
		fmt.Fprintf(w, "  %s\n", safe(m.Reason))
	}
	for _, l := range reportLines(m.Report) {
		if l != m.Reason {
			fmt.Fprintf(w, "  %s\n", l)
		}
	}
	if m.Hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", safe(m.Hint))
	}
}

// reportLines tells what a job brought, the most important first.
func reportLines(r api.MaintenanceReport) (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if g := r.GC; g != nil {
		add("freed %s: %s deleted, %s rewritten as %s", size(g.FreedBytes), plural(g.Deleted, "container", "containers"), count(g.Copied), size(g.CopiedBytes))
		add("%s of %s in use, %s not; %s kept", plural(g.MarkedChunks, "chunk", "chunks"), plural(g.Savesets, "saveset", "savesets"),
			count(g.DeadChunks), plural(g.Kept, "container", "containers"))
		if left := g.Remains + g.Skipped + g.Damaged; left > 0 {
			add("left alone: %s of broken runs, %s in use, %s damaged", count(g.Remains), count(g.Skipped), count(g.Damaged))
		}
	}
	if c := r.Check; c != nil {
		add("%s found", plural(c.Found, "damaged place", "damaged places"))
		add("read %s of %s; followed %s of %s", size(c.Bytes), plural(c.Containers, "container", "containers"),
			plural(c.References, "reference", "references"), plural(c.Savesets, "saveset", "savesets"))
	}
	if p := r.Repair; p != nil {
		add("%s still damaged", plural(p.Left, "place", "places"))
		add("chunks: %s by second copies, %s salvaged, %s fetched (%s), %s read back, %s needed by nobody", count(p.Local), count(p.Salvaged),
			count(p.Fetched), size(p.FetchedBytes), count(p.Again), count(p.Unreferenced))
	}
	if p := r.Purge; p != nil {
		add("%s of %s deleted", plural(p.Deleted, "saveset", "savesets"), size(p.LogicalBytes))
		if p.Left > 0 {
			add("%s left: in use or kept", plural(p.Left, "saveset", "savesets"))
		}
	}
	if u := r.Usage; u != nil {
		add("%s of savesets in %s: deduplication %.1f, compression %.1f", size(u.LogicalBytes), size(u.StoredBytes), u.DedupRatio, u.CompressionRatio)
		add("shared by several savesets %s; garbage %s of %s", size(u.SharedBytes), size(u.GarbageBytes), size(u.ContainerBytes))
	}
	return out
}
