package cli

import (
	"context"
	"io"
)

// Streams are a command's terminal or pipes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Run runs the command line args (without the program's name) and returns the exit code.
func Run(ctx context.Context, args []string, s Streams) int { panic("todo") }
