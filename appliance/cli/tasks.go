package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

func (a *app) taskCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tasks", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			tasks, err := c.Tasks(ctx)
			if err != nil {
				return err
			}
			return printList(a, tasks, "There are no tasks; 'coffer task add' makes one.",
				newTable("NAME", "CLIENT", "TYPE", "POOL", "SOURCE"), func(t api.Task) []string {
					return []string{t.Name, t.Client, string(t.Type), t.Pool, sourceOf(t)}
				})
		}),
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show a task", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.taskNames()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Task(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(t, func(w io.Writer) {
				fields(w, "task", t.Name, "client", t.Client, "type", string(t.Type), "sources", words(t.Sources), "excludes", words(t.Excludes),
					"disk images", words(t.Images), "one file system", yes(t.OneFileSystem), "command", words(t.Command), "stream name", t.StreamName,
					"machine", machineText(t.Machine), "data mover", t.Mover,
					"before", words(t.PreCommand), "after", words(t.PostCommand), "encrypted with key", keyOf(t), "key file on the client", keyFileOf(t),
					"pool", t.Pool, "made", a.clock(t.CreatedAt))
			})
		}),
	}
	remove := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a task; its savesets stay", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.taskNames()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RemoveTask(ctx, args[0]); err != nil {
				return err
			}
			return a.removed("Task", args[0], "its savesets stay")
		}),
	}
	return a.group("task", "What is backed up", a.taskAddCmd(), list, show, remove)
}

func (a *app) taskAddCmd() *cobra.Command {
	var s api.TaskSpec
	var command, pre, post string
	var kind, encrypt, keyFile string
	var machine api.Machine
	cmd := &cobra.Command{
		Use: "add NAME --client CLIENT (--source PATH... | --command LINE | -- PROGRAM ARG... | --domain DOMAIN)", Short: "Make a task",
		Long: `Make a task: what is backed up on which client.

A task of type path has one or more sources, which must exist on the client, and patterns of what to
leave out: like lines of a .gitignore, relative to each source; one that begins with / is anchored
there, ** spans directories, a / at the end means directories only, ! takes something in again.

A task of type stream stores the output of a command that runs on the client: a database dump, say.
Give it as one line for the client's shell by --command, or as a program with its arguments after --.
A command that fails makes the run fail, and no saveset.

A task of type libvirt backs a virtual machine of a KVM host up, with its disks and its definition: --domain
names it, and --uri its libvirtd where that is not the client's own. --client is whose the machine's data is;
where that client has no agent, --mover names the one whose agent reads. 'coffer vm tasks sync' makes such
tasks for all machines of a host.

An encrypted task (--encrypt) is sealed on the client, with a key that the appliance does not have, and
shares no data with other tasks. Make its key on the client with 'coffer-agent task-key new', KEEP A
COPY OF IT ELSEWHERE, and give its id here. Without the key nobody can read or restore its savesets.`,
		Example: `  coffer task add web1-etc --client web1 --source /etc --exclude '*.tmp'
  coffer task add web1-all --client web1 --source / --one-file-system --exclude /var/cache
  coffer task add db1-shop --client db1 --stream-name shop.dump -- pg_dump -Fc shop
  coffer task add db1-all --client db1 --command 'pg_dumpall | gzip --rsyncable'
  coffer task add shop --client kvm1 --type libvirt --domain shop --exclude-disk vdb
  coffer task add hr1-staff --client hr1 --source /srv/staff --encrypt 5d41402abc4b2a76b9719d911017c592`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		s.Name, s.Type = args[0], api.TaskType(kind)
		var err error
		if s.Command, err = commandOf(cmd, args, command); err != nil {
			return err
		}
		if s.Type == "" {
			s.Type = api.TaskPath
			if len(s.Command) > 0 {
				s.Type = api.TaskStream
			}
			if machine.Domain != "" {
				s.Type = api.TaskLibvirt
			}
		}
		s.Machine = machineOf(machine)
		s.PreCommand, s.PostCommand = shell(pre), shell(post)
		if keyFile != "" && encrypt == "" {
			return usagef("--key-file is of an encrypted task: give the key's id by --encrypt")
		}
		if encrypt != "" {
			s.Encryption = &api.TaskEncryption{KeyID: encrypt, KeyFile: keyFile}
		}
		t, err := c.AddTask(ctx, s)
		if err != nil {
			return err
		}
		return a.print(t, func(w io.Writer) {
			fmt.Fprintf(w, "Task %s backs up %s of %s into pool %s. Start it with 'coffer backup %s'.\n", t.Name, safe(sourceOf(t)), t.Client, t.Pool, t.Name)
			if t.Encryption != nil {
				fmt.Fprintf(w, "It is encrypted with the key %s. KEEP A COPY OF THE KEY FILE AWAY FROM %s:\nwithout it nobody, you included, can ever read or restore what is backed up.\n", t.Encryption.KeyID, t.Client)
			}
		})
	})
	f := cmd.Flags()
	f.StringVarP(&s.Client, "client", "c", "", "client whose data it is (required)")
	f.StringArrayVarP(&s.Sources, "source", "s", nil, "absolute path to back up; may be repeated")
	f.StringArrayVarP(&s.Excludes, "exclude", "x", nil, "pattern of what to leave out; may be repeated")
	f.StringArrayVar(&s.Images, "image", nil, "pattern of files to store as disk images (raw, qcow2); may be repeated")
	f.BoolVar(&s.OneFileSystem, "one-file-system", false, "do not cross into other file systems")
	machineFlags(cmd, &machine, &s.Mover)
	f.StringVar(&kind, "type", "", "path, stream or libvirt (default: by what is given)")
	f.StringVar(&command, "command", "", "shell line whose output is stored")
	f.StringVar(&s.StreamName, "stream-name", "", "name of the one file in a stream's saveset (default: the task's name)")
	f.StringVar(&pre, "pre", "", "shell line run on the client before the backup; failing, it fails the run")
	f.StringVar(&post, "post", "", "shell line run on the client after the backup")
	f.StringVar(&s.Pool, "pool", "", "media pool of its savesets (default: default)")
	f.StringVar(&encrypt, "encrypt", "", "id of the task key that the client seals everything with")
	f.StringVar(&keyFile, "key-file", "", "where that key lies on the client (default: the agent's place for the task's name)")
	_ = cmd.MarkFlagRequired("client") // the flag exists
	flagComplete(cmd, "client", a.clientNames())
	flagComplete(cmd, "pool", a.poolNames())
	flagValues(cmd, "type", "path", "stream", "libvirt")
	return cmd
}

