package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

// maxTaskKey bounds what is read as a key file, in bytes.
const maxTaskKey = 4096

// sealedSet returns the saveset that is named, or the newest one of a task.
func sealedSet(ctx context.Context, c *client.Client, args []string, task string) (string, error) {
	switch {
	case len(args) == 1 && task == "":
		return resolve(ctx, c, args[0])
	case len(args) == 0 && task != "":
		return resolve(ctx, c, latestPrefix+task)
	}
	return "", usagef("name one saveset, or its task by --task")
}

func (a *app) savesetUnsealCmd() *cobra.Command {
	var task, file string
	var d time.Duration
	cmd := &cobra.Command{
		Use: "unseal (ID | --task TASK) --key-file FILE", Short: "Give the key of an encrypted task, to read its savesets on the appliance for a time", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.savesetAndPath(),
		Long: `Give the appliance the key of an encrypted task, so that all savesets of that key can be listed,
downloaded and read below the mount. The appliance holds the key in memory only, for the time given or
until 'coffer saveset seal', and forgets it when it stops. To restore to a client that has the key
file, the appliance needs no key.

` + idHelp,
		Example: `  coffer saveset unseal --task hr1-staff --key-file hr1-staff.key
  coffer saveset unseal 6f1c2a90 --key-file - --for 30m < hr1-staff.key`,
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		if file == "" {
			return usagef("--key-file is missing: name the file that 'coffer-agent task-key new' made")
		}
		if d < time.Minute || d > 7*24*time.Hour {
			return usagef("--for %s: between a minute and 168h", d)
		}
		id, err := sealedSet(ctx, c, args, task)
		if err != nil {
			return err
		}
		key, err := a.readTaskKey(file)
		if err != nil {
			return err
		}
		u, err := c.UnsealSaveset(ctx, id, api.Unseal{Key: key, Minutes: int(d / time.Minute)})
		if err != nil {
			return err
		}
		return a.print(u, func(w io.Writer) {
			fmt.Fprintf(w, "Savesets sealed by the key %s can be read until %s. 'coffer saveset seal %s' ends that.\n", u.KeyID, a.clock(u.Until), id)
		})
	})
	cmd.Flags().StringVar(&task, "task", "", "the newest saveset of this task")
	cmd.Flags().StringVar(&file, "key-file", "", `file of the task key; "-" is standard input`)
	cmd.Flags().DurationVar(&d, "for", 8*time.Hour, "how long the appliance holds the key")
	flagComplete(cmd, "task", a.taskNames())
	return cmd
}

func (a *app) readTaskKey(file string) (string, error) {
	r := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read the task key: %w", err)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxTaskKey+1))
	if err != nil {
		return "", fmt.Errorf("read the task key: %w", err)
	}
	if len(b) == 0 || len(b) > maxTaskKey {
		return "", usagef("%s is no task key", file)
	}
	return string(b), nil
}

func (a *app) savesetSealCmd() *cobra.Command {
	var task string
	cmd := &cobra.Command{
		Use: "seal (ID | --task TASK)", Short: "Have the appliance forget the key of an encrypted task", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.savesetAndPath(),
		Long:              "Have the appliance forget the key that 'coffer saveset unseal' gave it.\n\n" + idHelp,
		Example:           "  coffer saveset seal --task hr1-staff",
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		id, err := sealedSet(ctx, c, args, task)
		if err != nil {
			return err
		}
		if err := c.SealSaveset(ctx, id); err != nil {
			return err
		}
		return a.print(map[string]string{"sealed": id}, func(w io.Writer) {
			fmt.Fprintln(w, "The appliance has forgotten the key.")
		})
	})
	cmd.Flags().StringVar(&task, "task", "", "the newest saveset of this task")
	flagComplete(cmd, "task", a.taskNames())
	return cmd
}
