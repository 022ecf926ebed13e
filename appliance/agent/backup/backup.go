package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/appliance/agent/filter"
	"coffer/appliance/agent/report"
	"coffer/appliance/agent/scan"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// Options of a backup run. Run is needed.
type Options struct {
	Order  sms.BackupOrder
	Run    uplink.Run
	Key    *seal.Key        // of an encrypted task; nil: nothing is sealed
	Logger *slog.Logger     // nil: silent
	Now    func() time.Time // the client's clock; nil: time.Now
	// Readers and Senders are how many goroutines read and compress; 0 means as the processors allow.
	Readers, Senders int
}

// Codes of a failed run, for sms.Outcome; the same as report has, and these.
const (
	CodeSourceMissing = "source_missing"
	CodeBadOrder      = "bad_order"
	CodeCommand       = "command_failed"
)

// Margin is how much older than the start of the parent's run a file must be to be taken over unread: clocks of file
// systems tick in steps (FAT: 2 s), and a file may change again within one.
const margin = 2 * time.Second

// Run does what the order says and commits. With an error there is no saveset and the run is not over: the caller tells
// the appliance, with the outcome, which has the counters.
func Run(ctx context.Context, opts Options) (sms.Outcome, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Key != nil && opts.Run.Domain().Chunking.Max > seal.MaxPlain {
		return sms.Outcome{}, report.Errorf(CodeBadOrder, "the appliance cuts chunks too long to be sealed")
	}
	j := newJob(opts)
	stop := j.rep.Start(ctx)
	defer stop()
	err := Before(ctx, &opts.Order, j.rep)
	if err == nil {
		err = j.task(ctx)
		After(ctx, &opts.Order, j.rep)
	}
	if err == nil {
		err = j.commit(ctx)
	}
	return sms.Outcome{Counters: j.rep.Counters()}, err
}

// task reads the source and sends it, up to the commit.
func (j *job) task(ctx context.Context) error {
	switch j.opts.Order.TaskType {
	case sms.TaskPath, "":
		return j.path(ctx)
	case sms.TaskStream:
		return j.stream(ctx)
	}
	return report.Errorf(CodeBadOrder, "this agent knows no task type %q", j.opts.Order.TaskType)
}

// job is one run in work.
type job struct {
	opts    Options
	run     uplink.Run
	rep     *report.Reporter
	started time.Time
	keys    digest.Keys
	images  *filter.Filter // files that are stored as disk images
	sources []string       // directories and files that the task names
	bufs    *buffers
	made    sms.Commit // what is to be committed

	queue chan *batch  // planner to builder, in the order of the tree
	reads chan *batch  // planner to readers
	sends chan *parcel // readers to senders
}

func newJob(opts Options) *job {
	procs := processors()
	if opts.Readers == 0 {
		opts.Readers = procs + 2 // some wait for the disk
	}
	if opts.Senders == 0 {
		opts.Senders = procs
	}
	run := opts.Run
	if opts.Key != nil {
		run = uplink.Unseal(run, seal.NewOpener(*opts.Key))
	}
	return &job{
		opts: opts, run: run, rep: report.New(opts.Run, opts.Logger), started: opts.Now(),
		keys: opts.Run.Domain().Keys, bufs: newBuffers(opts.Readers, opts.Senders),
		queue: make(chan *batch, 64), reads: make(chan *batch, opts.Readers), sends: make(chan *parcel, opts.Senders),
	}
}

// sink is where a builder's nodes go; of an encrypted task they are sealed before. It is for one goroutine.
func (j *job) sink(to recipe.Sink) recipe.Sink {
	if j.opts.Key == nil {
		return to
	}
	return seal.NewSink(to, *j.opts.Key)
}

// lanes is how many lanes the run uses.
func (j *job) lanes() int { return max(1, min(j.opts.Senders, j.run.MaxLanes())) }

// path backs up directory trees.
func (j *job) path(ctx context.Context) error {
	exclude, err := filter.New(j.opts.Order.Excludes)
	if err != nil {
		return report.Errorf(CodeBadOrder, "excludes: %w", err)
	}
	if j.images, err = filter.New(j.opts.Order.Images); err != nil {
		return report.Errorf(CodeBadOrder, "images: %w", err)
	}
	for _, p := range j.opts.Order.Sources {
		j.sources = append(j.sources, string(p))
	}
	sc, err := scan.New(scan.Options{
		Sources: j.sources, Exclude: exclude, OneFileSystem: j.opts.Order.OneFileSystem,
		Warn: func(path string, err error) { j.rep.Warn("unreadable", path, err) },
	})
	if errors.Is(err, fs.ErrNotExist) {
		return &report.Error{Code: CodeSourceMissing, Err: err}
	}
	if err != nil {
		return &report.Error{Code: CodeBadOrder, Err: err}
	}
	defer sc.Close()
	if j.made.Root, j.made.Side, err = j.work(ctx, sc); err != nil {
		return err
	}
	j.made.SourceID = sc.Sources(ctx)
	return nil
}

// work runs the pipeline to its end.
func (j *job) work(ctx context.Context, sc *scan.Scanner) (root, side recipe.Ref, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(j.queue)
		defer close(j.reads)
		return newPlanner(j).run(ctx, sc)
	})
	j.readers(ctx, g)
	j.senders(ctx, g)
	g.Go(func() (err error) {
		root, side, err = newBuilder(j).run(ctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return root, side, fmt.Errorf("back up: %w", err)
	}
	return root, side, nil
}

// readers starts the readers; when all are done nothing is left to send.
func (j *job) readers(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error {
		defer close(j.sends)
		readers, ctx := errgroup.WithContext(ctx)
		for i := range j.opts.Readers {
			readers.Go(func() error { return newReader(j, i).run(ctx) })
		}
		return readers.Wait()
	})
}

func (j *job) senders(ctx context.Context, g *errgroup.Group) {
	for i := range j.opts.Senders {
		g.Go(func() error { return newSender(j, i).run(ctx) })
	}
}

func (j *job) commit(ctx context.Context) error {
	j.rep.Phase(sms.PhaseFinishing)
	c := j.made
	c.Started, c.Finished, c.Counters = j.started, j.opts.Now(), j.rep.Counters()
	if _, err := j.run.Commit(ctx, c); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
