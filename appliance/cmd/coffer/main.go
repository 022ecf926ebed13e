// Command coffer is the command line of the Coffer backup appliance.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"coffer/appliance/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Standard())
	stop()
	os.Exit(code)
}
