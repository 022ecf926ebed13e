// Package command runs the commands of tasks on the client: dumps that are stored, loaders that take a restored stream,
// pre and post commands. A command that is cancelled is ended with everything that it started. The package does not know
// what a command's output is for.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	// tailSize is how much of what a command says last goes into the error.
	tailSize = 4 << 10
	// grace is how long a command that is told to end may take before it is killed.
	grace = 5 * time.Second
)

// ErrEmpty says that there is no command.
var ErrEmpty = errors.New("the command is empty")

// Cmd is a command in work.
type Cmd struct {
	cmd  *exec.Cmd
	tail *tail
	text string
}

// New prepares a command. One argument is a line for the shell (/bin/sh -c, on Windows cmd /C); several are the program
// and its arguments, which no shell sees.
func New(ctx context.Context, argv []string) (*Cmd, error) {
	if len(argv) == 0 || strings.TrimSpace(argv[0]) == "" {
		return nil, ErrEmpty
	}
	text := strings.Join(argv, " ")
	if len(argv) == 1 {
		argv = shell(argv[0])
	}
	c := &Cmd{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), tail: &tail{}, text: text}
	c.cmd.Stderr = c.tail
	c.cmd.WaitDelay = grace
	ownGroup(c.cmd)
	return c, nil
}

// Output starts the command and returns its standard output, which must be read to its end before Wait.
func (c *Cmd) Output() (io.Reader, error) {
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", c.text, err)
	}
	return out, nil
}

// Input starts the command and returns its standard input; close it before Wait. What the command prints is treated as
// what it says on standard error.
func (c *Cmd) Input() (io.WriteCloser, error) {
	c.cmd.Stdout = c.tail
	in, err := c.cmd.StdinPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", c.text, err)
	}
	return in, nil
}

// Run starts the command and waits for its end. What it prints is treated as what it says on standard error.
func (c *Cmd) Run() error {
	c.cmd.Stdout = c.tail
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start %q: %w", c.text, err)
	}
	return c.Wait()
}

// Wait waits for the command's end. An error holds how it ended and the last that it said.
func (c *Cmd) Wait() error {
	err := c.cmd.Wait()
	if err == nil {
		return nil
	}
	if said := c.Said(); said != "" {
		return fmt.Errorf("command %q: %w; it said: %s", c.text, err, said)
	}
	return fmt.Errorf("command %q: %w", c.text, err)
}

// Said is the last that the command said on standard error.
func (c *Cmd) Said() string { return strings.ToValidUTF8(strings.TrimSpace(c.tail.String()), "�") }

// tail keeps the end of what is written.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > tailSize {
		p = p[len(p)-tailSize:]
	}
	if over := len(t.buf) + len(p) - tailSize; over > 0 {
		t.buf = t.buf[:copy(t.buf, t.buf[over:])]
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
