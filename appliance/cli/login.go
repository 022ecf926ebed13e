package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

// firstUser is the superuser that an appliance is born with.
const firstUser = "admin"

type loginOptions struct {
	fingerprint, user, passwordFile, newPasswordFile string
}

func (a *app) loginCmd() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use: "login [https://HOST:11401]", Short: "Log in to an appliance and trust its certificate",
		Long: `Log in to an appliance.

At the first login the SHA-256 of the certificate of the appliance's own certificate authority is
shown; compare it with what cofferd shows at its start, then say yes: from then on, exactly this
authority is trusted for this appliance. Scripts give it by --fingerprint and are not asked. The
fingerprint of the server's own certificate does as well, until that certificate is renewed.

The password is asked for, or read from --password-file ("-" is standard input) or the variable
COFFER_PASSWORD. The first password of an appliance lies in <data>/first-password and must be
changed at the first login: the new one is asked for, or read from --new-password-file.

Without an address, the appliance of the last login is taken.`,
		Example: `  coffer login https://backup1:11401
  coffer login backup1 --user rita
  coffer login backup1 --fingerprint "$FP" --password-file /run/secrets/coffer`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.do(func(ctx context.Context, args []string) error {
			server := ""
			if len(args) == 1 {
				server = args[0]
			}
			return a.login(ctx, server, o)
		}),
	}
	cmd.Flags().StringVar(&o.fingerprint, "fingerprint", "", "SHA-256 of the certificate to trust (hex, colons allowed)")
	cmd.Flags().StringVarP(&o.user, "user", "u", "", `user name (default: asked for, "`+firstUser+`" in scripts)`)
	cmd.Flags().StringVar(&o.passwordFile, "password-file", "", "file whose first line is the password")
	cmd.Flags().StringVar(&o.newPasswordFile, "new-password-file", "", "file whose first line is the new password, where one must be set")
	return cmd
}

func (a *app) login(ctx context.Context, server string, o loginOptions) error {
	s, err := a.pin(ctx, server, o.fingerprint)
	if err != nil {
		return err
	}
	if s.User, err = a.loginName(o.user, s.User); err != nil {
		return err
	}
	password, err := a.password(o.passwordFile, "COFFER_PASSWORD", "Password of "+s.User+": ")
	if err != nil {
		return err
	}
	c, err := a.client(s)
	if err != nil {
		return err
	}
	defer c.Close()
	login, err := c.Login(ctx, api.LoginRequest{User: s.User, Password: password})
	if err != nil {
		return err
	}
	s.Token, s.ExpiresAt = login.Token, login.ExpiresAt
	if err := a.saveSession(s); err != nil {
		return err
	}
	if login.User.MustChange {
		if err := a.firstPassword(ctx, c.WithToken(s.Token), password, o.newPasswordFile); err != nil {
			return err
		}
		login.User.MustChange = false
	}
	return a.print(login.User, func(w io.Writer) {
		fmt.Fprintf(w, "Logged in to %s as %s (%s) until %s.\n", s.Server, s.User, login.User.Role, a.clock(s.ExpiresAt))
	})
}

// pin decides which certificate is trusted for the server: the one given, the one known, or the one that the person at
// the terminal accepts.
func (a *app) pin(ctx context.Context, server, fingerprint string) (session, error) {
	last, err := a.known()
	if err != nil {
		return last, err
	}
	if server == "" {
		server = last.Server
	}
	if server == "" {
		return last, usagef("which appliance? give its address, like https://backup1:%d", api.DefaultPort)
	}
	u, err := client.ParseServer(server)
	if err != nil {
		return last, usageError{err}
	}
	s := session{Server: u.String(), Fingerprint: fingerprint}
	if lastURL, err := client.ParseServer(last.Server); err == nil && lastURL.String() == s.Server {
		s.User = last.User
		if fingerprint == "" {
			s.Fingerprint = last.Fingerprint
		}
	}
	if s.Fingerprint == "" {
		if v := a.Env("COFFER_FINGERPRINT"); v != "" {
			s.Fingerprint = v
		} else if s.Fingerprint, err = a.trustOnSight(ctx, s.Server); err != nil {
			return s, err
		}
	}
	f, err := client.ParseFingerprint(s.Fingerprint)
	if err != nil {
		return s, usageError{err}
	}
	s.Fingerprint = f.String()
	return s, nil
}

