// Command imagebench measures what the chunk size of disk images costs and gives: for each size it stores generations of one disk
// and the disk of another machine, and reads the last generation. The table is in appliance/docs/PERFORMANCE.md.
//
//	imagebench [-dir DIR] [-sizes 64,128,…] -generations A0,A1,… [-other B]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"text/tabwriter"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "imagebench:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	sizes, generations := "", ""
	flag.StringVar(&o.dir, "dir", "", "where stores are made and removed (default: the system's temporary directory)")
	flag.StringVar(&sizes, "sizes", "64,128,256,512,1024", "chunk sizes, KiB")
	flag.StringVar(&generations, "generations", "", "raw disks: one after the other, of one machine")
	flag.StringVar(&o.other, "other", "", "raw disk of another machine")
	flag.Parse()
	if generations == "" {
		return fmt.Errorf("give disks by -generations")
	}
	o.generations = strings.Split(generations, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "chunk KiB\tfirst MB\tper generation MB\tother MB\tratio\trecipe KB\tchunks\tindex KB\tstore CPU s\tseq cold MB/CPU s\tseq warm MB/CPU s\t4K cold/CPU s\t4K warm/CPU s\t")
	for _, s := range strings.Split(sizes, ",") {
		kib, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		r, err := measure(ctx, o, kib<<10)
		if err != nil {
			return fmt.Errorf("chunks of %d KiB: %w", kib, err)
		}
		fmt.Fprintf(out, "%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%d\t%.0f\t%.1f\t%.0f\t%.0f\t%.0f\t%.0f\t\n", kib, r.first, r.generation, r.other,
			r.ratio, r.recipe, r.chunks, r.index, r.seconds, r.seqCold, r.seqWarm, r.randomCold, r.randomWarm)
	}
	return out.Flush()
}
