package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

func (a *app) exportCmd() *cobra.Command {
	cmd := a.group("export", "Disks of savesets as block devices over NBD",
		a.exportAddCmd(), a.exportListCmd(), a.exportShowCmd(), a.exportDropCmd(), a.exportCommitCmd())
	cmd.Long = `Serve a disk of a saveset as a block device over NBD, the protocol that qemu, libvirt, nbd-client and
others speak: read only, or with an overlay that keeps what is written beside the saveset. The saveset
itself is never changed. Exports and overlays stay until they are dropped, over restarts, too, and
nobody deletes a saveset that has an export.

The appliance serves exports on a unix socket and on a loopback port; on other addresses ([nbd] in its
configuration) only with TLS, and only to the clients that an export names, who show the certificate
that their agent has.`
	cmd.Example = `  coffer export add latest:vm-web1                    # read only; prints the URI
  nbdinfo 'nbd+unix:///SAVESET/vda.raw?socket=/var/lib/coffer/run/nbd.sock'
  qemu-img convert -f raw 'nbd:localhost:10809:exportname=SAVESET/vda.raw' -O qcow2 web1.qcow2
  coffer export add latest:vm-web1 --overlay          # takes writes; its name is its id
  qemu-system-x86_64 -m 2048 -drive file=nbd:localhost:10809:exportname=ID,format=raw,if=virtio
  coffer export commit ID && coffer export drop ID    # keep what was written as a new saveset`
	return cmd
}

func (a *app) exportAddCmd() *cobra.Command {
	var s api.ExportSpec
	var limit byteSize
	cmd := &cobra.Command{
		Use: "add ID [DISK]", Short: "Serve a disk of a saveset", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: a.savesetAndPath(),
		Long: `Serve a file of a saveset as a block device over NBD. DISK is its path in the saveset; without it,
the only disk image. With --overlay the export takes writes.

Users on the appliance itself see every export; clients see those that name them with --client.

` + idHelp,
		Example: `  coffer export add latest:vm-web1
  coffer export add 6f1c2a90 vdb.raw --overlay --limit 20GiB --client kvm1
  coffer export add latest:kvm1-images /var/lib/images/web1.raw`,
	}
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) (err error) {
		if s.Saveset, err = resolve(ctx, c, args[0]); err != nil {
			return err
		}
		if len(args) == 2 {
			s.Disk = args[1]
		}
		s.BytesLimit = int64(limit)
		e, err := c.AddExport(ctx, s)
		if err != nil {
			return err
		}
		return a.print(e, func(w io.Writer) {
			fmt.Fprintf(w, "Export %s serves %s, %s", e.ID, safe(e.Disk), size(e.Bytes))
			if e.Overlay != nil {
				fmt.Fprintf(w, ", with an overlay for up to %s", size(e.Overlay.BytesLimit))
			}
			fmt.Fprintf(w, ":\n")
			for _, u := range e.URIs {
				fmt.Fprintf(w, "  %s\n", safe(u))
			}
			fmt.Fprintf(w, "It stays until 'coffer export drop %s'.\n", e.ID)
		})
	})
	f := cmd.Flags()
	f.BoolVar(&s.Overlay, "overlay", false, "take writes, and keep them beside the saveset")
	f.Var(&limit, "limit", "with --overlay: how much data it may hold, like 20GiB (default: the disk's size)")
	f.StringArrayVarP(&s.Clients, "client", "c", nil, "client that may see it; may be repeated; * for everybody")
	f.StringVar(&s.Purpose, "purpose", "", "what it is for, for people")
	flagComplete(cmd, "client", a.clientNames())
	return cmd
}

func (a *app) exportListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List exports", Args: cobra.NoArgs,
		Long: "List exports, the oldest first. WRITTEN is what their overlays hold, CONNS how many connections are open.",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			items, err := c.Exports(ctx)
			if err != nil {
				return err
			}
			return printList(a, items, "There are no exports.", newTable("ID", "SAVESET", "TASK", "DISK", ">SIZE", ">WRITTEN", "STATE", ">CONNS", "CLIENTS", "SINCE"),
				func(e api.Export) []string {
					written := "read only"
					if e.Overlay != nil {
						written = size(e.Overlay.BytesData)
					}
					return []string{e.ID, short(e.Saveset), e.Task, e.Disk, size(e.Bytes), written, string(e.State), strconv.Itoa(e.Connections),
						orText(strings.Join(e.Clients, " "), "-"), a.clock(e.Created)}
				})
		}),
	}
}

