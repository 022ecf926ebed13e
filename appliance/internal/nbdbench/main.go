// Command nbdbench measures the appliance's NBD exports beside qemu-nbd and nbdkit, which serve the same disk as a raw file: a disk
// is backed up by an agent, exported, and read and written by nbdcopy and fio on unix sockets, the servers in turns.
//
//	nbdbench [-bin DIR] [-dir DIR] [-disk FILE] [-mib N] [-rounds N] [-seconds N] [-cache MIB] [-layer]
//	nbdbench -boot [-bin DIR] [-dir DIR] [-disk FILE] [-rounds N] [-boots N] [-trace FILE] [-cache MIB]
//
// It needs root, and nbdcopy, fio, nbdkit and qemu-nbd. Cold means that the disk's file, the store's files and cofferd's own
// caches are empty: cofferd starts anew. With -layer it measures the protocol alone: package nbd on the plain file.
//
// With -boot it records what a Debian guest asks of its disk while it boots (QEMU's emulation, from a raw file) and replays the
// reads, without the time that the guest took to think (see package boottrace), against the saveset and against nbdkit; and the
// guest boots from both. It needs debootstrap and qemu-system-x86_64, and drops the caches of the whole machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
)

type options struct {
	bin, dir, disk       string
	mib, rounds, seconds int
	cache                int
	layer, boot          bool
	boots                int
	trace                string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "nbdbench:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	var o options
	file := flag.String("serve", "", "serve this file and nothing else, on the unix socket -socket (what -layer starts)")
	socket := flag.String("socket", "", "see -serve")
	flag.StringVar(&o.bin, "bin", "bin", "directory of cofferd, coffer and coffer-agent")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the disk and the appliance's data are made and removed")
	flag.StringVar(&o.disk, "disk", "", "raw disk to measure with (default: one is made of the files below /usr)")
	flag.IntVar(&o.mib, "mib", 2048, "MiB of the disk that is made")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the table shows medians")
	flag.IntVar(&o.seconds, "seconds", 4, "seconds of each random measurement")
	flag.IntVar(&o.cache, "cache", 0, "MiB of the store's cache of frames (default: as it comes)")
	flag.BoolVar(&o.layer, "layer", false, "measure package nbd on the plain file in the appliance's place")
	flag.BoolVar(&o.boot, "boot", false, "replay a guest's boot, and boot it")
	flag.IntVar(&o.boots, "boots", 2, "with -boot: how often the guest boots from each server")
	flag.StringVar(&o.trace, "trace", "", "with -boot: file of the trace; it is recorded when it is not there (default: recorded and not kept)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *file != "" {
		return serveFile(ctx, *file, *socket)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp(o.dir, "nbdbench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	if o.boot {
		return measureBoot(ctx, o)
	}
	return measureAll(ctx, o)
}

func measureAll(ctx context.Context, o options) (err error) {
	given := o.disk
	o.disk = filepath.Join(o.dir, "disks", "disk.raw") // alone in its directory, which is what the task's source is
	if err := os.Mkdir(filepath.Dir(o.disk), 0o700); err != nil {
		return err
	}
	if given != "" {
		if err := copyDisk(o.disk, given); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(os.Stderr, "making a disk of %d MiB\n", o.mib)
		if err := makeDisk(o.disk, int64(o.mib)<<20); err != nil {
			return err
		}
	}
	servers, err := start(ctx, o)
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.stop())
		}
	}()
	if err != nil {
		return err
	}
	r := newResults()
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
		if err := measureRound(ctx, o, servers, r, round); err != nil {
			return err
		}
	}
	r.print(os.Stdout, servers)
	return nil
}
