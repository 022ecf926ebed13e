package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

const (
	// guestEvery is how often a guest that is booted, moved or restored is asked for.
	guestEvery = 500 * time.Millisecond

	guestHelp = `MACHINE is the id of a machine that 'coffer vm booted' lists, or its name where only one has it.`
)

// guestCmds are the commands of machines that run from savesets, and of those that are restored from them.
func (a *app) guestCmds() []*cobra.Command {
	return []*cobra.Command{a.vmBootCmd(), a.vmBootedCmd(), a.vmShowCmd(), a.vmMoveCmd(), a.vmResetCmd(), a.vmDropCmd(), a.vmRestoreCmd()}
}

// networkFlag reads --network: a name, or none.
func networkFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "network", "", "libvirt network for all its interfaces, or none (default: as saved)")
}

func network(s string) (name string, none bool) {
	if s == "none" {
		return "", true
	}
	return s, false
}

func (a *app) vmBootCmd() *cobra.Command {
	var b api.GuestBoot
	var host, net string
	var noWait bool
	cmd := &cobra.Command{
		Use: "boot ID --host CLIENT[=URI]", Short: "Start a machine on the disks of a saveset, at once", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.savesetAndPath()),
		Long: `Start a virtual machine on the disks of a saveset, without restoring them first. The host reads what the
guest asks for from the appliance, over the agent's connection, encrypted; what the guest writes is kept on
the appliance beside the saveset, which is never changed. Neither needs the host anything but its agent.

The machine is transient: it is gone from the host when it is shut down. What it wrote stays until
'coffer vm drop': boot it again with 'coffer vm reset', or keep it as a saveset with 'coffer export commit'.
'coffer vm move' makes it the host's own, while it runs. A restart of the appliance is only slow I/O for the
guest.

With the saved name and identity it can run beside the original on another host only: give it --name and
--new-identity otherwise, and --network none where two of it would disturb each other.

` + idHelp,
		Example: `  coffer vm boot latest:shop --host kvm1
  coffer vm boot 6f1c2a90 --host kvm2 --name shop-test --new-identity --network none`,
	}
	hostFlag(cmd, &host)
	networkFlag(cmd, &net)
	f := cmd.Flags()
	f.StringVar(&b.Name, "name", "", "name of the new machine (default: as saved)")
	f.BoolVar(&b.NewIdentity, "new-identity", false, "give it another UUID and other MAC addresses")
	f.BoolVar(&b.Paused, "paused", false, "start it, and have it wait for 'virsh resume'")
	f.BoolVar(&noWait, "no-wait", false, "return at once; 'coffer vm show' tells whether it runs")
	flagComplete(cmd, "host", a.clientNames())
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) (err error) {
		if b.Saveset, err = resolve(ctx, c, args[0]); err != nil {
			return err
		}
		b.Host, b.URI = splitHost(host)
		b.Network, b.NoNetwork = network(net)
		g, err := c.BootGuest(ctx, b)
		if err != nil {
			return err
		}
		return a.followGuest(ctx, c, g, noWait)
	})
	return cmd
}

func (a *app) vmRestoreCmd() *cobra.Command {
	var r api.GuestRestore
	var host, net string
	var noWait bool
	cmd := &cobra.Command{
		Use: "restore ID --host CLIENT[=URI] --pool POOL", Short: "Restore a machine into a storage pool of a host", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.savesetAndPath()),
		Long: `Restore a virtual machine: its disks as images in a storage pool of the host, and its definition.

A machine of its name or identity that the host has is in the way, unless --overwrite says that the restored
one takes its place: the old one goes when the new one is complete, and its images stay. What fails leaves
nothing on the host.

` + idHelp,
		Example: `  coffer vm restore latest:shop --host kvm1 --pool default --overwrite --start
  coffer vm restore 6f1c2a90 --host kvm2 --pool ssd --name shop-2 --new-identity`,
	}
	hostFlag(cmd, &host)
	networkFlag(cmd, &net)
	f := cmd.Flags()
	f.StringVar(&r.Pool, "pool", "", "storage pool of the host (required)")
	_ = cmd.MarkFlagRequired("pool") // the flag exists
	f.StringVar(&r.Format, "format", "", "of the images: qcow2 (default) or raw")
	f.StringVar(&r.Name, "name", "", "name of the new machine (default: as saved)")
	f.BoolVar(&r.NewIdentity, "new-identity", false, "give it another UUID and other MAC addresses")
	f.BoolVar(&r.Start, "start", false, "start it when it is complete")
	f.BoolVar(&r.Overwrite, "overwrite", false, "let it take the place of a machine of its name or identity")
	f.BoolVar(&noWait, "no-wait", false, "return at once; 'coffer vm show' tells how far it is")
	flagComplete(cmd, "host", a.clientNames())
	flagValues(cmd, "format", "qcow2", "raw")
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) (err error) {
		if r.Saveset, err = resolve(ctx, c, args[0]); err != nil {
			return err
		}
		r.Host, r.URI = splitHost(host)
		r.Network, r.NoNetwork = network(net)
		g, err := c.RestoreGuest(ctx, r)
		if err != nil {
			return err
		}
		return a.followGuest(ctx, c, g, noWait)
	})
	return cmd
}

