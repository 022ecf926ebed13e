package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"coffer/api"
	"coffer/appliance/internal/harness"
	"coffer/appliance/internal/treecmp"
)

// settle is how long a fresh copy is left alone: an INCR reads files again that
// were not older than two seconds when the run before it began.
const settle = 3 * time.Second

const copyLimit = 2 << 30 // bytes; a demonstration should not fill a disk

// demo is one demonstration. The scratch directory holds the copy, the copy of
// its first generation, the appliance and what is restored.
type demo struct {
	bin, source, scratch string
	keep                 bool

	appliance *harness.Appliance
	agent     *harness.Agent
	runs      []api.Run
}

func (d *demo) path(name string) string { return filepath.Join(d.scratch, name) }

func say(format string, args ...any) { fmt.Printf("\n== "+format+"\n", args...) }

// copy takes at most copyLimit of the source, as it lies there.
func (d *demo) copy(ctx context.Context) error {
	say("Copying %s (at most 2 GiB) to %s", d.source, d.path("source"))
	size, err := copyTree(ctx, d.source, d.path("source"), copyLimit)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", bytesText(size))
	time.Sleep(settle)
	return nil
}

func (d *demo) start(ctx context.Context) error {
	say("Starting cofferd, adding a client, enrolling its agent")
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var err error
	d.appliance, err = harness.Start(ctx, harness.Options{Bin: d.bin, Dir: d.path("appliance"), Detach: d.keep})
	if err != nil {
		return err
	}
	if d.agent, err = d.appliance.Agent(ctx, "demo-client"); err != nil {
		return err
	}
	_, err = d.appliance.Coffer(ctx, "task", "add", "demo", "--client", "demo-client", "--source", d.path("source"))
	fmt.Printf("appliance https://%s, agents %s\n", d.appliance.REST, d.appliance.SMS)
	return err
}

// backups runs a FULL, changes the copy and runs an INCR. The first generation
// is set aside, so that it can be compared with later.
func (d *demo) backups(ctx context.Context) error {
	say("FULL backup, then changes in the copy, then INCR")
	if err := d.backup(ctx); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", d.path("source"), d.path("generation1")).CombinedOutput(); err != nil {
		return fmt.Errorf("cp -a: %w: %s", err, bytes.TrimSpace(out))
	}
	changes, err := change(d.path("source"))
	if err != nil {
		return err
	}
	if err := d.backup(ctx); err != nil {
		return err
	}
	fmt.Printf("between the two: %s\n\n", changes)
	d.table()
	return nil
}

func (d *demo) backup(ctx context.Context) error {
	run, err := d.appliance.Run(ctx, "backup", "demo")
	if err != nil {
		return err
	}
	d.runs = append(d.runs, run)
	return nil
}

func (d *demo) table() {
	fmt.Printf("%-6s %-14s %10s %12s %12s %12s %9s\n", "level", "reason", "entries", "read", "new", "stored", "seconds")
	for _, r := range d.runs {
		fmt.Printf("%-6s %-14s %10d %12s %12s %12s %9.2f\n", r.LevelEffective, r.LevelReason, r.Progress.Entries,
			bytesText(r.Progress.BytesRead), bytesText(r.Progress.BytesNew), bytesText(r.Progress.BytesStored), seconds(r))
	}
}

func seconds(r api.Run) float64 {
	if r.StartedAt == nil || r.EndedAt == nil {
		return 0
	}
	return r.EndedAt.Sub(*r.StartedAt).Seconds()
}

// mounts compares both generations, seen through FUSE, with what they were.
func (d *demo) mounts(ctx context.Context) error {
	say("Mounting every saveset with FUSE and comparing")
	var status api.Mount
	if err := d.appliance.JSON(ctx, &status, "mount", "on"); err != nil {
		return err
	}
	for i, want := range []string{"generation1", "source"} {
		dir, err := d.generation(status.Path, i)
		if err != nil {
			return err
		}
		if err := d.compare(ctx, d.path(want), filepath.Join(dir, d.path("source")), "mount of "+filepath.Base(dir)); err != nil {
			return err
		}
	}
	return nil
}

// generation is the mounted directory of the i-th saveset, oldest first.
func (d *demo) generation(mount string, i int) (string, error) {
	task := filepath.Join(mount, "demo-client", "demo")
	entries, err := os.ReadDir(task)
	if err != nil {
		return "", err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(task, e.Name()))
		}
	}
	if len(dirs) != len(d.runs) {
		return "", fmt.Errorf("%s shows %d savesets, not %d", task, len(dirs), len(d.runs))
	}
	return dirs[i], nil
}

// restore brings both generations back into new directories through the agent.
func (d *demo) restore(ctx context.Context) error {
	say("Restoring both generations through the agent and comparing")
	for i, want := range []string{"generation1", "source"} {
		to := d.path(fmt.Sprintf("restored%d", i+1))
		run, err := d.appliance.Run(ctx, "restore", d.runs[i].Saveset, "--client", "demo-client", "--to", to)
		if err != nil {
			return err
		}
		fmt.Printf("%s restored in %.2f s\n", bytesText(run.Progress.Bytes), seconds(run))
		if err := d.compare(ctx, d.path(want), filepath.Join(to, d.path("source")), "restored "+want); err != nil {
			return err
		}
	}
	return nil
}

// compare leaves out allocated space: a copy by cp -a and one by a restore may
// be laid out differently on disk, which the product's own tests hold to 5 %.
func (d *demo) compare(ctx context.Context, want, got, what string) error {
	res, err := treecmp.Compare(ctx, want, got, treecmp.Options{Ignore: treecmp.Blocks | treecmp.Holes | treecmp.Flags})
	if err != nil {
		return err
	}
	if !res.Equal() {
		return fmt.Errorf("%s differs from what was backed up: %s", what, res)
	}
	fmt.Printf("%-34s %d entries, %s: no difference\n", what, res.Entries, bytesText(res.Bytes))
	return nil
}

func (d *demo) clean() error {
	var errs []error
	if d.agent != nil {
		errs = append(errs, d.agent.Stop())
	}
	if d.appliance != nil {
		errs = append(errs, d.appliance.Stop())
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err == nil && strings.Contains(string(mounts), d.scratch) {
		return errors.Join(append(errs, fmt.Errorf("something is still mounted below %s: left alone", d.scratch))...)
	}
	return errors.Join(append(errs, os.RemoveAll(d.scratch))...)
}

func (d *demo) explain() {
	a := d.appliance
	fmt.Printf(`
Left running. To use it:
  export COFFER_CONFIG_DIR=%s
  %s saveset list
  %s backup demo
  ls %s/mnt/demo-client/demo
The superuser is "admin", the password %q.
To stop it and remove everything:
  kill %d %d; sleep 3; rm -rf %s
`, filepath.Join(a.Dir, "cli"), filepath.Join(d.bin, "coffer"), filepath.Join(d.bin, "coffer"), a.Data, harness.Password,
		d.agent.PID(), a.PID(), d.scratch)
}
