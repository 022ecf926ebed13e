// Command cofferd is the appliance: one process, one data directory, one configuration file that may be missing.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"coffer/appliance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := appliance.Command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cofferd:", err)
		os.Exit(1)
	}
}
