package cli

import (
	"context"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

func (a *app) restoreCmd() *cobra.Command {
	var r api.RestoreRequest
	var mode, command string
	var noWait bool
	cmd := &cobra.Command{
		Use: "restore ID [PATH...] [-- PROGRAM ARG...]", Short: "Restore a saveset, or parts of it, by a client's agent",
		Long: `Restore a saveset by the agent of a client, and follow it until it ends.

Without PATHs everything is restored. Without --to, files go to their original place; with --to, their
whole paths are made below that directory (--flat: files directly in it, without their paths). Files
that exist are kept, unless --mode says overwrite, or new-version: then the restored one gets a new
name. --verify compares with what is there and writes nothing.

A stream is restored into a file (--to), or into a command that runs on the client and
reads it on standard input: a line for its shell by --command, or a program after --.

` + idHelp + `
The exit code is 0 for success, 3 for warning, 4 for error or cancelled.`,
		Example: `  coffer restore latest:web1-etc --to /tmp/r
  coffer restore 6f1c2a90 /etc/ssl /etc/hosts --mode overwrite
  coffer restore latest:web1-etc --client web2 --to /srv/web1 --exclude '*.log'
  coffer restore latest:web1-etc --verify
  coffer restore latest:db1-shop -- pg_restore -d shop_test`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.savesetAndPath(),
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		program := []string(nil)
		if dash := cmd.ArgsLenAtDash(); dash >= 0 {
			args, program = args[:dash], args[dash:]
		}
		switch {
		case len(args) == 0:
			return usagef("which saveset? give its id before --")
		case len(program) > 0 && command != "":
			return usagef("give a command by --command or after --, not both")
		case command != "":
			program = shell(command)
		}
		var err error
		if r.Saveset, err = resolve(ctx, c, args[0]); err != nil {
			return err
		}
		r.Mode, r.Command = api.RestoreMode(mode), program
		r.Paths, r.RawPaths = splitPaths(args[1:])
		run, err := c.Restore(ctx, r)
		if err != nil {
			return err
		}
		return a.follow(ctx, c, run, noWait)
	})
	f := cmd.Flags()
	f.StringVarP(&r.Client, "client", "c", "", "client to restore to (default: the saveset's own)")
	f.StringVar(&r.To, "to", "", "directory on the client to restore below, or a stream's file (default: the original place)")
	f.StringVarP(&mode, "mode", "m", string(api.RestoreKeep), "files that exist: keep, overwrite or new-version")
	f.StringArrayVar(&r.Include, "include", nil, "only entries that match this pattern; may be repeated")
	f.StringArrayVarP(&r.Exclude, "exclude", "x", nil, "no entries that match this pattern; may be repeated")
	f.BoolVar(&r.Verify, "verify", false, "compare with what is there, write nothing")
	f.BoolVar(&r.Flat, "flat", false, "all files directly in the target directory")
	f.StringVar(&command, "command", "", "streams: shell line that reads the stream on standard input")
	f.BoolVar(&noWait, "no-wait", false, "return at once; 'coffer run watch' follows it")
	flagComplete(cmd, "client", a.clientNames())
	flagValues(cmd, "mode", "keep", "overwrite", "new-version")
	return cmd
}

// splitPaths sets paths that are not UTF-8 apart: JSON cannot carry them as text.
func splitPaths(paths []string) (text []string, raw [][]byte) {
	for _, p := range paths {
		if utf8.ValidString(p) {
			text = append(text, p)
		} else {
			raw = append(raw, []byte(p))
		}
	}
	return text, raw
}
