package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"coffer/appliance/agent/command"
	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/report"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// windowBytes is how much of a stream is fetched at once; another window is fetched while one is written.
const windowBytes = 16 << 20

// restoreStream gives a stream saveset to a command, or writes it into a file.
func restoreStream(ctx context.Context, opts Options, rep *report.Reporter) error {
	e, _, err := recipe.NewDirIter(opts.Run, opts.Run.Root().Digest).Next(ctx)
	if err != nil {
		return fmt.Errorf("read the saveset: %w", err)
	}
	if !e.IsRegular() {
		return report.Errorf(CodeBadOrder, "the saveset holds no stream")
	}
	rep.Expect(1, e.Size)
	if len(opts.Order.Command) > 0 {
		return pipe(ctx, opts, rep, e)
	}
	return streamToFile(ctx, opts, rep, e)
}

// pipe writes the stream to a command's standard input. The command fails the restore.
func pipe(ctx context.Context, opts Options, rep *report.Reporter, e recipe.Entry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, err := command.New(ctx, opts.Order.Command)
	if err != nil {
		return &report.Error{Code: CodeBadOrder, Err: err}
	}
	in, err := cmd.Input()
	if err != nil {
		return &report.Error{Code: CodeCommand, Err: err}
	}
	copyErr := copyStream(ctx, opts.Run, rep, e, in)
	closeErr := in.Close()
	if copyErr != nil && !errors.As(copyErr, &errWrite{}) {
		cancel() // the command must not take what it got for the whole
		_ = cmd.Wait()
		return copyErr
	}
	// A command that stopped to read has most often ended, and says why better than the broken pipe.
	if err := cmd.Wait(); err != nil {
		return &report.Error{Code: CodeCommand, Err: err}
	}
	if err := errors.Join(copyErr, closeErr); copyErr != nil {
		return report.Errorf(CodeCommand, "the command ended before it had read all: %w", err)
	}
	rep.Entries.Add(1)
	rep.Files.Add(1)
	return nil
}

// errWrite marks errors of the writer.
type errWrite struct{ error }

func (e errWrite) Unwrap() error { return e.error }

// copyStream writes a file's content, in order, to w.
func copyStream(ctx context.Context, run uplink.Run, rep *report.Reporter, e recipe.Entry, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	windows, fetched := make(chan *window), make(chan error, 1)
	go func() {
		defer close(windows)
		fetched <- fetchWindows(ctx, run, e, windows)
	}()
	var err error
	last := time.Now()
	for win := range windows {
		rep.Network.Add(int64(time.Since(last)))
		if err == nil {
			err = win.write(w, rep)
		}
		if err != nil {
			cancel() // and take what is on its way
		}
		last = time.Now()
	}
	cancel()
	if fetchErr := <-fetched; err == nil {
		err = fetchErr
	}
	return err
}

// window is a piece of a stream.
type window struct {
	extents []recipe.Extent
	chunks  map[digest.Digest][]byte
}

func (win *window) write(w io.Writer, rep *report.Reporter) error {
	zeros := []byte(nil)
	for _, x := range win.extents {
		if !x.Hole {
			if _, err := w.Write(win.chunks[x.Digest]); err != nil {
				return errWrite{err}
			}
		}
		for left := x.Length; x.Hole && left > 0; {
			if zeros == nil {
				zeros = make([]byte, 64<<10)
			}
			n, err := w.Write(zeros[:min(left, uint64(len(zeros)))])
			if err != nil {
				return errWrite{err}
			}
			left -= uint64(n)
		}
		rep.BytesRead.Add(x.Length)
	}
	return nil
}

