package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

const rolesHelp = `Roles: superuser (all), admin (all but users), operator (sees everything, runs backups, restores and
mounts), backup (starts backups of its clients), restore (looks into and restores savesets of its
clients). The last two reach only the clients given by --client; '*' means all.`

func (a *app) userCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List users", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			users, err := c.Users(ctx)
			if err != nil {
				return err
			}
			return printList(a, users, "There are no users.", newTable("NAME", "ROLE", "CLIENTS", "LAST LOGIN", "PASSWORD"), func(u api.User) []string {
				clients, password := "all", "ok"
				if u.Role.Limited() {
					clients = orText(words(u.Clients), "none")
				}
				if u.MustChange {
					password = "must be changed"
				}
				return []string{u.Name, string(u.Role), clients, a.clockOr(u.LastLogin, "never"), password}
			})
		}),
	}
	remove := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a user, with all sessions and API tokens", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.userNames()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RemoveUser(ctx, args[0]); err != nil {
				return err
			}
			return a.removed("User", args[0], "")
		}),
	}
	return a.group("user", "Users and what they may do", a.userAddCmd(), list, a.userRoleCmd(), remove)
}

func (a *app) userAddCmd() *cobra.Command {
	var s api.UserSpec
	var role, file string
	var generate bool
	cmd := &cobra.Command{
		Use: "add NAME --role ROLE", Short: "Add a user", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Add a user with a first password, which the user must change at the first login.\n\n" + rolesHelp,
		Example: `  coffer user add olga --role operator --generate
  coffer user add rita --role restore --client web1 --client web2`,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) (err error) {
			s.Name, s.Role = args[0], api.Role(role)
			if generate {
				s.Password = rand.Text()
			} else if s.Password, err = a.newPassword(file); err != nil {
				return err
			}
			u, err := c.AddUser(ctx, s)
			if err != nil {
				return err
			}
			out := struct {
				api.User
				Password string `json:"password,omitempty"`
			}{User: u}
			if generate {
				out.Password = s.Password
			}
			return a.print(out, func(w io.Writer) {
				fmt.Fprintf(w, "User %s has role %s.\n", u.Name, u.Role)
				if generate {
					fmt.Fprintf(w, "First password, to be changed at the first login: %s\n", s.Password)
				}
			})
		}),
	}
	cmd.Flags().StringVarP(&role, "role", "r", "", "what the user may do (required)")
	cmd.Flags().StringArrayVarP(&s.Clients, "client", "c", nil, "client that the user reaches; may be repeated")
	cmd.Flags().StringVar(&file, "password-file", "", "file whose first line is the first password")
	cmd.Flags().BoolVar(&generate, "generate", false, "make a first password and print it")
	cmd.MarkFlagsMutuallyExclusive("password-file", "generate")
	a.roleFlags(cmd)
	return cmd
}

func (a *app) roleFlags(cmd *cobra.Command) {
	_ = cmd.MarkFlagRequired("role") // where it is a flag
	if cmd.Flags().Lookup("role") != nil {
		flagValues(cmd, "role", roleNames("")...)
	}
	flagComplete(cmd, "client", a.clientNames())
}

// roleNames lists the roles that begin with prefix.
func roleNames(prefix string) (out []string) {
	for _, r := range api.Roles() {
		if strings.HasPrefix(string(r), prefix) {
			out = append(out, string(r))
		}
	}
	return out
}

func (a *app) userRoleCmd() *cobra.Command {
	var clients []string
	cmd := &cobra.Command{
		Use: "role NAME ROLE", Short: "Change what a user may do", Args: cobra.ExactArgs(2),
		Long:    "Change a user's role, and for the roles backup and restore the clients that the user reaches.\n\n" + rolesHelp,
		Example: "  coffer user role rita restore --client web1 --client web2",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			u, err := c.SetUserRole(ctx, args[0], api.UserRole{Role: api.Role(args[1]), Clients: clients})
			if err != nil {
				return err
			}
			return a.print(u, func(w io.Writer) { fmt.Fprintf(w, "User %s has role %s.\n", u.Name, u.Role) })
		}),
	}
	cmd.Flags().StringArrayVarP(&clients, "client", "c", nil, "client that the user reaches; may be repeated")
	a.roleFlags(cmd)
	names := a.userNames()
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return names(cmd, args, word)
		}
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return roleNames(word), cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

func (a *app) tokenCmd() *cobra.Command {
	var expires time.Duration
	add := &cobra.Command{
		Use: "add NAME", Short: "Make an API token for yourself and print it", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make an API token: it lets a program do what you may do, without your password. NAME says what it is
for. The token is shown this once; programs take it from the variable COFFER_TOKEN.`,
		Example: "  coffer token add nightly-report --expires 8760h",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			s := api.TokenSpec{Name: args[0]}
			if expires > 0 {
				t := a.Now().Add(expires).UTC().Truncate(time.Second)
				s.ExpiresAt = &t
			}
			t, err := c.AddToken(ctx, s)
			if err != nil {
				return err
			}
			return a.print(t, func(w io.Writer) {
				fmt.Fprintf(w, "API token %s (%s) of %s, valid until %s:\n\n  %s\n", t.ID, safe(t.Name), t.User, a.clockOr(t.ExpiresAt, "it is removed"), t.Secret)
			})
		}),
	}
	add.Flags().DurationVar(&expires, "expires", 0, "how long it is valid, like 720h (default: until removed)")
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List API tokens: yours, the superuser's view all", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			tokens, err := c.Tokens(ctx)
			if err != nil {
				return err
			}
			return printList(a, tokens, "There are no API tokens.", newTable("ID", "NAME", "USER", "MADE", "VALID UNTIL", "LAST USED"), func(t api.Token) []string {
				return []string{t.ID, t.Name, t.User, a.clock(t.CreatedAt), a.clockOr(t.ExpiresAt, "no end"), a.clockOr(t.LastUsed, "never")}
			})
		}),
	}
	remove := &cobra.Command{
		Use: "remove ID", Aliases: []string{"rm"}, Short: "Remove an API token", Args: cobra.ExactArgs(1), ValidArgsFunction: first(a.tokenIDs()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RemoveToken(ctx, args[0]); err != nil {
				return err
			}
			return a.removed("API token", args[0], "")
		}),
	}
	return a.group("token", "API tokens for programs", add, list, remove)
}
