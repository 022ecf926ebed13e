package server

import (
	"context"
	"path"
	"strconv"
	"strings"

	"coffer/api"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

type savesetsInput struct {
	Client string `query:"client" maxLength:"64" doc:"only savesets of this client"`
	Task   string `query:"task" maxLength:"64" doc:"only savesets of this task"`
	PageInput
}

func (s *Server) listSavesets(ctx context.Context, in *savesetsInput) (*body[api.Page[api.Saveset]], error) {
	return pageBody(s.backend.Savesets(ctx, api.SavesetFilter{Client: in.Client, Task: in.Task, Clients: reachable(ctx),
		Before: in.Before, Limit: in.Limit}))
}

// saveset returns a saveset that the caller reaches; id may be a prefix.
func (s *Server) saveset(ctx context.Context, id string) (api.Saveset, error) {
	set, err := s.backend.Saveset(ctx, id)
	if err == nil {
		err = reach(ctx, set.Client)
	}
	return set, err
}

func (s *Server) showSaveset(ctx context.Context, in *idInput) (*body[api.Saveset], error) {
	return bodyOf(s.saveset(ctx, in.ID))
}

type entriesInput struct {
	ID    string `path:"id" maxLength:"64"`
	Path  string `query:"path" default:"/" maxLength:"65536" doc:"absolute path in the saveset; bytes that are not UTF-8 percent-encoded"`
	After string `query:"after" maxLength:"4096" doc:"cursor: entries whose name is greater (bytes); the 'next' of the page before, percent-encoded"`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"items in one page"`
}

func (s *Server) listEntries(ctx context.Context, in *entriesInput) (*body[api.Listing], error) {
	p, err := cleanPath(in.Path)
	if err != nil {
		return nil, err
	}
	set, tree, err := s.openTree(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	defer s.closeTree(set, tree)
	l := api.Listing{Items: []api.Entry{}}
	l.Path, _ = api.Text(p)
	if l.Entry, err = tree.Stat(ctx, p); err != nil {
		return nil, err
	}
	if l.Entry.Type != api.EntryDir {
		return bodyOf(l, nil)
	}
	items, more, err := tree.List(ctx, p, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	l.Items = append(l.Items, items...)
	if more && len(items) > 0 {
		last := items[len(items)-1]
		l.Next, l.NextRaw = last.Name, last.NameRaw
	}
	return bodyOf(l, nil)
}

// openTree opens the tree of a saveset that the caller reaches.
func (s *Server) openTree(ctx context.Context, id string) (api.Saveset, Tree, error) {
	set, err := s.saveset(ctx, id)
	if err != nil {
		return set, nil, err
	}
	tree, err := s.backend.OpenTree(ctx, set.ID)
	return set, tree, err
}

func (s *Server) closeTree(set api.Saveset, t Tree) {
	if err := t.Close(); err != nil {
		s.log.Warn("saveset not closed", "saveset", set.ID, "error", err)
	}
}

// cleanPath checks a path of a saveset and removes what does not count: double and trailing slashes, "." and "..".
func cleanPath(p string) (string, error) {
	if !strings.HasPrefix(p, "/") {
		return "", api.Errorf(api.CodeBadRequest, "path %q is not absolute", p).
			WithHint("a saveset holds whole paths, like /etc/fstab")
	}
	if strings.ContainsRune(p, 0) {
		return "", api.Errorf(api.CodeBadRequest, "path %q contains a NUL", p)
	}
	return path.Clean(p), nil
}