func fetchWindows(ctx context.Context, run uplink.Run, e recipe.Entry, out chan<- *window) error {
	it := recipe.NewStreamIter(run, e.Content, e.Size)
	fetch := newFetcher(run)
	for done := false; !done; {
		win, bytes := &window{}, 0
		for bytes < windowBytes && len(win.extents) < uplink.MaxFetchItems {
			x, err := it.Next(ctx)
			if err == io.EOF {
				done = true
				break
			}
			if err != nil {
				return fmt.Errorf("read the saveset: %w", err)
			}
			if !x.Hole {
				bytes += int(x.Length)
			}
			win.extents = append(win.extents, x)
		}
		var err error
		if win.chunks, err = fetch.chunks(ctx, win.extents); err != nil {
			return err
		}
		select {
		case out <- win:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// fetcher brings chunks into memory.
type fetcher struct {
	run  uplink.Run
	dec  *frame.Decoder
	hash *digest.Hasher
}

func newFetcher(run uplink.Run) *fetcher {
	return &fetcher{run: run, dec: frame.NewDecoder(), hash: digest.NewHasher(run.Domain().Keys.Data)}
}

// chunks fetches and verifies the chunks of extents.
func (f *fetcher) chunks(ctx context.Context, extents []recipe.Extent) (map[digest.Digest][]byte, error) {
	got := map[digest.Digest][]byte{}
	var items []uplink.FetchItem
	for _, x := range extents {
		if _, again := got[x.Digest]; !x.Hole && !again {
			got[x.Digest] = nil
			items = append(items, uplink.FetchItem{Digest: x.Digest, Length: uint32(x.Length)})
		}
	}
	if len(items) == 0 {
		return got, nil
	}
	unseal := uplink.OpenerOf(f.run)
	err := f.run.Fetch(ctx, items, func(fr frame.Frame) error {
		plain, err := f.dec.Decode(fr, nil)
		if err != nil {
			return report.Errorf(codeDamaged, "a frame of the stream: %w", err)
		}
		for _, ref := range fr.Refs {
			chunk := plain[:ref.Length:ref.Length]
			plain = plain[ref.Length:]
			if have, wanted := got[ref.Digest]; !wanted || have != nil || f.hash.Sum(chunk) != ref.Digest {
				continue
			}
			if unseal != nil {
				if chunk, err = unseal.Chunk(nil, chunk); err != nil {
					return report.Errorf(codeDamaged, "%w", err)
				}
			}
			got[ref.Digest] = chunk
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	for d, chunk := range got {
		if chunk == nil {
			return nil, report.Errorf(codeDamaged, "the appliance could not deliver chunk %v", d)
		}
	}
	return got, nil
}

// fetchOne brings one chunk.
func fetchOne(ctx context.Context, run uplink.Run, d digest.Digest, size uint32) ([]byte, error) {
	got, err := newFetcher(run).chunks(ctx, []recipe.Extent{{Digest: d, Length: uint64(size)}})
	return got[d], err
}

// streamToFile writes the stream into the file that the order's target names.
func streamToFile(ctx context.Context, opts Options, rep *report.Reporter, e recipe.Entry) error {
	target := string(opts.Order.Target)
	if target == "" || path.Clean(target) == "/" {
		return report.Errorf(CodeBadOrder, "a stream is restored into a command or a file: name one")
	}
	dir, name := path.Split(path.Clean(target))
	if strings.HasSuffix(target, "/") || isDir(target) {
		dir, name = target, e.Name
	}
	opts.Order.Target = sms.Path(dir)
	j, err := newJob(opts, rep)
	if err != nil {
		return err
	}
	base, err := j.openBase()
	if err != nil {
		return &report.Error{Code: CodeTarget, Err: err}
	}
	p := newPlanner(j, base, newPace(opts.Workers, recipe.Totals{Entries: 1, Bytes: e.Size}))
	e.Name = name
	return j.pipeline(ctx, p, opts.Workers, func(ctx context.Context) error { return p.one(ctx, e) })
}

func isDir(p string) bool {
	d, err := fsmeta.OpenPath(p)
	if err != nil {
		return false
	}
	_ = d.Close()
	return true
}
