// Command demo shows the main job of the product on real data: it copies a
// directory, backs the copy up, changes it, backs it up again, mounts and
// restores both generations and compares everything with what was there. It
// never writes to the directory that it is given, and cleans up behind itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	var d demo
	flag.StringVar(&d.bin, "bin", "bin", "directory of the programs")
	flag.StringVar(&d.source, "source", "/usr/share", "directory whose copy is backed up")
	flag.BoolVar(&d.keep, "keep", false, "leave everything running and say how to use and stop it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &d); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, d *demo) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the demonstration mounts with FUSE and restores owners: run it as root")
	}
	if d.scratch, err = os.MkdirTemp("", "coffer-demo-"); err != nil {
		return err
	}
	if d.bin, err = filepath.Abs(d.bin); err != nil {
		return err
	}
	defer func() {
		if d.keep && err == nil {
			d.explain()
			return
		}
		err = errors.Join(err, d.clean())
	}()
	for _, step := range []func(context.Context) error{d.copy, d.start, d.backups, d.mounts, d.restore} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	fmt.Println("\nAll comparisons found no difference.")
	return nil
}