func (a *app) vmBootedCmd() *cobra.Command {
	return &cobra.Command{
		Use: "booted", Short: "List machines that run from savesets, or are being restored", Args: cobra.NoArgs,
		Long: "List machines that run from savesets, or are being restored, the oldest first.",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			items, err := c.Guests(ctx)
			if err != nil {
				return err
			}
			return printList(a, items, "No machine runs from a saveset.", newTable("ID", "NAME", "STATE", "HOST", "SAVESET", "TASK", "SINCE", "PROBLEM"),
				func(g api.Guest) []string {
					return []string{g.ID, g.Name, stateText(g), hostText(g), short(g.Saveset), g.Task, a.clock(g.Created), orText(g.Problem, "-")}
				})
		}),
	}
}

func hostText(g api.Guest) string {
	if g.URI == "" {
		return g.Host
	}
	return g.Host + "=" + g.URI
}

// stateText is what a guest does, and how far it is.
func stateText(g api.Guest) string {
	switch p := g.Progress; {
	case p != nil && p.BytesTotal > 0:
		return fmt.Sprintf("%s (%d %%)", g.State, min(100, 100*p.Bytes/p.BytesTotal))
	case g.State == api.GuestRunning && g.HostState != "" && g.HostState != "running":
		return string(g.State) + " (" + g.HostState + ")"
	}
	return string(g.State)
}

func (a *app) vmShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show MACHINE", Short: "Show a machine that runs from a saveset, or is being restored", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.guestIDs()),
		Long: "Show a machine that runs from a saveset, or is being restored.\n\n" + guestHelp,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			g, err := c.Guest(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(g, func(w io.Writer) { a.showGuest(w, g) })
		}),
	}
}

func (a *app) showGuest(w io.Writer, g api.Guest) {
	var disks []string
	for _, d := range g.Disks {
		disks = append(disks, fmt.Sprintf("%s %s, export %s", d.Target, size(d.Bytes), d.Export))
	}
	fields(w, "Machine", g.ID, "Name", safe(g.Name), "State", stateText(g), "Problem", safe(g.Problem), "Host", safe(hostText(g)), "UUID", g.UUID,
		"Saveset", g.Saveset, "Client", g.Client, "Task", g.Task, "Disks", strings.Join(disks, "; "), "Pool", safe(g.Pool), "Since", a.clock(g.Created), "Asked by", g.By)
	for _, text := range g.Warnings {
		fmt.Fprintf(w, "It has lost: %s\n", safe(text))
	}
}

func (a *app) vmMoveCmd() *cobra.Command {
	var m api.GuestMove
	var noWait bool
	cmd := &cobra.Command{
		Use: "move MACHINE --pool POOL", Short: "Copy a machine's disks to storage of its host, while it runs", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.guestIDs()),
		Long: `Copy the disks of a machine that runs from a saveset into a storage pool of its host, while it runs, and
have it use them from then on. Then it is the host's own: defined there, and the exports and overlays are
gone. What fails leaves the machine running from the saveset as before.

` + guestHelp,
		Example: "  coffer vm move shop --pool default\n  coffer vm move 3f0c5be2a1d4 --pool ssd --format raw",
	}
	f := cmd.Flags()
	f.StringVar(&m.Pool, "pool", "", "storage pool of the host (required)")
	_ = cmd.MarkFlagRequired("pool") // the flag exists
	f.StringVar(&m.Format, "format", "", "of the images: qcow2 (default) or raw")
	f.BoolVar(&noWait, "no-wait", false, "return at once; 'coffer vm show' tells how far it is")
	flagValues(cmd, "format", "qcow2", "raw")
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		g, err := c.MoveGuest(ctx, args[0], m)
		if err != nil {
			return err
		}
		return a.followGuest(ctx, c, g, noWait)
	})
	return cmd
}

