package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

// with makes a RunE that has a connected client.
func (a *app) with(f func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.do(func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		return f(ctx, c, args)
	})
}

func (a *app) clientCmd() *cobra.Command {
	add := &cobra.Command{
		Use: "add NAME", Short: "Add a client and print its enrolment token", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Add a client: a machine that is backed up.

Prints an enrolment token, for one use within an hour, with which coffer-agent on that machine
enrols. The token carries the fingerprint of the appliance's certificate authority, so that the
agent knows whom to trust. It is shown this once.`,
		Example: "  coffer client add web1",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			e, err := c.AddClient(ctx, api.ClientSpec{Name: args[0]})
			return a.enrolment(e, err)
		}),
	}
	token := &cobra.Command{
		Use: "token NAME", Short: "Make a new enrolment token for a client", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.clientNames()),
		Long: "Make a new enrolment token: the first one expired, or the machine was rebuilt. Unused earlier tokens end.",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			e, err := c.NewEnrolment(ctx, args[0])
			return a.enrolment(e, err)
		}),
	}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List clients", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			clients, err := c.Clients(ctx)
			if err != nil {
				return err
			}
			return printList(a, clients, "There are no clients; 'coffer client add NAME' adds one.",
				newTable("NAME", "STATE", "SYSTEM", "AGENT", "ADDRESS", "LAST SEEN"), func(c api.Client) []string {
					return []string{c.Name, string(c.State), platform(c), orText(c.Agent, "-"), orText(c.Address, "-"), a.clockOr(c.LastSeen, "never")}
				})
		}),
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show a client", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.clientNames()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			cl, err := c.Client(ctx, args[0])
			return a.showClient(cl, err)
		}),
	}
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "Refuse a client's certificates from now on", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.clientNames()),
		Long: "Refuse the client's certificates from now on and close its connections. Its tasks and savesets stay; 'coffer client token' lets it enrol anew.",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			cl, err := c.RevokeClient(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(cl, func(w io.Writer) { fmt.Fprintf(w, "Client %s is revoked.\n", cl.Name) })
		}),
	}
	return a.group("client", "Machines that are backed up", add, list, show, token, revoke)
}

func (a *app) enrolment(e api.Enrolment, err error) error {
	if err != nil {
		return err
	}
	return a.print(e, func(w io.Writer) {
		server := orText(e.Server, "APPLIANCE:11301")
		fmt.Fprintf(w, "Enrolment token of %s, for one use until %s:\n\n  %s\n\n", e.Client, a.clock(e.ExpiresAt), e.Token)
		fmt.Fprintf(w, "On %s:\n\n  coffer-agent enrol --server %s     # asks for the token\n  coffer-agent run\n", e.Client, server)
	})
}

func platform(c api.Client) string {
	if c.OS == "" {
		return "-"
	}
	return c.OS + "/" + c.Arch
}

func (a *app) showClient(c api.Client, err error) error {
	if err != nil {
		return err
	}
	return a.print(c, func(w io.Writer) {
		system := platform(c)
		if system == "-" {
			system = ""
		}
		fields(w, "client", c.Name, "state", string(c.State), "hostname", c.Hostname, "system", system, "agent", c.Agent, "address", c.Address,
			"added", a.clock(c.CreatedAt), "enrolled", a.clockOr(c.EnrolledAt, "never"), "last seen", a.clockOr(c.LastSeen, "never"),
			"certificate", c.CertSHA256, "valid until", a.clockOr(c.CertUntil, ""))
	})
}
