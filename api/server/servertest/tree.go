package servertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"strings"

	"coffer/api"
)

// Broken is the path of the sample file whose content fails in the middle.
const Broken = "/etc/broken"

// tree is a file tree in memory.
type tree struct {
	nodes map[string]*node
}

type node struct {
	api.Entry
	content []byte
}

// sampleTree is a tree with one of each kind.
func sampleTree() *tree {
	t := &tree{nodes: map[string]*node{}}
	t.add("/", api.EntryDir, 0o755, "")
	t.add("/etc", api.EntryDir, 0o755, "")
	t.add("/etc/fstab", api.EntryFile, 0o644, "# a table\n/dev/sda1 / ext4 defaults 0 1\n")
	t.add("/etc/hosts", api.EntryFile, 0o644, "127.0.0.1 localhost\n").Xattrs = []api.Xattr{{Name: "user.origin", Value: []byte("by hand")}}
	t.add("/etc/hosts.link", api.EntryFile, 0o644, "127.0.0.1 localhost\n").LinkGroup = 77
	t.nodes["/etc/hosts"].LinkGroup = 77
	t.add("/etc/mtab", api.EntrySymlink, 0o777, "").SetTarget("../proc/self/mounts")
	t.add("/etc/caf\xe9", api.EntryFile, 0o600, "latin 1\n")
	t.add("/etc/empty", api.EntryFile, 0o400, "")
	t.add("/etc/ssl", api.EntryDir, 0o700, "")
	t.add("/etc/ssl/key.pem", api.EntryFile, 0o600, strings.Repeat("k", 4000))
	t.add("/etc/console", api.EntryChar, 0o600, "").Major = 5
	t.add("/etc/pipe", api.EntryFifo, 0o600, "")
	t.add("/etc/socket", api.EntrySocket, 0o600, "")
	t.add("/etc/passwd", api.EntryFile, 0o4755, "root:x:0:0\n").SetMTime(-1, 5)
	return t
}

// AddBroken adds Broken to the sample tree.
func (b *Backend) AddBroken() { b.tree.add(Broken, api.EntryFile, 0o644, strings.Repeat("b", 1<<20)) }

func (t *tree) add(p string, typ api.EntryType, mode uint32, content string) *node {
	n := &node{Entry: api.Entry{Type: typ, Mode: mode, UID: 0, GID: 0, Size: int64(len(content))}, content: []byte(content)}
	if p != "/" {
		n.SetName(path.Base(p))
	}
	n.SetMTime(Epoch.Unix(), 123456789)
	t.nodes[p] = n
	return n
}

// Stat returns an entry.
func (t *tree) Stat(_ context.Context, p string) (api.Entry, error) {
	n := t.nodes[p]
	if n == nil {
		return api.Entry{}, api.Errorf(api.CodeNotFound, "the saveset has no %s", strings.ToValidUTF8(p, "\uFFFD"))
	}
	return n.Entry, nil
}

// List lists a directory.
func (t *tree) List(_ context.Context, dir, after string, limit int) (out []api.Entry, more bool, err error) {
	for _, p := range sortedKeys(t.nodes) {
		name := t.nodes[p].RawName()
		if p == "/" || path.Dir(p) != dir || name <= after {
			continue
		}
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, t.nodes[p].Entry)
	}
	return out, false, nil
}

// Open reads a file.
func (t *tree) Open(_ context.Context, p string) (io.ReadCloser, error) {
	n := t.nodes[p]
	if p == Broken {
		half := bytes.NewReader(n.content[:len(n.content)/2])
		return io.NopCloser(io.MultiReader(half, failing{})), nil
	}
	return io.NopCloser(bytes.NewReader(n.content)), nil
}

type failing struct{}

// Read fails.
func (failing) Read([]byte) (int, error) {
	return 0, errors.New("container 0000000100000002 is damaged")
}

// Close does nothing.
func (t *tree) Close() error { return nil }