func (a *app) vmResetCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "reset MACHINE", Short: "End a machine, and boot it again on what it wrote", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.guestIDs()),
		Long: `End a machine that runs from a saveset, as if its power were cut, and boot it again on what it wrote; or boot
one again that was shut down. It is the way on after the appliance lost power, too: what the guest had
written and not flushed may be lost then, and it must not go on as if it were there.

` + guestHelp,
		Example: "  coffer vm reset shop",
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		g, err := c.Guest(ctx, args[0])
		if err != nil {
			return err
		}
		if g.State == api.GuestRunning {
			if err := a.sure(yes, fmt.Sprintf("Cut the power of machine %s, and boot it again?", g.Name)); err != nil {
				return err
			}
		}
		if g, err = c.ResetGuest(ctx, g.ID); err != nil {
			return err
		}
		return a.followGuest(ctx, c, g, false)
	})
	return cmd
}

func (a *app) vmDropCmd() *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use: "drop MACHINE", Short: "End a machine that runs from a saveset, and remove what it wrote", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.guestIDs()),
		Long: `End a machine that runs from a saveset, as if its power were cut, and remove what it wrote. The saveset stays
as it is. A restore that goes on is undone.

With --force the host need not be there, nor agree: what was made for the machine there stays.

` + guestHelp,
		Example: "  coffer vm drop shop\n  coffer vm drop 3f0c5be2a1d4 --yes",
	}
	f := cmd.Flags()
	f.BoolVar(&force, "force", false, "whatever the host says, and when it is away")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = a.with(func(ctx context.Context, c *client.Client, args []string) error {
		g, err := c.Guest(ctx, args[0])
		if err != nil {
			return err
		}
		if err := a.sure(yes, fmt.Sprintf("End machine %s (%s), and remove what it wrote?", g.Name, g.State)); err != nil {
			return err
		}
		if err := c.DropGuest(ctx, g.ID, force); err != nil {
			return err
		}
		return a.removed("Machine", g.Name, "saveset "+short(g.Saveset)+" is as it was")
	})
	return cmd
}

// followGuest waits until what a guest was asked to do has ended.
func (a *app) followGuest(ctx context.Context, c *client.Client, g api.Guest, noWait bool) error {
	if !noWait {
		show := a.guestProgress(g)
		for guestWorks(g) {
			select {
			case <-time.After(guestEvery):
			case <-ctx.Done():
				show.done()
				return ctx.Err()
			}
			next, err := c.Guest(ctx, g.ID)
			if err != nil {
				show.done()
				return err
			}
			g = next
			show.guest(g)
		}
		show.done()
	}
	if g.State == api.GuestFailed || g.Problem != "" && !noWait {
		return api.Errorf(api.CodeSourceRefused, "machine %s is %s: %s", g.Name, g.State, g.Problem)
	}
	return a.print(g, func(w io.Writer) { a.guestEnd(w, g) })
}

// guestWorks tells whether a guest is on its way. One that has moved or failed is waited for until nothing is left of it.
func guestWorks(g api.Guest) bool {
	switch g.State {
	case api.GuestBooting, api.GuestMoving, api.GuestRestoring:
		return true
	case api.GuestMoved, api.GuestRestored, api.GuestFailed:
		return !g.Over
	}
	return false
}

func (a *app) guestEnd(w io.Writer, g api.Guest) {
	switch g.State {
	case api.GuestRunning:
		fmt.Fprintf(w, "Machine %s runs on %s from saveset %s; its id is %s.\n", safe(g.Name), safe(hostText(g)), short(g.Saveset), g.ID)
		fmt.Fprintf(w, "  coffer vm move %s --pool POOL    make it the host's own\n  coffer vm drop %s                end it, and remove what it wrote\n", g.ID, g.ID)
	case api.GuestMoved:
		fmt.Fprintf(w, "Machine %s runs from pool %s of %s. It is the host's own now.\n", safe(g.Name), safe(g.Pool), safe(hostText(g)))
	case api.GuestRestored:
		fmt.Fprintf(w, "Machine %s is restored in pool %s of %s; its UUID is %s.\n", safe(g.Name), safe(g.Pool), safe(hostText(g)), g.UUID)
	default:
		fmt.Fprintf(w, "Machine %s is %s; see: coffer vm show %s\n", safe(g.Name), stateText(g), g.ID)
	}
	for _, text := range g.Warnings {
		a.note("warning: %s", safe(text))
	}
}

// guestIDs completes ids of guests.
func (a *app) guestIDs() completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		items, _ := c.Guests(ctx)
		for _, g := range items {
			out = append(out, g.ID+"\t"+g.Name+" "+string(g.State))
		}
		return out
	})
}
