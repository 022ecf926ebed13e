// Package cli is the command line of coffer-agent: flags, the ways a token comes in, and the wiring of logs. All work is
// done by the package agent.
package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"coffer/appliance/agent"
)

// TokenVariable is the environment variable that may hold an enrolment token.
const TokenVariable = "COFFER_TOKEN"

// maxToken bounds what is read as a token, in bytes.
const maxToken = 4 << 10

// Env is what the command line has around it.
type Env struct {
	In       *os.File
	Out, Err io.Writer
	Getenv   func(string) string
	Version  string
}

// Run executes a command line and returns the exit code: 0 for success, 1 for failure, 2 for wrong usage.
func Run(ctx context.Context, args []string, env Env) int {
	root := newRoot(env)
	root.SetArgs(args)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(env.Err, "coffer-agent:", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(env.Err, "Try: coffer-agent --help")
		return 2
	}
	return 1
}

// usageError marks a wrong command line.
type usageError struct{ error }

func newRoot(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "coffer-agent",
		Short: "The agent of the Coffer backup appliance: reads and writes this machine's data",
		Long: `The agent of the Coffer backup appliance.

It connects to the appliance, never the other way round, and takes backup and
restore orders over that connection. Run it as root, so that it can read every
file and give it back its owner.`,
		Example: `  coffer client add web1                          # on the appliance: prints a token
  coffer-agent enrol --server backup1:11301       # here: asks for the token
  coffer-agent run                                # or: systemctl enable --now coffer-agent`,
		SilenceUsage: true, SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	var state string
	root.PersistentFlags().StringVar(&state, "state", agent.DefaultStateDir, "`directory` that holds key, certificate and the appliance's address")
	root.AddCommand(newEnrol(env, &state), newRun(env, &state), newTaskKey(env), newVersion(env))
	return root
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

func newEnrol(env Env, state *string) *cobra.Command {
	var opts agent.EnrolOptions
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "enrol --server HOST[:PORT]",
		Short: "Exchange an enrolment token for this client's certificate",
		Long: `Exchange an enrolment token for this client's certificate.

The token comes from "coffer client add NAME" on the appliance; it can be used
once, within an hour, and holds the fingerprint of the appliance's authority, so
that no other server can take its place. It is asked for on the terminal, or read
from --token-file or the variable COFFER_TOKEN; it is never an argument, since
arguments are seen by every user of the machine.`,
		Example: `  coffer-agent enrol --server backup1                      # asks for the token
  coffer-agent enrol --server backup1:11301 --token-file /root/token
  ssh appliance coffer client add web1 --json | jq -r .token | coffer-agent enrol --server backup1 --token-file -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Server == "" {
				return usageError{errors.New("--server is missing: name the appliance")}
			}
			token, err := readToken(env, tokenFile, opts.Server)
			if err != nil {
				return err
			}
			opts.StateDir, opts.Token = *state, token
			client, err := agent.Enrol(cmd.Context(), opts)
			if errors.Is(err, agent.ErrEnrolled) {
				return fmt.Errorf("%w; --force replaces that", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Out, "Enrolled as %s. Next: coffer-agent run, or systemctl enable --now coffer-agent\n", client)
			return nil
		},
	}
	cmd.Flags().StringVar(&opts.Server, "server", "", "the appliance's `host[:port]`; the port is 11301 if none is given")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "read the token from this `file`; - reads it from standard input")
	cmd.Flags().BoolVar(&opts.Force, "force", false, "replace the identity that this machine has already")
	return cmd
}

// readToken takes the token from where it is given.
func readToken(env Env, file, server string) (string, error) {
	switch {
	case file == "-":
		return readLine(env.In)
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		defer f.Close()
		return readLine(f)
	case env.Getenv(TokenVariable) != "":
		return env.Getenv(TokenVariable), nil
	case !term.IsTerminal(int(env.In.Fd())):
		return "", usageError{fmt.Errorf("no token: there is no terminal to ask on; use --token-file or %s", TokenVariable)}
	}
	fmt.Fprintf(env.Err, "Enrolment token for %s: ", server)
	token, err := term.ReadPassword(int(env.In.Fd()))
	fmt.Fprintln(env.Err)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	return string(token), nil
}

func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxToken)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read token: %w", err)
	}
	return strings.TrimSpace(line), nil
}

func newRun(env Env, state *string) *cobra.Command {
	var cfg agent.Config
	var verbose bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Connect to the appliance and serve its orders until stopped",
		Long: `Connect to the appliance and serve its orders until stopped.

A lost connection is made again, with growing pauses; runs go on where they were
for 15 minutes. SIGTERM ends runs in work as cancelled. The log goes to standard
error.`,
		Example: `  coffer-agent run
  coffer-agent run --state /srv/coffer-agent --verbose`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			cfg.StateDir, cfg.Version = *state, env.Version
			cfg.Logger = slog.New(slog.NewTextHandler(env.Err, &slog.HandlerOptions{Level: level}))
			return agent.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&cfg.Server, "server", "", "connect to this `host[:port]` instead of the one enrolled with")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "log every notice about single files")
	return cmd
}

func newVersion(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(env.Out, "coffer-agent", env.Version)
			return err
		},
	}
}
