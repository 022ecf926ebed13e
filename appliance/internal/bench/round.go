package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dataset is what is backed up: a tree, perhaps its next release, and a
// subtree to be copied from a mount.
type dataset struct{ name, first, next, subtree string }

// tool is one backup program with a repository of its own.
type tool interface {
	name() string
	// pids are the processes that work for the tool beside the command itself.
	pids() []int
	full(ctx context.Context, src string) (*exec.Cmd, error)
	incr(ctx context.Context, src string) (*exec.Cmd, error)
	// restore brings back path, or what lies below it, into the directory to.
	restore(ctx context.Context, path, to string) (*exec.Cmd, error)
	// mount shows the newest saveset and returns the directory that stands for
	// "/"; nil where the tool is not measured so.
	mount(ctx context.Context) (root string, unmount func() error, err error)
	stored() (int64, error)
	close() error
}

type bench struct {
	options
	set     dataset
	results *results
	work    string
	src     string
	tools   []tool
}

// round makes fresh repositories and runs every step with every tool.
func (b *bench) round(ctx context.Context, n int) (err error) {
	if b.work, err = os.MkdirTemp(b.cache, "round-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	b.src = filepath.Join(b.work, "source")
	if err := shell(ctx, `cp -a "$1" "$2" && find "$2" -type f -print0 | xargs -0 cat > /dev/null`, b.set.first, b.src); err != nil {
		return err
	}
	// Files younger than a run count as changing: real trees are older.
	time.Sleep(2500 * time.Millisecond)
	if err := b.open(ctx, n); err != nil {
		return err
	}
	defer func() {
		for _, t := range b.tools {
			err = errors.Join(err, t.close())
		}
	}()
	if err := b.backups(ctx, n); err != nil {
		return err
	}
	return b.restores(ctx)
}

// open makes the tools, in an order that rotates with the rounds.
func (b *bench) open(ctx context.Context, n int) error {
	b.tools = nil
	names := strings.Split(b.only, ",")
	for i := range names {
		name := names[(i+n)%len(names)]
		dir := filepath.Join(b.work, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		t, err := b.newTool(ctx, name, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.tools = append(b.tools, t)
	}
	return nil
}

func (b *bench) newTool(ctx context.Context, name, dir string) (tool, error) {
	switch name {
	case "coffer":
		return newCoffer(ctx, b.bin, dir, b.src, strings.Fields(b.profile))
	case "restic":
		return newRestic(ctx, dir)
	case "borg":
		return newBorg(ctx, dir)
	}
	return nil, fmt.Errorf("no tool is called %q", name)
}

func (b *bench) backups(ctx context.Context, n int) error {
	full := func(t tool) (*exec.Cmd, error) { return t.full(ctx, b.src) }
	incr := func(t tool) (*exec.Cmd, error) { return t.incr(ctx, b.src) }
	if err := b.step("FULL", full); err != nil {
		return err
	}
	if err := b.step("INCR, nothing changed", incr); err != nil {
		return err
	}
	if _, err := touch(b.src, uint64(2*n+1)); err != nil {
		return err
	}
	if err := b.step("FULL after 1 %", full); err != nil {
		return err
	}
	if _, err := touch(b.src, uint64(2*n+2)); err != nil {
		return err
	}
	time.Sleep(2500 * time.Millisecond)
	if err := b.step("INCR after 1 %", incr); err != nil {
		return err
	}
	if b.set.next == "" {
		return nil
	}
	if err := shell(ctx, `rsync -a --delete "$1/" "$2/" && find "$2" -type f -print0 | xargs -0 cat > /dev/null`, b.set.next, b.src); err != nil {
		return err
	}
	return b.step("FULL of the next release", full)
}

func (b *bench) restores(ctx context.Context) error {
	to := filepath.Join(b.shm, "coffer-bench")
	clean := func() error { return os.RemoveAll(to) }
	defer clean()
	into := func(path string) func(tool) (*exec.Cmd, error) {
		return func(t tool) (*exec.Cmd, error) {
			if err := errors.Join(clean(), os.Mkdir(to, 0o755)); err != nil {
				return nil, err
			}
			return t.restore(ctx, path, to)
		}
	}
	if err := errors.Join(clean(), os.Mkdir(to, 0o755)); err != nil {
		return err
	}
	if err := b.measure("restore", "cp -a", nil, exec.CommandContext(ctx, "cp", "-a", b.src, to)); err != nil {
		return err
	}
	if err := b.step("restore", into(b.src)); err != nil {
		return err
	}
	sub := filepath.Join(b.src, b.set.subtree)
	if err := b.step("restore of a subtree", into(sub)); err != nil {
		return err
	}
	return b.fromMounts(ctx, sub, to, clean)
}

func (b *bench) fromMounts(ctx context.Context, sub, to string, clean func() error) error {
	for _, t := range b.tools {
		root, unmount, err := t.mount(ctx)
		if err != nil {
			return fmt.Errorf("%s mount: %w", t.name(), err)
		}
		if unmount == nil {
			continue
		}
		err = errors.Join(clean(), os.Mkdir(to, 0o755))
		if err == nil {
			err = b.measure("cp -a of the subtree from the mount", t.name(), t, exec.CommandContext(ctx, "cp", "-a", filepath.Join(root, sub), to))
		}
		if err := errors.Join(err, unmount()); err != nil {
			return fmt.Errorf("%s mount: %w", t.name(), err)
		}
	}
	return nil
}

// step runs one step with every tool and notes what the repository grew by.
func (b *bench) step(step string, command func(tool) (*exec.Cmd, error)) error {
	for _, t := range b.tools {
		before, err := t.stored()
		if err != nil {
			return err
		}
		cmd, err := command(t)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", step, t.name(), err)
		}
		if err := b.measure(step, t.name(), t, cmd); err != nil {
			return err
		}
		after, err := t.stored()
		if err != nil {
			return err
		}
		b.results.last(step, t.name()).stored = after - before
	}
	return nil
}

// measure runs one command and takes its time, CPU and memory together with
// those of the tool's other processes.
func (b *bench) measure(step, name string, t tool, cmd *exec.Cmd) error {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	others := func() []int { return nil }
	if t != nil {
		others = t.pids
	}
	cpu := 0.0
	for _, pid := range others() {
		cpu -= cpuOf(pid)
	}
	unix.Sync() // what the tool before has written must not be paid for by this one
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	own := cmd.Process.Pid
	s := startSampler(func() []int { return append(others(), own) })
	err := cmd.Wait()
	wall := time.Since(start)
	anon, hwm := s.peaks()
	if err != nil {
		return fmt.Errorf("%s, %s: %w: %s", step, name, err, out.String())
	}
	for _, pid := range others() {
		cpu += cpuOf(pid)
	}
	cpu += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	m := &measurement{wall: wall.Seconds(), cpu: cpu, anon: anon, hwm: hwm}
	for _, pid := range others() {
		m.each = append(m.each, s.of(pid))
	}
	b.results.add(step, name, m)
	fmt.Printf("  %-36s %-7s %7.2f s  %7.2f CPU s  %5d MiB\n", step, name, m.wall, m.cpu, m.anon>>20)
	return nil
}

// shell runs a line of sh with arguments.
func shell(ctx context.Context, script string, args ...string) error {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-ec", script, "sh"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// diskUsage is the space that the files below the directories take.
func diskUsage(dirs ...string) (int64, error) {
	var sum int64
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, os.ErrNotExist) {
					return nil
				}
				return err
			}
			info, err := d.Info()
			if err != nil {
				return nil // gone meanwhile
			}
			if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
				sum += st.Blocks * 512
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}
