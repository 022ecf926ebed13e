package cli

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

// completeTimeout bounds what a person waits for after the tab key.
const completeTimeout = 3 * time.Second

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete makes a completion of what list returns: "word" or "word\tdescription". It is silent on errors: a shell's
// prompt is no place for them.
func (a *app) complete(list func(ctx context.Context, c *client.Client, args []string, word string) []string) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, w := range list(ctx, c, args, word) {
			if strings.HasPrefix(w, word) {
				out = append(out, w)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes the first argument only.
func first(f completion) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, word)
	}
}

func (a *app) clientNames() completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		clients, _ := c.Clients(ctx)
		for _, cl := range clients {
			out = append(out, cl.Name+"\t"+string(cl.State))
		}
		return out
	})
}

func (a *app) taskNames() completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		tasks, _ := c.Tasks(ctx)
		for _, t := range tasks {
			out = append(out, t.Name+"\ton "+t.Client)
		}
		return out
	})
}

func (a *app) poolNames() completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		pools, _ := c.Pools(ctx)
		for _, p := range pools {
			out = append(out, p.Name)
		}
		return out
	})
}

func (a *app) userNames() completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		users, _ := c.Users(ctx)
		for _, u := range users {
			out = append(out, u.Name+"\t"+string(u.Role))
		}
		return out
	})
}

func (a *app) tokenIDs() completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		tokens, _ := c.Tokens(ctx)
		for _, t := range tokens {
			out = append(out, t.ID+"\t"+t.Name)
		}
		return out
	})
}

func (a *app) runIDs(state api.RunState) completion {
	return a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		runs, _ := c.Runs(ctx, api.RunFilter{State: state, Limit: 50})
		for _, r := range runs.Items {
			out = append(out, r.ID+"\t"+string(r.State)+" "+orText(r.Task, string(r.Kind))+" "+a.clock(r.QueuedAt))
		}
		return out
	})
}

// savesetAndPath completes a saveset's id first, then a path in it.
func (a *app) savesetAndPath() completion {
	ids := a.complete(func(ctx context.Context, c *client.Client, _ []string, _ string) (out []string) {
		sets, _ := c.Savesets(ctx, api.SavesetFilter{Limit: 200})
		for _, s := range sets.Items {
			out = append(out, s.ID+"\t"+s.Task+" "+string(s.Level)+" "+a.clock(s.StartedAt))
		}
		tasks, _ := c.Tasks(ctx)
		for _, t := range tasks {
			out = append(out, latestPrefix+t.Name+"\tthe newest of "+t.Name)
		}
		return out
	})
	paths := a.complete(a.pathsOf)
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return ids(cmd, args, word)
		}
		out, directive := paths(cmd, args, word)
		if len(out) == 1 && strings.HasSuffix(out[0], "/") {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return out, directive
	}
}

// pathsOf lists the entries of the directory that word lies in.
func (a *app) pathsOf(ctx context.Context, c *client.Client, args []string, word string) (out []string) {
	id, err := resolve(ctx, c, args[0])
	if err != nil {
		return nil
	}
	dir := "/"
	if i := strings.LastIndexByte(word, '/'); i > 0 {
		dir = word[:i]
	}
	l, err := c.List(ctx, id, dir, "", api.DefaultPage)
	if err != nil {
		return nil
	}
	for _, e := range l.Items {
		p := path.Join(dir, e.RawName())
		if e.Type == api.EntryDir {
			p += "/"
		}
		out = append(out, p)
	}
	return out
}

// flagValues completes a flag by a fixed list.
func flagValues(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails only without such a flag
}

// flagComplete completes a flag by a completion.
func flagComplete(cmd *cobra.Command, flag string, f completion) {
	_ = cmd.RegisterFlagCompletionFunc(flag, f) // fails only without such a flag
}
