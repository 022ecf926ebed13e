package backup

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"coffer/appliance/agent/command"
	"coffer/appliance/agent/report"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// defaultStreamName is the name of the one file in the saveset of a stream task that gives none.
const defaultStreamName = "stream"

// stream backs up the output of a command: a saveset with one file in its root. A command that fails leaves none.
func (j *job) stream(ctx context.Context) error {
	name := j.opts.Order.StreamName
	if name == "" {
		name = defaultStreamName
	}
	if err := recipe.CheckName(name); err != nil {
		return report.Errorf(CodeBadOrder, "stream name: %w", err)
	}
	var e recipe.Entry
	g, gctx := errgroup.WithContext(ctx)
	j.senders(gctx, g)
	g.Go(func() (err error) {
		defer close(j.sends)
		e, err = j.capture(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	e.Name = name
	var err error
	if j.made.Root, err = j.streamRoot(ctx, e); err != nil {
		return fmt.Errorf("build the recipe: %w", err)
	}
	return nil
}

// capture runs the command and sends what it prints.
func (j *job) capture(ctx context.Context) (recipe.Entry, error) {
	e := recipe.Entry{Mode: recipe.ModeRegular | 0o600, UID: uint32(max(0, os.Getuid())), GID: uint32(max(0, os.Getgid()))}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, err := command.New(ctx, j.opts.Order.Command)
	if err != nil {
		return e, &report.Error{Code: CodeBadOrder, Err: err}
	}
	out, err := cmd.Output()
	if err != nil {
		return e, &report.Error{Code: CodeCommand, Err: err}
	}
	size, content, err := j.captureOutput(ctx, out)
	if err != nil {
		cancel()
		_ = cmd.Wait() // ended by us: how says nothing
		return e, err
	}
	if err := cmd.Wait(); err != nil {
		return e, &report.Error{Code: CodeCommand, Err: err}
	}
	e.Size, e.Content, e.MTime = size, content, toTime(j.opts.Now())
	j.rep.Entries.Add(1)
	j.rep.Files.Add(1)
	return e, nil
}

func (j *job) captureOutput(ctx context.Context, out io.Reader) (uint64, recipe.Content, error) {
	r := newReader(j, 0)
	cut, err := r.cutting()
	if err != nil {
		return 0, recipe.Content{}, err
	}
	r.start()
	size, err := r.cutStream(ctx, cut, out)
	if err == nil {
		err = r.flush(ctx)
	}
	if err != nil {
		return 0, recipe.Content{}, fmt.Errorf("read the command's output: %w", err)
	}
	content, _, err := cut.builder.Finish(ctx)
	return uint64(size), content, err
}

func (j *job) streamRoot(ctx context.Context, e recipe.Entry) (recipe.Ref, error) {
	b := recipe.NewDirBuilder(j.sink(j.run), digest.NewHasher(j.keys.Node))
	if err := b.Add(ctx, e, recipe.Totals{}); err != nil {
		return recipe.Ref{}, err
	}
	return b.Finish(ctx)
}
