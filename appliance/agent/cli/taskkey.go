package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"coffer/appliance/agent"
)

func newTaskKey(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "task-key",
		Short: "Keys of encrypted tasks",
		Long: `Keys of encrypted tasks.

An encrypted task is sealed on this client, before anything leaves it, with a key
that the appliance does not have. Without the key nobody can read its savesets:
not the appliance, not whoever has its disks, and not you. KEEP A COPY of the key
file in a safe place away from this machine: when the machine is lost, the copy is
the only way back to the data.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Args: noArgs,
	}
	cmd.AddCommand(newTaskKeyNew(env), newTaskKeyShow(env))
	return cmd
}

func newTaskKeyNew(env Env) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "new --output FILE",
		Short: "Make the key of an encrypted task",
		Long: `Make the key of an encrypted task, in a file that only its owner can read. It
prints the key's id, by which the task names its key; the id is no secret.

The agent looks for the key of the task NAME in ` + agent.TaskKeyPath(agent.DefaultStateDir, "NAME") + `,
unless the task names another file.`,
		Example: `  coffer-agent task-key new --output ` + agent.TaskKeyPath(agent.DefaultStateDir, "web1-etc") + `
  coffer task add web1-etc --client web1 --source /etc --encrypt ID      # on the appliance`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if output == "" {
				return usageError{errors.New("--output is missing: name the key file")}
			}
			id, err := agent.NewTaskKey(output)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Err, "The key is in %s. KEEP A COPY OF IT AWAY FROM THIS MACHINE:\nwithout the key nobody, you included, can ever read what is backed up with it.\n", output)
			_, err = fmt.Fprintln(env.Out, id)
			return err
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "write the key to this `file`, which must not exist")
	return cmd
}

func newTaskKeyShow(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "id FILE",
		Short: "Print the id of the key in a file",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("name one key file")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := agent.TaskKeyID(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(env.Out, id)
			return err
		},
	}
}
