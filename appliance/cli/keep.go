package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

func (a *app) savesetDeleteCmd() *cobra.Command {
	var yes, force bool
	cmd := &cobra.Command{
		Use: "delete ID...", Aliases: []string{"rm"}, Short: "Delete savesets", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.savesetAndPath(),
		Long: `Delete savesets. Every saveset is whole: no other one is harmed. The space comes back with the next
garbage collection ('coffer store gc', or the daily maintenance).

A saveset that is locked, needed by a locked one, or immutable is not deleted. --force is needed for
one whose end of life has not come, and for the newest of a task that exists.

` + idHelp,
		Example: "  coffer saveset delete 6f1c2a90\n  coffer saveset delete 6f1c2a90 71d0b2c4 --force --yes\n  coffer store gc",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			for _, arg := range args {
				if err := a.deleteSaveset(ctx, c, arg, force, yes); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also before its end of life, and the newest of its task")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) deleteSaveset(ctx context.Context, c *client.Client, arg string, force, yes bool) error {
	s, err := a.find(ctx, c, arg)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("Delete saveset %s: task %s, %s of %s?", s.ID, s.Task, s.Level, a.clock(s.StartedAt))
	if err := a.sure(yes, what); err != nil {
		return err
	}
	if err := c.DeleteSaveset(ctx, s.ID, force); err != nil {
		return err
	}
	return a.removed("Saveset", s.ID, "its space comes back with the next garbage collection")
}

// find returns the saveset that the command line names.
func (a *app) find(ctx context.Context, c *client.Client, arg string) (api.Saveset, error) {
	id, err := resolve(ctx, c, arg)
	if err != nil {
		return api.Saveset{}, err
	}
	return c.Saveset(ctx, id)
}

// sure asks before something that cannot be taken back; a script says --yes.
func (a *app) sure(yes bool, question string) error {
	if yes {
		return nil
	}
	if !a.Terminal {
		return api.Errorf(api.CodeBadRequest, "this cannot be taken back, and there is no terminal to ask at").WithHint("give --yes")
	}
	ok, err := a.confirm(question)
	if err == nil && !ok {
		err = api.Errorf(api.CodeBadRequest, "nothing was done")
	}
	return err
}

func (a *app) savesetLockCmd(locked bool) *cobra.Command {
	cmd := &cobra.Command{
		Use: "lock ID", Short: "Keep a saveset, and those it needs, whatever their end of life", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.savesetAndPath(),
		Long: "Lock a saveset: neither purge nor people delete it, nor the savesets of its chain that it needs, until it is\n" +
			"unlocked.\n\n" + idHelp,
		Example: "  coffer saveset lock latest:web1-etc",
	}
	if !locked {
		cmd.Use, cmd.Short = "unlock ID", "Take a lock away"
		cmd.Long, cmd.Example = "Take a saveset's lock away. Its end of life counts again.\n\n"+idHelp, "  coffer saveset unlock 6f1c2a90"
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		id, err := resolve(ctx, c, args[0])
		if err != nil {
			return err
		}
		s, err := c.LockSaveset(ctx, id, locked)
		if err != nil {
			return err
		}
		return a.print(s, func(w io.Writer) {
			if locked {
				fmt.Fprintf(w, "Saveset %s is locked, with those it needs. 'coffer saveset unlock %s' takes that back.\n", s.ID, s.ID)
				return
			}
			fmt.Fprintf(w, "Saveset %s is not locked. It is kept until %s.\n", s.ID, a.clock(s.EOL))
		})
	})
	return cmd
}

func (a *app) savesetImmutableCmd() *cobra.Command {
	var until string
	var yes bool
	cmd := &cobra.Command{
		Use: "immutable ID --until TIME", Short: "Keep everybody from deleting a saveset until a time", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.savesetAndPath(),
		Long: `Make a saveset immutable: until that time nobody, the superuser included, deletes it or shortens its
end of life by any way through the product. The time can be moved further, never back.

It counts in the appliance's trusted time: moving the machine's clock does not shorten it. Who is root on
the appliance's machine can still destroy the disk; keep a second copy where that matters.

TIME is a date (2027-01-31, the end of that day), a time (2027-01-31T08:00:00Z) or days from now (90d).

` + idHelp,
		Example: "  coffer saveset immutable latest:db1-shop --until 90d\n  coffer saveset immutable 6f1c2a90 --until 2027-01-31 --yes",
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		at, err := a.parseUntil(until, a.Now())
		if err != nil {
			return err
		}
		s, err := a.find(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.sure(yes, fmt.Sprintf("Make saveset %s immutable until %s? Nobody can take that back.", s.ID, a.clock(at))); err != nil {
			return err
		}
		if s, err = c.MakeImmutable(ctx, s.ID, at); err != nil {
			return err
		}
		return a.print(s, func(w io.Writer) { fmt.Fprintf(w, "Saveset %s is immutable until %s.\n", s.ID, a.clock(at)) })
	})
	cmd.Flags().StringVar(&until, "until", "", "date, time, or days from now like 90d (required)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	_ = cmd.MarkFlagRequired("until") // it is there
	return cmd
}

// parseUntil reads a date, meaning the end of that day, a time, or a number of days from now.
func (a *app) parseUntil(text string, now time.Time) (time.Time, error) {
	if n, err := strconv.Atoi(strings.TrimSuffix(text, "d")); err == nil && strings.HasSuffix(text, "d") && n > 0 {
		return now.AddDate(0, 0, n), nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, a.Zone); err == nil {
		return t.AddDate(0, 0, 1).Add(-time.Second), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, usagef("--until %q is neither a date (2027-01-31), a time (2027-01-31T08:00:00Z) nor days from now (90d)", text)
}

// keptText words the reasons for which a saveset is kept.
func (a *app) keptText(kept []api.KeptReason) string {
	if len(kept) == 0 {
		return "its end of life has passed: the next purge deletes it"
	}
	var out []string
	for _, r := range kept {
		switch r.Cause {
		case api.KeptEOL:
			text := "its end of life is " + a.clockOr(r.Until, "not set")
			if r.By != "" {
				text += ", by " + r.By
			}
			out = append(out, text)
		case api.KeptLocked:
			out = append(out, "it is locked")
		case api.KeptNeeded:
			out = append(out, "saveset "+r.By+", which is locked, needs it")
		case api.KeptExported:
			out = append(out, "export "+r.By+" needs it")
		case api.KeptImmutable:
			out = append(out, "it is immutable until "+a.clockOr(r.Until, "ever"))
		case api.KeptNewest:
			out = append(out, "it is the newest that its task can be restored from")
		default:
			out = append(out, string(r.Cause))
		}
	}
	return strings.Join(out, "; ")
}
