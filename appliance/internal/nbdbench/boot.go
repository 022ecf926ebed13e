package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"coffer/api"
	"coffer/appliance/internal/lab/debian"
	"coffer/appliance/internal/nbdbench/boottrace"
	"coffer/nbd"
)

// bootGoal is how much longer than nbdkit's the replay of a boot may take.
const bootGoal = 1.5

// booter is a server whose disk a guest can boot from.
type booter interface {
	server
	// boot boots the guest from a disk that takes writes and forgets them, with cold caches, and tells how long that took.
	boot(context.Context) (time.Duration, error)
}

// measureBoot records a boot, replays it against the servers in turns, and has the guest boot from each.
func measureBoot(ctx context.Context, o options) (err error) {
	if o.disk, err = guestDisk(ctx, o); err != nil {
		return err
	}
	trace, err := bootTrace(ctx, o)
	if err != nil {
		return err
	}
	c, err := startCoffer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	k, err := startProcess(ctx, o, "nbdkit", nbdkit(o.disk), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.stop()) }()
	servers := []booter{&cofferGuest{c.(*coffer), o}, &nbdkitGuest{k.(*raw), o}}

	r := newBootResults(servers)
	for round := range o.rounds {
		for i := range servers {
			if err := replayRound(ctx, servers[(i+round)%len(servers)], trace, r); err != nil {
				return err
			}
		}
	}
	for round := range o.boots {
		for i := range servers {
			s := servers[(i+round)%len(servers)]
			took, err := s.boot(ctx)
			if err != nil {
				return fmt.Errorf("boot from %s: %w", s.name(), err)
			}
			fmt.Fprintf(os.Stderr, "  boot, %-8s %6.1f s\n", s.name(), took.Seconds())
			r.add(bootedCold, s.name(), took)
		}
	}
	r.print(os.Stdout)
	return nil
}

// guestDisk puts the guest's disk alone into a directory, which is what the task's source is.
func guestDisk(ctx context.Context, o options) (string, error) {
	path := filepath.Join(o.dir, "disks", "disk.raw")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	if o.disk != "" {
		return path, copySparse(ctx, path, o.disk)
	}
	fmt.Fprintln(os.Stderr, "the disk of a Debian guest (the first time it is installed)")
	return path, debian.Disk(ctx, path)
}

// bootTrace reads the trace of o.trace, or records one and keeps it there.
func bootTrace(ctx context.Context, o options) (*boottrace.Trace, error) {
	if f, err := os.Open(o.trace); err == nil {
		defer f.Close()
		t, err := boottrace.Decode(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.trace, err)
		}
		return t, tell(t, "read")
	} else if o.trace != "" && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	t, err := record(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("record a boot: %w", err)
	}
	if o.trace != "" {
		f, err := os.Create(o.trace)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(t.Encode(f), f.Close()); err != nil {
			return nil, err
		}
	}
	return t, tell(t, "recorded")
}

func tell(t *boottrace.Trace, how string) error {
	reads, bytes, depth := t.Totals(boottrace.Read)
	writes, written, _ := t.Totals(boottrace.Write)
	flushes, _, _ := t.Totals(boottrace.Flush)
	if reads == 0 {
		return errors.New("the trace has no reads")
	}
	fmt.Fprintf(os.Stderr, "a boot, %s: %d reads of %.1f MB, up to %d at once; %d writes of %.1f MB, %d flushes\n",
		how, reads, float64(bytes)/1e6, depth, writes, float64(written)/1e6, flushes)
	return nil
}

// record boots the guest from a copy of the disk.
func record(ctx context.Context, o options) (*boottrace.Trace, error) {
	path := filepath.Join(o.dir, "recorded.raw")
	if err := copySparse(ctx, path, o.disk); err != nil {
		return nil, err
	}
	defer os.Remove(path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := evict(path); err != nil {
		return nil, err
	}
	socket := filepath.Join(o.dir, "recorder.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	r := boottrace.NewRecorder(written{plain{f, st.Size()}})
	ctx, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- serve(ctx, r, l) }()
	_, err = bootFrom(ctx, socketURI(socket))
	stop()
	return r.Trace(), errors.Join(err, <-served)
}

// replayRound replays the trace against one server twice: with cold caches, and with what the first time left in them.
func replayRound(ctx context.Context, s booter, t *boottrace.Trace, r *bootResults) error {
	if err := s.cool(ctx); err != nil {
		return err
	}
	if err := dropCaches(); err != nil {
		return err
	}
	for _, step := range []string{replayedCold, replayedAgain} {
		counted, err := countFrames(ctx, s)
		if err != nil {
			return err
		}
		before := cpu(s.pid())
		took, err := replay(ctx, s.read(), t)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
		used := cpu(s.pid()) - before
		frames, err := counted()
		if err != nil {
			return err
		}
		if err := r.check(took.Sum); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
		r.add(step, s.name(), took.Took)
		wait := func(percent int) time.Duration {
			return took.Waits[(len(took.Waits)-1)*percent/100].Round(time.Microsecond)
		}
		fmt.Fprintf(os.Stderr, "  %-14s %-8s %8.3f s, %.2f s of CPU; a read takes %v, of 100 one %v or more, at most %v%s\n",
			step, s.name(), took.Took.Seconds(), used, wait(50), wait(99), wait(100), frames)
	}
	return nil
}

func replay(ctx context.Context, uri string, t *boottrace.Trace) (boottrace.Result, error) {
	socket, export, err := socketOf(uri)
	if err != nil {
		return boottrace.Result{}, err
	}
	c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: export})
	if err != nil {
		return boottrace.Result{}, err
	}
	r, err := boottrace.Replay(ctx, t, c)
	return r, errors.Join(err, c.Close())
}

