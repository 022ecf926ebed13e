package savesettree

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"coffer/dedup"
	"coffer/dedup/recipe"
	"coffer/fusefs"
)

// latest is the name of the symlink to a task's newest saveset.
const latest = "latest"

// listing is the upper part of the tree at one moment.
type listing struct {
	ids     map[dedup.SavesetID]struct{}
	clients map[string]map[string]*task
	changed map[string]time.Time // mtime of every directory, by its path
}

// task is a directory of savesets.
type task struct {
	names []string // sorted by time, then id
	sets  map[string]Saveset
}

func newListing(all []Saveset) *listing {
	l := &listing{ids: map[dedup.SavesetID]struct{}{}, clients: map[string]map[string]*task{}, changed: map[string]time.Time{}}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Saveset) int {
		return cmp.Or(a.Started.Compare(b.Started), slices.Compare(a.ID[:], b.ID[:]))
	})
	for _, s := range all {
		l.add(s)
	}
	return l
}

func (l *listing) add(s Saveset) {
	l.ids[s.ID] = struct{}{}
	client, name := component(s.Client), component(s.Task)
	tasks := l.clients[client]
	if tasks == nil {
		tasks = map[string]*task{}
		l.clients[client] = tasks
	}
	t := tasks[name]
	if t == nil {
		t = &task{sets: map[string]Saveset{}}
		tasks[name] = t
	}
	t.add(s)
	for _, dir := range []string{"", client, client + "/" + name} {
		if s.Started.After(l.changed[dir]) {
			l.changed[dir] = s.Started
		}
	}
}

func (t *task) add(s Saveset) {
	base := s.Started.UTC().Format("2006-01-02T15.04.05Z") + "_" + strings.ToUpper(component(s.Level))
	name := base
	for n := 2; ; n++ {
		if _, taken := t.sets[name]; !taken {
			break
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
	t.names = append(t.names, name)
	t.sets[name] = s
}

// component makes a name fit to be one component of a path.
func component(name string) string {
	switch name {
	case "", ".", "..":
		return "%" + name
	}
	return strings.NewReplacer("/", "%2F", "\x00", "%00").Replace(name)
}

// keepTimes gives directories whose contents went the time of now: their newest saveset's time would not tell the kernel
// that something changed.
func (l *listing) keepTimes(old *listing, now time.Time) {
	if old == nil {
		return
	}
	for dir, was := range old.changed {
		if is, ok := l.changed[dir]; ok && was.After(is) {
			l.changed[dir] = was
		}
	}
	for id := range old.ids {
		if _, ok := l.ids[id]; !ok {
			for dir := range l.changed {
				l.changed[dir] = now
			}
			return
		}
	}
}

// The levels of directories above savesets.
type level int

const (
	clients level = iota
	tasks
	savesets
)

// listDir is a directory of clients, of a client's tasks, or of a task's savesets.
type listDir struct {
	tree         *Tree
	level        level
	client, task string
}

var _ fusefs.Volatile = (*listDir)(nil)

// Volatile tells the kernel to ask again: savesets come and go.
func (d *listDir) Volatile() bool { return true }

func (d *listDir) path() string {
	return strings.TrimPrefix(strings.Join([]string{"", d.client, d.task}[:d.level+1], "/"), "/")
}

// ID implements fusefs.Node.
func (d *listDir) ID() fusefs.ID { return listID(d.path()) }

// listID is the identity of what stands above savesets: made from the path, in a range of its own.
func listID(path string) fusefs.ID {
	sum := sha256.Sum256([]byte(path))
	return fusefs.ID{Hi: ^uint64(0), Lo: 1<<63 | binary.BigEndian.Uint64(sum[:])}
}

// Kind implements fusefs.Kinder.
func (d *listDir) Kind() (mode uint32, ino uint64) { return recipe.ModeDir | 0o755, d.ID().Lo }

// Attr implements fusefs.Node.
func (d *listDir) Attr(ctx context.Context) (fusefs.Attr, error) {
	l, err := d.tree.current(ctx)
	if err != nil {
		return fusefs.Attr{}, err
	}
	return dirAttr(d.ID().Lo, fusefs.TimeOf(l.changed[d.path()])), nil
}

func dirAttr(ino uint64, at fusefs.Time) fusefs.Attr {
	return fusefs.Attr{Ino: ino, Mode: recipe.ModeDir | 0o755, Nlink: 1, Size: 4096, Blocks: 8, MTime: at, CTime: at}
}

// Lookup implements fusefs.Dir.
func (d *listDir) Lookup(ctx context.Context, name string) (fusefs.Node, error) {
	l, err := d.tree.current(ctx)
	if err != nil {
		return nil, err
	}
	if n := d.find(l, name); n != nil {
		return n, nil
	}
	return nil, notExist("look up", name)
}

// find returns nil where there is nothing of that name.
func (d *listDir) find(l *listing, name string) fusefs.Node {
	switch d.level {
	case clients:
		if _, ok := l.clients[name]; ok {
			return &listDir{tree: d.tree, level: tasks, client: name}
		}
	case tasks:
		if _, ok := l.clients[d.client][name]; ok {
			return &listDir{tree: d.tree, level: savesets, client: d.client, task: name}
		}
	case savesets:
		t := l.clients[d.client][d.task]
		if t == nil {
			return nil
		}
		if name == latest {
			newest := t.names[len(t.names)-1]
			return &latestLink{dir: d, target: newest, at: t.sets[newest].Started}
		}
		if s, ok := t.sets[name]; ok {
			return d.tree.saveset(s).root()
		}
	}
	return nil
}

// names lists what stands in the directory now.
func (d *listDir) names(l *listing) []string {
	switch d.level {
	case clients:
		return slices.Sorted(maps.Keys(l.clients))
	case tasks:
		return slices.Sorted(maps.Keys(l.clients[d.client]))
	}
	if t := l.clients[d.client][d.task]; t != nil {
		return append(slices.Clone(t.names), latest)
	}
	return nil
}

// List implements fusefs.Dir. Positions count names: who lists while savesets come and go may miss some, as everywhere.
func (d *listDir) List(ctx context.Context, from uint64, yield func(fusefs.Dirent) bool) error {
	l, err := d.tree.current(ctx)
	if err != nil {
		return err
	}
	names := d.names(l)
	for i := from; i < uint64(len(names)); i++ {
		if n := d.find(l, names[i]); n != nil && !yield(fusefs.Dirent{Name: names[i], Node: n, Next: i + 1}) {
			return nil
		}
	}
	return nil
}

// latestLink is the symlink to a task's newest saveset at one moment. Its identity has the target in it, so that the
// kernel, which keeps targets, takes the link to a newer one for another file.
type latestLink struct {
	dir    *listDir
	target string
	at     time.Time
}

var _ fusefs.Symlink = (*latestLink)(nil)

// ID implements fusefs.Node.
func (l *latestLink) ID() fusefs.ID { return listID(l.dir.path() + "/" + latest + "/" + l.target) }

// Kind implements fusefs.Kinder.
func (l *latestLink) Kind() (mode uint32, ino uint64) { return recipe.ModeSymlink | 0o777, l.ID().Lo }

// Attr implements fusefs.Node.
func (l *latestLink) Attr(context.Context) (fusefs.Attr, error) {
	at := fusefs.TimeOf(l.at)
	return fusefs.Attr{Ino: l.ID().Lo, Mode: recipe.ModeSymlink | 0o777, Nlink: 1, Size: uint64(len(l.target)), MTime: at, CTime: at}, nil
}

// Target implements fusefs.Symlink.
func (l *latestLink) Target(context.Context) (string, error) { return l.target, nil }
