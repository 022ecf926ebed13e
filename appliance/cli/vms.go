package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

// vmCmd groups what is done with virtual machines.
func (a *app) vmCmd() *cobra.Command {
	cmds := append([]*cobra.Command{a.vmListCmd(), a.group("tasks", "Tasks for all machines of a host", a.vmSyncCmd())}, a.guestCmds()...)
	return a.group("vm", "Virtual machines of KVM hosts", cmds...)
}

// hostFlag is the value of --host: the client whose agent reaches the libvirtd, and after = its URI.
func hostFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "host", "", "CLIENT[=URI]: client whose agent reaches the libvirtd, and its URI (default: the client's own, qemu:///system; required)")
	_ = cmd.MarkFlagRequired("host") // the flag exists
}

// splitHost reads it.
func splitHost(s string) (name, uri string) {
	name, uri, _ = strings.Cut(s, "=")
	return name, uri
}

func (a *app) vmListCmd() *cobra.Command {
	var host string
	cmd := &cobra.Command{
		Use: "list --host CLIENT[=URI]", Aliases: []string{"ls"}, Short: "List the machines of a host", Args: cobra.NoArgs,
		Long: `List the virtual machines that a libvirtd has, and the tasks that back them up.

--host names the client whose agent asks. On a KVM host with an agent that is all. A host without one is
reached from another client, the data mover, by ssh: --host CLIENT=qemu+ssh://USER@HOST/system. Its ssh
asks for nothing: a key and the host's entry in known_hosts must be there for the user that the agent is.`,
		Example: `  coffer vm list --host kvm1
  coffer vm list --host backup1=qemu+ssh://root@kvm2/system`,
	}
	hostFlag(cmd, &host)
	flagComplete(cmd, "host", a.clientNames())
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, _ []string) error {
		name, uri := splitHost(host)
		list, err := c.VMs(ctx, name, uri)
		if err != nil {
			return err
		}
		return a.print(list, func(w io.Writer) {
			if len(list.Items) == 0 {
				fmt.Fprintln(w, "The host has no machines.")
			} else {
				t := newTable("NAME", "STATE", "GUEST AGENT", ">MEMORY", "DISKS", "TASKS")
				for _, vm := range list.Items {
					t.add(vm.Name, vm.State, vm.GuestAgent, size(int64(vm.MemoryMiB)<<20), disksOf(vm), orText(strings.Join(vm.Tasks, " "), "-"))
				}
				t.write(w)
			}
			a.vmWarnings(list.Warnings)
		})
	})
	return cmd
}

// disksOf says what the disks of a machine are in few words.
func disksOf(vm api.VM) string {
	var out []string
	for _, d := range vm.Disks {
		switch {
		case d.Why != "":
			continue
		case d.Bytes > 0:
			out = append(out, fmt.Sprintf("%s %s %s", d.Target, d.Format, size(d.Bytes)))
		default:
			out = append(out, d.Target+" "+d.Format)
		}
	}
	return orText(strings.Join(out, ", "), "-")
}

func (a *app) vmWarnings(warnings []string) {
	for _, text := range warnings {
		fmt.Fprintf(a.Err, "warning: %s\n", safe(text))
	}
}