// dropCaches drops what the kernel keeps of all file systems.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// cofferGuest boots from an export with an overlay.
type cofferGuest struct {
	*coffer
	o options
}

func (c *cofferGuest) boot(ctx context.Context) (_ time.Duration, err error) {
	var e api.Export
	if err := c.a.JSON(ctx, &e, "export", "add", "latest:disk", c.o.disk, "--overlay"); err != nil {
		return 0, err
	}
	defer func() {
		_, dropped := c.a.Coffer(ctx, "export", "drop", e.ID, "--yes")
		err = errors.Join(err, dropped)
	}()
	if err := errors.Join(c.cool(ctx), dropCaches()); err != nil {
		return 0, err
	}
	return bootFrom(ctx, unixURI(e))
}

// nbdkitGuest boots from a copy of the disk.
type nbdkitGuest struct {
	*raw
	o options
}

func (k *nbdkitGuest) boot(ctx context.Context) (_ time.Duration, err error) {
	path := filepath.Join(k.o.dir, "booted.raw")
	if err := copySparse(ctx, path, k.o.disk); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	socket := filepath.Join(k.o.dir, "booted.sock")
	s := &raw{what: k.what, disk: path}
	if s.reader, s.readURI, err = listen(ctx, socket, func(socket string) []string { return []string{"nbdkit", "-f", "-U", socket, "file", path} }); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.stop(), os.Remove(socket)) }()
	if err := errors.Join(s.cool(ctx), dropCaches()); err != nil {
		return 0, err
	}
	return bootFrom(ctx, s.readURI)
}

const (
	replayedCold  = "replayed, cold"
	replayedAgain = "replayed again"
	bootedCold    = "booted, cold"
)

// bootResults are the seconds of each step by server, in the order of the rounds.
type bootResults struct {
	servers []booter
	took    map[[2]string][]float64
	sum     *uint32 // of what a replay reads; nil: none was done
}

func newBootResults(servers []booter) *bootResults {
	return &bootResults{servers: servers, took: map[[2]string][]float64{}}
}

func (r *bootResults) add(step, server string, d time.Duration) {
	k := [2]string{step, server}
	r.took[k] = append(r.took[k], d.Seconds())
}

// check holds that all replays read the same.
func (r *bootResults) check(sum uint32) error {
	if r.sum == nil {
		r.sum = &sum
	}
	if *r.sum != sum {
		return errors.New("it served other bytes than the first server")
	}
	return nil
}

// ratios are ours by nbdkit's of each round.
func (r *bootResults) ratios(step string) (v []float64) {
	a, b := r.took[[2]string{step, r.servers[0].name()}], r.took[[2]string{step, r.servers[1].name()}]
	for i := range min(len(a), len(b)) {
		v = append(v, a[i]/b[i])
	}
	return v
}

func (r *bootResults) print(f *os.File) {
	fmt.Fprintf(f, "| seconds | %s | %s | ratio | goal |\n|---|---|---|---|---|\n", r.servers[0].name(), r.servers[1].name())
	for _, step := range []string{replayedCold, replayedAgain, bootedCold} {
		row := "| " + step + " |"
		for _, s := range r.servers {
			if v := r.took[[2]string{step, s.name()}]; len(v) > 0 {
				row += fmt.Sprintf(" %.3f (%.3f–%.3f) |", median(v), slices.Min(v), slices.Max(v))
			} else {
				row += " |"
			}
		}
		v := r.ratios(step)
		if len(v) == 0 {
			continue
		}
		row += fmt.Sprintf(" %.2f (%.2f–%.2f) |", median(v), slices.Min(v), slices.Max(v))
		switch {
		case step != replayedCold:
			row += " |"
		case median(v) > bootGoal:
			row += fmt.Sprintf(" at most %.1f, **missed** |", bootGoal)
		default:
			row += fmt.Sprintf(" at most %.1f |", bootGoal)
		}
		fmt.Fprintln(f, row)
	}
}
