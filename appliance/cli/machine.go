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

func (a *app) mountCmd() *cobra.Command {
	show := func(m api.Mount, err error) error {
		if err != nil {
			return err
		}
		return a.print(m, func(w io.Writer) {
			switch {
			case m.On:
				fmt.Fprintf(w, "All savesets are mounted at %s on the appliance, for root, since %s.\n", m.Path, a.clockOr(m.Since, "-"))
			case m.Error != "":
				fmt.Fprintf(w, "The savesets are not mounted at %s: %s\n", m.Path, safe(m.Error))
			default:
				fmt.Fprintf(w, "The savesets are not mounted (mount point %s).\n", m.Path)
			}
		})
	}
	set := func(on bool) func(*cobra.Command, []string) error {
		return a.with(func(ctx context.Context, c *client.Client, _ []string) error { return show(c.SetMount(ctx, on)) })
	}
	return a.group("mount", "All savesets as a file system on the appliance",
		&cobra.Command{Use: "on", Short: "Mount all savesets", Args: cobra.NoArgs, RunE: set(true),
			Long: "Mount all savesets read-only on the appliance, as CLIENT/TASK/TIME_LEVEL/..., for root only."},
		&cobra.Command{Use: "off", Short: "Unmount them", Args: cobra.NoArgs, RunE: set(false)},
		&cobra.Command{Use: "status", Short: "Show whether they are mounted", Args: cobra.NoArgs,
			RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error { return show(c.Mount(ctx)) })})
}

func (a *app) auditCmd() *cobra.Command {
	var f api.AuditFilter
	var since string
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the audit log, newest first", Args: cobra.NoArgs,
		Long: `List the audit log: every change, login and restore, with who did it and from where.
--since takes a time like 2026-11-22, 2026-11-22T08:00:00Z, or an age like 24h.`,
		Example: "  coffer audit list --action restore --since 720h",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) (err error) {
			if f.Since, err = a.parseSince(since); err != nil {
				return err
			}
			entries, err := pages(f.Limit, func(before string, limit int) (api.Page[api.AuditEntry], error) {
				f.Before, f.Limit = before, limit
				return c.AuditLog(ctx, f)
			})
			if err != nil {
				return err
			}
			return printList(a, entries, "There are no such entries.", newTable("TIME", "USER", "FROM", "ACTION", "OBJECT", "RESULT", "DETAIL"), func(e api.AuditEntry) []string {
				result := "ok"
				if !e.OK {
					result = "failed"
				}
				return []string{a.clock(e.Time), orText(e.User, "-"), orText(e.Remote, "-"), e.Action, e.Object, result, e.Detail}
			})
		}),
	}
	list.Flags().StringVar(&f.User, "user", "", "only this user's")
	list.Flags().StringVar(&f.Action, "action", "", "only this action, like restore or task.add")
	list.Flags().StringVar(&since, "since", "", "only since this time")
	list.Flags().IntVar(&f.Limit, "limit", 100, "at most so many; 0 means all")
	flagComplete(list, "user", a.userNames())
	return a.group("audit", "The audit log", list)
}

// parseSince reads a time or an age.
func (a *app) parseSince(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return a.Now().Add(-d.Abs()), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, a.Zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--since %q is neither a time like 2026-11-22T08:00:00Z nor an age like 24h", s)
}

// fingerprintText shows a fingerprint the way a login does.
func fingerprintText(s string) string {
	f, err := client.ParseFingerprint(s)
	if err != nil {
		return s
	}
	return f.String()
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the versions of this program and of the appliance", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			v := struct {
				Program   string      `json:"program"`
				API       string      `json:"api"`
				Appliance *api.System `json:"appliance,omitempty"`
			}{Program: api.Version, API: api.APIVersion}
			if c, err := a.connect(); err == nil { // without a session, or out of reach, this program's version is the answer
				ctx, cancel := context.WithTimeout(ctx, completeTimeout)
				defer cancel()
				if s, err := c.System(ctx); err == nil {
					v.Appliance = &s
				}
			}
			return a.print(v, func(w io.Writer) {
				pairs := []string{"coffer", v.Program, "API", v.API}
				if s := v.Appliance; s != nil {
					pairs = append(pairs, "appliance", s.Name+", cofferd "+s.Version, "up since", a.clock(s.StartedAt), "agents connect to", s.SMS, "CA SHA-256", fingerprintText(s.CASHA256))
				}
				fields(w, pairs...)
			})
		}),
	}
}