func (a *app) vmSyncCmd() *cobra.Command {
	var s api.VMSync
	var host string
	cmd := &cobra.Command{
		Use: "sync --host CLIENT[=URI]", Short: "Make tasks for all machines of a host, and keep them in step", Args: cobra.NoArgs,
		Long: `Make a task, and a client, for each virtual machine that a host has, and keep them in step; say it again
whenever machines came or went, from a timer, say.

A machine is known by its UUID. One that is new gets a client and a task of its name; one that was renamed,
or is on another host now, keeps its task and so its chain of savesets; the task of one that is gone is
removed, and its savesets live until their end of life. Tasks that were made by hand are left alone, and so
are machines that they back up. Machines that are not defined (transient ones) are left out. Where the host
does not tell all its machines, or none, no task is removed.`,
		Example: `  coffer vm tasks sync --host kvm1 --dry-run
  coffer vm tasks sync --host backup1=qemu+ssh://root@kvm2/system --exclude 'test-*'`,
	}
	hostFlag(cmd, &host)
	flagComplete(cmd, "host", a.clientNames())
	f := cmd.Flags()
	f.StringVar(&s.Pool, "pool", "", "media pool of new tasks (default: default)")
	f.StringVar(&s.Prefix, "prefix", "", "begins the names of new tasks")
	f.StringArrayVarP(&s.Include, "include", "i", nil, "only machines whose names match this pattern; may be repeated")
	f.StringArrayVarP(&s.Exclude, "exclude", "x", nil, "no machines whose names match this pattern; may be repeated")
	f.StringArrayVar(&s.ExcludeDisks, "exclude-disk", nil, "disk (vdb) that new tasks leave out; may be repeated")
	f.StringVar(&s.Quiesce, "quiesce", "", "of new tasks: auto, require or off")
	f.StringVar(&s.ScratchDir, "scratch-dir", "", "of new tasks: directory of the host for scratch files")
	f.BoolVar(&s.HostClient, "host-client", false, "make the tasks the host's own, and no client for each machine")
	f.BoolVar(&s.KeepGone, "keep-gone", false, "do not remove tasks of machines that are gone")
	f.BoolVar(&s.DryRun, "dry-run", false, "say what would be done")
	flagComplete(cmd, "pool", a.poolNames())
	flagValues(cmd, "quiesce", "auto", "require", "off")
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, _ []string) error {
		var name string
		name, s.URI = splitHost(host)
		report, err := c.SyncVMs(ctx, name, s)
		if err != nil {
			return err
		}
		return a.print(report, func(w io.Writer) {
			if len(report.Items) == 0 {
				fmt.Fprintln(w, "The host has no machines, and there are no tasks for any.")
			} else {
				t := newTable("ACTION", "MACHINE", "TASK", "CLIENT", "REASON")
				for _, it := range report.Items {
					t.add(string(it.Action), it.Domain, orText(it.Task, "-"), orText(it.Client, "-"), orText(it.Reason, "-"))
				}
				t.write(w)
			}
			if s.DryRun {
				fmt.Fprintln(w, "Nothing was changed (--dry-run).")
			}
			a.vmWarnings(report.Warnings)
		})
	})
	return cmd
}

// machineFlags are the flags of a task of type libvirt.
func machineFlags(cmd *cobra.Command, m *api.Machine, mover *string) {
	f := cmd.Flags()
	f.StringVar(&m.Domain, "domain", "", "virtual machine to back up")
	f.StringVar(&m.URI, "uri", "", "its libvirtd, as the agent reaches it (default: qemu:///system)")
	f.StringArrayVar(&m.ExcludeDisks, "exclude-disk", nil, "disk (vdb) of the machine to leave out; may be repeated")
	f.StringVar(&m.Quiesce, "quiesce", "", "freeze the guest when a backup begins: auto (where its agent answers), require or off")
	f.StringVar(&m.ScratchDir, "scratch-dir", "", "directory of the KVM host for scratch files (default: beside the disks)")
	f.StringVar(mover, "mover", "", "client whose agent reads for a client without an agent (data mover)")
	flagValues(cmd, "quiesce", "auto", "require", "off")
}

// machineOf returns the machine that the flags name; nil where none does.
func machineOf(m api.Machine) *api.Machine {
	if m.Domain == "" && m.URI == "" && len(m.ExcludeDisks) == 0 && m.Quiesce == "" && m.ScratchDir == "" {
		return nil
	}
	return &m
}

// machineText is a machine in few words.
func machineText(m *api.Machine) string {
	if m == nil {
		return ""
	}
	text := orText(m.Domain, m.UUID)
	if m.URI != "" {
		text += " at " + m.URI
	}
	return text
}
