package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"coffer/appliance/agent/filter"
	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/report"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// Options of a restore run. Run is needed.
type Options struct {
	Order  sms.RestoreOrder
	Run    uplink.Run
	Logger *slog.Logger // nil: silent
	// Workers is how many goroutines fetch and write; 0 means as the processors allow.
	Workers int
}

// Codes of a failed run, for sms.Outcome, and of notices.
const (
	CodeBadOrder = "bad_order"
	CodeTarget   = "target_unusable"
	CodeNothing  = "nothing_selected"
	CodeCommand  = "command_failed"

	codeDamaged   = "damaged"
	codeInTheWay  = "in_the_way"
	codeNotMade   = "not_restored"
	codeLink      = "link_not_made"
	codeDifferent = "different"
	codeMissing   = "not_in_saveset"
	codeRenamed   = "renamed"
)

// Run does what the order says. The error is a *report.Error or the ctx's; the run is not over: the caller finishes it
// with the outcome, which holds the counters in any case.
func Run(ctx context.Context, opts Options) (sms.Outcome, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Workers == 0 {
		opts.Workers = max(2, min(runtime.GOMAXPROCS(0)+1, 8))
	}
	opts.Workers = max(1, min(opts.Workers, opts.Run.MaxLanes()))
	rep := report.New(opts.Run, opts.Logger)
	stop := rep.Start(ctx)
	defer stop()
	var err error
	if opts.Order.TaskType == sms.TaskStream {
		err = restoreStream(ctx, opts, rep)
	} else {
		err = restoreTree(ctx, opts, rep)
	}
	return sms.Outcome{Counters: rep.Counters(), Different: rep.Different.Load()}, err
}

// job is one restore in work.
type job struct {
	order   sms.RestoreOrder
	run     uplink.Run
	rep     *report.Reporter
	include *filter.Filter
	exclude *filter.Filter
	keys    digest.Keys
	umask   uint32
	uid     uint32
	gid     uint32
	work    chan *batch
	holds   holds
	// late is told about flags that must wait for the links of a file.
	late func(f *file, name string, made fsmeta.Made)
}

func restoreTree(ctx context.Context, opts Options, rep *report.Reporter) error {
	j, err := newJob(opts, rep)
	if err != nil {
		return err
	}
	base, err := j.openBase()
	if err != nil {
		return &report.Error{Code: CodeTarget, Err: err}
	}
	root := opts.Run.Root()
	if len(j.order.Paths) == 0 && j.include.Empty() && j.exclude.Empty() {
		rep.Expect(root.Totals.Entries, root.Totals.Bytes)
	}
	p := newPlanner(j, base, newPace(opts.Workers, root.Totals))
	return j.pipeline(ctx, p, opts.Workers, func(ctx context.Context) error { return p.run(ctx, root) })
}

// pipeline runs the planner's work beside the workers, and then what comes after all files.
func (j *job) pipeline(ctx context.Context, p *planner, workers int, plan func(ctx context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(j.work)
		return plan(ctx)
	})
	for range workers {
		g.Go(func() error { return newWorker(j).run(ctx) })
	}
	if err := g.Wait(); err != nil {
		j.abandon()
		return err
	}
	j.rep.Phase(sms.PhaseFinishing)
	p.finish()
	return nil
}

func newJob(opts Options, rep *report.Reporter) (*job, error) {
	o := opts.Order
	j := &job{order: o, run: opts.Run, rep: rep, keys: opts.Run.Domain().Keys, umask: umask(), work: make(chan *batch, 1),
		holds: holds{dirs: map[*dir]struct{}{}, files: map[*file]struct{}{}}}
	j.uid, j.gid = owner()
	var errs [2]error
	j.include, errs[0] = filter.New(o.Include)
	j.exclude, errs[1] = filter.New(o.Exclude)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, &report.Error{Code: CodeBadOrder, Err: err}
	}
	switch j.order.Existing {
	case "":
		j.order.Existing = sms.ExistingKeep
	case sms.ExistingKeep, sms.ExistingOverwrite, sms.ExistingNewVersion:
	default:
		return nil, report.Errorf(CodeBadOrder, "this agent knows no way %q to treat existing files", o.Existing)
	}
	if o.Flat && o.Target == "" {
		return nil, report.Errorf(CodeBadOrder, "a flat restore needs a target directory")
	}
	if o.Target != "" && !strings.HasPrefix(string(o.Target), "/") {
		return nil, report.Errorf(CodeBadOrder, "target %q is not an absolute path", string(o.Target))
	}
	return j, nil
}

// openBase opens the directory that the saveset's root becomes. Whoever gave the order named it, so symlinks in its
// path are followed, as everywhere else; nothing below is.
func (j *job) openBase() (*dir, error) {
	target := string(j.order.Target)
	if target == "" {
		target = "/"
	}
	d, err := fsmeta.OpenPath(target)
	if fsmeta.Gone(err) && j.order.Verify {
		return nil, fmt.Errorf("open target %s: %w", target, err)
	}
	if fsmeta.Gone(err) {
		d, err = makePath(target)
	}
	if err != nil {
		return nil, fmt.Errorf("open target %s: %w", target, err)
	}
	base := &dir{j: j, fd: d, users: 1, existed: true, path: strings.TrimRight(target, "/")}
	base.pending.Store(1)
	j.opened(base)
	base.learn()
	return base, nil
}

// loadXattrs brings attribute values that lie in chunks. What cannot be had is left out.
func (j *job) loadXattrs(ctx context.Context, e *recipe.Entry, path string) error {
	for i := range e.Xattrs {
		x := &e.Xattrs[i]
		if x.Chunk.IsZero() {
			continue
		}
		value, err := fetchOne(ctx, j.run, x.Chunk, x.Size)
		if err != nil {
			return fmt.Errorf("extended attribute %q of %s: %w", x.Name, path, err)
		}
		x.Value, x.Chunk, x.Size = value, digest.Digest{}, 0
	}
	return nil
}
