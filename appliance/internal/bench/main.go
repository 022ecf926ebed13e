// Command bench runs the product beside Debian's restic and borgbackup, each
// with its default encryption, and beside cp as the floor, on the same data in
// one run. The tools take turns, step by step, and the order rotates with the
// rounds, so that a slow minute of the machine hits all of them. It prints
// medians with their spread, and the ratios that the product is held to.
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
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the programs")
	flag.StringVar(&o.cache, "cache", "/var/tmp/coffer-bench", "where the data sets are kept between calls")
	flag.StringVar(&o.shm, "restore-to", "/dev/shm", "a file system in memory, where restores go")
	flag.IntVar(&o.rounds, "rounds", 3, "alternating rounds")
	flag.Int64Var(&o.mixedMiB, "mixed", 4096, "MiB of mixed data; 0 leaves that data set out")
	flag.BoolVar(&o.kernel, "kernel", true, "run on two releases of the kernel tree")
	flag.StringVar(&o.only, "tools", "coffer,restic,borg", "the tools to run")
	flag.StringVar(&o.profile, "cofferd-flags", "", "further flags for cofferd, separated by spaces")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	bin, cache, shm, only, profile string
	rounds                         int
	mixedMiB                       int64
	kernel                         bool
}

func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("mounts and owners need root")
	}
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	var sets []dataset
	if o.kernel {
		first, next, err := kernelTrees(ctx, o.cache)
		if err != nil {
			return err
		}
		sets = append(sets, dataset{name: "kernel tree", first: first, next: next, subtree: "drivers/net"})
	}
	if o.mixedMiB > 0 {
		root, err := mixedData(o.cache, o.mixedMiB<<20)
		if err != nil {
			return err
		}
		sets = append(sets, dataset{name: "mixed data", first: root, subtree: "d000"})
	}
	for _, set := range sets {
		b := &bench{options: o, set: set, results: newResults()}
		for round := range o.rounds {
			if err := b.round(ctx, round); err != nil {
				return fmt.Errorf("%s, round %d: %w", set.name, round+1, err)
			}
		}
		b.results.print(set.name, o.rounds)
	}
	return nil
}
