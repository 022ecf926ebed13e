package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"coffer/api"
)

// Exit codes. Part of the command line's contract; 'coffer help exit-codes' shows them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitWarning     = 3
	exitRunFailed   = 4
	exitLogin       = 5
	exitInterrupted = 130
)

// Streams are what a command reads and writes, and its surroundings.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	// Env returns an environment variable. Nil means os.Getenv.
	Env func(string) string
	// Terminal says that a person sits there: questions may be asked on Err and answered on In, and progress bars drawn
	// on Err.
	Terminal bool
	// Zone is the time zone of the times that are shown. Nil means the local one.
	Zone *time.Location
	// Now tells the time that a session's end and ages are reckoned from. Nil means time.Now.
	Now func() time.Time
}

// Standard returns the process's own streams.
func Standard() Streams {
	return Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Zone: time.Local,
		Terminal: term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stderr.Fd()))}
}

// Run runs the command line args (without the program's name) and returns the exit code.
func Run(ctx context.Context, args []string, s Streams) int {
	a := &app{Streams: s}
	if a.Env == nil {
		a.Env = os.Getenv
	}
	if a.Zone == nil {
		a.Zone = time.Local
	}
	if a.Now == nil {
		a.Now = time.Now
	}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if err != nil && !a.started { // cobra refused the command line itself
		err = usageError{err}
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	return a.report(err)
}

// app is one execution of the command line.
type app struct {
	Streams
	json    bool
	started bool      // a command's own code has begun: errors are not about usage
	above   io.Writer // takes lines above the line that moves; nil: there was none
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

// Unwrap returns the error.
func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// codeError is an exit code whose message has been shown already.
type codeError int

// Error names the code.
func (c codeError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

var errInterrupted = errors.New("interrupted")

// report shows an error and returns its exit code.
func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	if code, ok := errors.AsType[codeError](err); ok {
		return int(code)
	}
	if errors.Is(err, errInterrupted) {
		fmt.Fprintln(a.Err, "coffer: interrupted")
		return exitInterrupted
	}
	e, ok := errors.AsType[*api.Error](err)
	if _, usage := errors.AsType[usageError](err); usage {
		e, ok = &api.Error{Code: api.CodeBadRequest, Message: err.Error(), Hint: "'coffer --help' and 'coffer COMMAND --help' explain the commands"}, true
		a.show(e)
		return exitUsage
	}
	if !ok {
		e = &api.Error{Code: api.CodeInternal, Message: err.Error()}
	}
	a.show(e)
	switch e.Code {
	case api.CodeNotLoggedIn, api.CodeUnauthenticated, api.CodeBadCredentials, api.CodePasswordChange:
		return exitLogin
	}
	return exitError
}

// show writes an error for people, or with --json for programs.
func (a *app) show(e *api.Error) {
	if a.json {
		_ = json.NewEncoder(a.Err).Encode(e) // nowhere to tell of a failure
		return
	}
	fmt.Fprintf(a.Err, "coffer: %s\n", safe(e.Message))
	for _, f := range e.Fields {
		fmt.Fprintf(a.Err, "  %s\n", safe(strings.TrimPrefix(f.String(), "body.")))
	}
	if e.Hint != "" {
		fmt.Fprintf(a.Err, "hint: %s\n", safe(e.Hint))
	}
}

// do makes a cobra RunE of a command's code.
func (a *app) do(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd.Context(), args)
	}
}

// group makes a command that has subcommands only.
func (a *app) group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		a.started = true
		if len(args) == 0 {
			return cmd.Help()
		}
		return usagef("coffer %s has no command %q", use, args[0])
	}}
	cmd.AddCommand(subs...)
	return cmd
}

// root makes the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "coffer", Short: "Command line of the Coffer backup appliance",
		Long: `coffer talks to a Coffer appliance over its REST API: it adds clients and tasks, starts backups and
restores, shows what was stored, and downloads files out of savesets.

Log in once; the session is kept in ~/.config/coffer (COFFER_CONFIG_DIR names another directory).
Scripts may do without: COFFER_SERVER, COFFER_FINGERPRINT and COFFER_TOKEN (an API token of
'coffer token add') take the place of a session.

Every command takes --json and then prints the API's JSON document: an object, or {"items": [...]}.`,
		Example: `  coffer login https://backup1:11401
  coffer client add web1
  coffer task add web1-etc --client web1 --source /etc --exclude '*.tmp'
  coffer backup web1-etc
  coffer saveset list --task web1-etc
  coffer saveset get latest:web1-etc /etc/fstab -o -
  coffer restore latest:web1-etc --to /tmp/r`,
		SilenceUsage: true, SilenceErrors: true, Version: api.Version,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				a.started = true
				return cmd.Help()
			}
			return usagef("coffer has no command %q", args[0])
		},
	}
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON, for programs")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(&cobra.Group{ID: "daily", Title: "Backup and restore:"}, &cobra.Group{ID: "setup", Title: "Set up:"},
		&cobra.Group{ID: "account", Title: "Login and users:"}, &cobra.Group{ID: "machine", Title: "The appliance:"})
	add := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add("daily", a.backupCmd(), a.restoreCmd(), a.runCmd(), a.savesetCmd(), a.exportCmd())
	add("setup", a.clientCmd(), a.taskCmd(), a.poolCmd(), a.vmCmd())
	add("account", a.loginCmd(), a.logoutCmd(), a.whoamiCmd(), a.passwdCmd(), a.userCmd(), a.tokenCmd())
	add("machine", a.storeCmd(), a.mountCmd(), a.auditCmd(), a.versionCmd())
	root.AddCommand(exitCodesTopic())
	return root
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: `Exit codes of coffer:

    0  done; a run or maintenance job that was waited for ended success
    1  an error: the message says which, and what to do
    2  the command line makes no sense
    3  a run that was waited for ended warning: there is a saveset, but read the run's log; or a
       maintenance job did: something is damaged
    4  a run or maintenance job that was waited for ended error or cancelled
    5  a login is needed, failed, or the password must be changed first
  130  interrupted; a run or job that was being watched goes on`}
}