// trustOnSight shows the certificate and asks.
func (a *app) trustOnSight(ctx context.Context, server string) (string, error) {
	id, err := client.Inspect(ctx, server)
	if err != nil {
		return "", err
	}
	what := "certificate authority"
	if !id.CA {
		what = "certificate"
	}
	a.note("The appliance at %s shows this %s for the first time:\n\n  SHA-256  %s\n  server   %s, valid until %s\n",
		server, what, id.Pin, safe(id.Leaf.Subject.CommonName), a.day(id.Leaf.NotAfter))
	a.note("Compare the SHA-256 with what cofferd shows at its start, or with <data>/pki/ca.crt on the appliance.")
	if !a.Terminal {
		return "", api.Errorf(api.CodeUntrusted, "the certificate of %s is not trusted yet, and there is no terminal to ask", server).
			WithHint("give --fingerprint, once you have made sure that it is the right one")
	}
	yes, err := a.confirm("Is it the same, and do you trust this appliance?")
	if err != nil {
		return "", err
	}
	if !yes {
		return "", api.Errorf(api.CodeUntrusted, "the certificate of %s was not accepted", server)
	}
	return id.Pin.String(), nil
}

func (a *app) loginName(given, last string) (string, error) {
	if given != "" {
		return given, nil
	}
	proposal := orText(last, firstUser)
	if !a.Terminal {
		return proposal, nil
	}
	answer, err := a.ask("User [" + proposal + "]: ")
	return orText(answer, proposal), err
}

// firstPassword changes a password that must be changed.
func (a *app) firstPassword(ctx context.Context, c *client.Client, old, file string) error {
	if file == "" && !a.Terminal {
		return api.Errorf(api.CodePasswordChange, "the password must be changed before anything else").
			WithHint("give --new-password-file, or change it with 'coffer passwd'")
	}
	a.note("This password must be changed now.")
	return a.setPassword(ctx, c, old, file)
}

func (a *app) setPassword(ctx context.Context, c *client.Client, old, file string) error {
	for {
		fresh, err := a.newPassword(file)
		if err == nil {
			err = c.ChangePassword(ctx, api.PasswordChange{Old: old, New: fresh})
		}
		code := api.CodeOf(err)
		retry := file == "" && a.Terminal && (code == api.CodeWeakPassword || code == api.CodeBadRequest)
		if !retry {
			return err
		}
		a.note("%v; try again.", err)
	}
}

func (a *app) passwdCmd() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use: "passwd", Short: "Change your password", Args: cobra.NoArgs,
		Long: "Change your own password. All other sessions of yours end; API tokens stay.",
		RunE: a.do(func(ctx context.Context, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			old, err := a.password(o.passwordFile, "COFFER_PASSWORD", "Present password: ")
			if err != nil {
				return err
			}
			if err := a.setPassword(ctx, c, old, o.newPasswordFile); err != nil {
				return err
			}
			return a.print(map[string]bool{"changed": true}, func(w io.Writer) { fmt.Fprintln(w, "Password changed.") })
		}),
	}
	cmd.Flags().StringVar(&o.passwordFile, "password-file", "", "file whose first line is the present password")
	cmd.Flags().StringVar(&o.newPasswordFile, "new-password-file", "", "file whose first line is the new password")
	return cmd
}

func (a *app) logoutCmd() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the session", Args: cobra.NoArgs,
		Long: "End the session on the appliance and forget its token. The appliance's certificate stays trusted.",
		RunE: a.do(func(ctx context.Context, _ []string) error {
			s, err := a.loadSession()
			if err != nil {
				return err
			}
			if s.Token == "" {
				a.say("You are not logged in.")
				return nil
			}
			c, err := a.client(s)
			if err != nil {
				return err
			}
			err = c.Logout(ctx)
			if code := api.CodeOf(err); code == api.CodeUnauthenticated {
				err = nil
			}
			s.Token, s.ExpiresAt = "", time.Time{}
			if serr := a.saveSession(s); err == nil {
				err = serr
			}
			if err == nil {
				a.say("Logged out of %s.", s.Server)
			}
			return err
		}),
	}
}

func (a *app) whoamiCmd() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who you are to the appliance", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			id, err := c.Whoami(ctx)
			if err != nil {
				return err
			}
			return a.print(id, func(w io.Writer) {
				by := "API token " + id.TokenID
				if id.Session {
					by = "session"
				}
				fields(w, "user", id.User.Name, "role", string(id.User.Role), "clients", words(id.User.Clients), "by", by, "appliance", c.Server())
			})
		}),
	}
}
