// Command storebench holds the store against its goals: scale (insert, look up, collect and rebuild up to 10^7 chunks),
// throughput beside the bare cost of the calls that it cannot do without, reading of data that has aged over 50
// generations, and ingest beside a collection. It prints one table with the goal beside each figure; a goal that is missed
// is marked and does not fail the command.
//
// Ratios are of CPU seconds (user and system) of this process, with what is compared taking turns in one run, because
// other programs on the machine disturb wall time; where the goal is one of wall time, both are printed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

func main() {
	var o options
	flag.BoolVar(&o.short, "short", false, "small amounts: under two minutes, for a first look")
	flag.StringVar(&o.dir, "dir", "", "where stores are made, on the disk to measure; default: the directory for temporary files")
	flag.StringVar(&o.parts, "parts", "scale,throughput,read,aged,collect", "what to measure")
	flag.IntVar(&o.rounds, "rounds", 5, "alternating rounds of throughput; medians count")
	flag.IntVar(&o.chunks, "chunks", 0, "the most chunks of scale; default: 10 million, with -short 400,000")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "storebench:", err)
		os.Exit(1)
	}
}

type options struct {
	short      bool
	dir, parts string
	rounds     int
	chunks     int
}

// memoryLimit is what goals of memory are held to; frames come on top, as an appliance of 4 GiB has them by itself.
const (
	memoryLimit = 512 << 20
	frameMemory = 512 << 20
)

// part is one group of figures.
type part struct {
	name string
	run  func(context.Context, *bench) error
}

var parts = []part{
	{"scale", scale},
	{"throughput", throughput},
	{"read", read},
	{"aged", aged},
	{"collect", collect},
}

// bench is what all parts share.
type bench struct {
	options
	table table
}

func run(ctx context.Context, o options) error {
	debug.SetMemoryLimit(memoryLimit)
	dir, err := os.MkdirTemp(o.dir, "storebench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o}
	b.dir = dir
	fmt.Println(machine())
	defer func() { // what was measured before an error is shown, too
		fmt.Println()
		b.table.print(os.Stdout)
	}()
	for _, p := range parts {
		if !strings.Contains(","+o.parts+",", ","+p.name+",") {
			continue
		}
		start := time.Now()
		if err := p.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		b.note("%s took %v", p.name, time.Since(start).Round(time.Second))
	}
	return nil
}

// note prints what is going on, to standard error.
func (b *bench) note(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
