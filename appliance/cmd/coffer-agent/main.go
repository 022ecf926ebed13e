// Command coffer-agent is the agent of the Coffer backup appliance, which runs on clients.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"coffer/api"
	"coffer/appliance/agent/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Env{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Version: api.Version,
	})
	stop()
	os.Exit(code)
}
