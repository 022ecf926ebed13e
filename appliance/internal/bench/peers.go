package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const peerPassword = "a password for the benchmark only"

// restic with its defaults.
type restic struct{ dir string }

func newRestic(ctx context.Context, dir string) (*restic, error) {
	r := &restic{dir: dir}
	out, err := r.command(ctx, "init").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("init: %w: %s", err, out)
	}
	return r, nil
}

func (r *restic) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "restic", args...)
	cmd.Env = append(os.Environ(), "RESTIC_PASSWORD="+peerPassword, "RESTIC_REPOSITORY="+filepath.Join(r.dir, "repo"),
		"RESTIC_CACHE_DIR="+filepath.Join(r.dir, "cache"))
	return cmd
}

func (r *restic) name() string { return "restic" }
func (r *restic) pids() []int  { return nil }
func (r *restic) close() error { return nil }

func (r *restic) full(ctx context.Context, src string) (*exec.Cmd, error) {
	return r.command(ctx, "backup", "--quiet", "--force", src), nil
}

func (r *restic) incr(ctx context.Context, src string) (*exec.Cmd, error) {
	return r.command(ctx, "backup", "--quiet", src), nil
}

func (r *restic) restore(ctx context.Context, path, to string) (*exec.Cmd, error) {
	return r.command(ctx, "restore", "--quiet", "latest", "--target", to, "--include", path), nil
}

func (r *restic) stored() (int64, error) { return diskUsage(filepath.Join(r.dir, "repo")) }

func (r *restic) mount(ctx context.Context) (string, func() error, error) {
	dir := filepath.Join(r.dir, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, err
	}
	cmd := r.command(ctx, "mount", dir)
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	unmount := func() error {
		err := cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		return err
	}
	latest := filepath.Join(dir, "snapshots", "latest")
	for range 200 {
		if exists(latest) {
			return latest + "/", unmount, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "", nil, errors.Join(errors.New("restic's mount does not appear"), unmount())
}

// borg with repokey, its default encryption.
type borg struct {
	dir string
	n   int
}

func newBorg(ctx context.Context, dir string) (*borg, error) {
	b := &borg{dir: dir}
	out, err := b.command(ctx, "init", "--encryption", "repokey", b.repo()).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("init: %w: %s", err, out)
	}
	return b, nil
}

func (b *borg) repo() string { return filepath.Join(b.dir, "repo") }

func (b *borg) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "borg", args...)
	cmd.Env = append(os.Environ(), "BORG_PASSPHRASE="+peerPassword, "BORG_BASE_DIR="+filepath.Join(b.dir, "base"))
	return cmd
}

func (b *borg) name() string { return "borg" }
func (b *borg) pids() []int  { return nil }
func (b *borg) close() error { return nil }

func (b *borg) full(ctx context.Context, src string) (*exec.Cmd, error) {
	b.n++
	return b.command(ctx, "create", "--files-cache", "disabled", fmt.Sprintf("%s::%d", b.repo(), b.n), src), nil
}

func (b *borg) incr(ctx context.Context, src string) (*exec.Cmd, error) {
	b.n++
	return b.command(ctx, "create", fmt.Sprintf("%s::%d", b.repo(), b.n), src), nil
}

func (b *borg) restore(ctx context.Context, path, to string) (*exec.Cmd, error) {
	cmd := b.command(ctx, "extract", fmt.Sprintf("%s::%d", b.repo(), b.n), path[1:])
	cmd.Dir = to
	return cmd, nil
}

func (b *borg) stored() (int64, error) { return diskUsage(b.repo()) }

func (b *borg) mount(context.Context) (string, func() error, error) { return "", nil, nil }