// commandOf returns the program that was given after --, or the shell line; nil when neither was.
func commandOf(cmd *cobra.Command, args []string, line string) ([]string, error) {
	dash := cmd.ArgsLenAtDash()
	switch {
	case dash < 0 && len(args) > 1:
		return nil, usagef("%q: one name is enough; a command's arguments come after --", args[1])
	case dash == 0 || dash > 1:
		return nil, usagef("give one name before --")
	case dash == 1 && line != "":
		return nil, usagef("give a command by --command or after --, not both")
	case dash == 1:
		return args[1:], nil
	}
	return shell(line), nil
}

// shell makes a command of a line for the client's shell.
func shell(line string) []string {
	if line == "" {
		return nil
	}
	return []string{"/bin/sh", "-c", line}
}

func keyOf(t api.Task) string {
	if t.Encryption == nil {
		return ""
	}
	return t.Encryption.KeyID
}

func keyFileOf(t api.Task) string {
	if t.Encryption == nil {
		return ""
	}
	return t.Encryption.KeyFile
}

func sourceOf(t api.Task) string {
	switch t.Type {
	case api.TaskStream:
		return words(t.Command)
	case api.TaskLibvirt:
		return machineText(t.Machine)
	}
	return words(t.Sources)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// removed tells of a removal.
func (a *app) removed(what, name, more string) error {
	return a.print(map[string]string{"removed": name}, func(w io.Writer) {
		if more != "" {
			more = "; " + more
		}
		fmt.Fprintf(w, "%s %s is removed%s.\n", what, name, more)
	})
}

func (a *app) poolCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List media pools", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			pools, err := c.Pools(ctx)
			if err != nil {
				return err
			}
			return printList(a, pools, "There are no pools.", newTable("NAME", ">RETENTION", ">SAVESETS", ">SIZE", ">STORED"), func(p api.Pool) []string {
				return []string{p.Name, strconv.Itoa(p.RetentionDays) + " days", count(p.Savesets), size(p.Bytes), size(p.Stored)}
			})
		}),
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show a media pool", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.poolNames()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			p, err := c.Pool(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(p, func(w io.Writer) {
				fields(w, "pool", p.Name, "retention", strconv.Itoa(p.RetentionDays)+" days", "savesets", count(p.Savesets), "size", size(p.Bytes),
					"stored", size(p.Stored), "made", a.clock(p.CreatedAt))
			})
		}),
	}
	return a.group("pool", "Media pools: where backups go and how long they are kept", list, show)
}