func (a *app) exportShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show an export", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.exportIDs(false)),
		Long: "Show an export: where it is served, what its overlay holds, who uses it.",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			e, err := c.Export(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(e, func(w io.Writer) { a.showExport(w, e) })
		}),
	}
}

func (a *app) showExport(w io.Writer, e api.Export) {
	state := string(e.State)
	if e.Problem != "" {
		state += ": " + e.Problem
	}
	overlay, zeroed := "none: it is read only", ""
	if o := e.Overlay; o != nil {
		overlay = fmt.Sprintf("%s of data, at most %s; map %s", size(o.BytesData), size(o.BytesLimit), size(o.BytesMap))
		if o.BytesZero > 0 {
			zeroed = size(o.BytesZero)
		}
	}
	fields(w, "Export", e.ID, "State", state, "Saveset", e.Saveset, "Client", e.Client, "Task", e.Task, "Disk", e.Disk, "Size", size(e.Bytes),
		"Overlay", overlay, "Zeroed", zeroed, "Clients", orText(strings.Join(e.Clients, " "), "none but the appliance itself"), "Purpose", e.Purpose,
		"Since", a.clock(e.Created), "Made by", e.By, "Connections", strconv.Itoa(e.Connections),
		"Read", size(e.BytesRead), "Written", size(e.BytesWritten))
	if e.Overlay != nil && e.Overlay.Unclean {
		fmt.Fprintln(w, "The machine lost power while it was written: what was not flushed may be lost. Check the disk's file systems before it is used.")
	}
	for _, u := range e.URIs {
		fmt.Fprintf(w, "  %s\n", safe(u))
	}
}

func (a *app) exportDropCmd() *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use: "drop ID...", Short: "End exports, and remove what was written to them", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.exportIDs(false),
		Long: `End exports. What was written to their overlays is removed; 'coffer export commit' keeps it.
While connections are open, --force is needed: it cuts them off from the disk.`,
		Example: "  coffer export drop 3f0c5be2a1d4\n  coffer export drop 3f0c5be2a1d4 --force --yes",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			for _, id := range args {
				if err := a.dropExport(ctx, c, id, force, yes); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also with open connections, which are cut off")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// dropExport asks where something is lost.
func (a *app) dropExport(ctx context.Context, c *client.Client, id string, force, yes bool) error {
	e, err := c.Export(ctx, id)
	if err != nil {
		return err
	}
	if e.Overlay != nil && e.Overlay.BytesData+e.Overlay.BytesZero > 0 {
		if err := a.sure(yes, fmt.Sprintf("Drop export %s, with %s that were written to it?", e.ID, size(e.Overlay.BytesData))); err != nil {
			return err
		}
	}
	if err := c.DropExport(ctx, e.ID, force); err != nil {
		return err
	}
	return a.removed("Export", e.ID, "saveset "+short(e.Saveset)+" is as it was")
}

func (a *app) exportCommitCmd() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "commit ID", Short: "Make a saveset of what was written", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.exportIDs(true)),
		Long: `Make a new saveset, of level COPY and of the same client and task: that of the export, with what was
written in place of its disk. Only what was written is read and stored. The export stays, with its
overlay over the old saveset, until it is dropped. It must have no open connections; shut the machine
that uses it down first.

The exit code is 0 for success, 3 for warning, 4 for error or cancelled.`,
		Example: "  coffer export commit 3f0c5be2a1d4",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			run, err := c.CommitExport(ctx, args[0])
			if err != nil {
				return err
			}
			return a.follow(ctx, c, run, noWait)
		}),
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return at once; 'coffer run watch' follows it")
	return cmd
}

// exportIDs completes ids of exports, or of those with an overlay.
func (a *app) exportIDs(overlay bool) completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		items, _ := c.Exports(ctx)
		for _, e := range items {
			if overlay && e.Overlay == nil {
				continue
			}
			out = append(out, e.ID+"\t"+e.Task+" "+e.Disk)
		}
		return out
	})
}
