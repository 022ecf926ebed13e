package scan

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"coffer/appliance/agent/fsmeta"
	"coffer/dedup/recipe"
)

// place is a node of the tree that the sources span. Entries at places are walked whatever the rules say.
type place struct {
	children map[string]*place
	source   bool // a source itself; else it only leads to one
}

func (p *place) child(name string) *place {
	if p == nil {
		return nil
	}
	return p.children[name]
}

// add makes the place of an absolute, clean path.
func (p *place) add(abs string) *place {
	for _, name := range splitPath(abs) {
		next := p.children[name]
		if next == nil {
			next = &place{}
			if p.children == nil {
				p.children = map[string]*place{}
			}
			p.children[name] = next
		}
		p = next
	}
	return p
}

func (p *place) names() []string { return slices.Sorted(maps.Keys(p.children)) }

// splitPath returns the names of a path.
func splitPath(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(name string) bool { return name == "" })
}

const maxSymlinks = 40 // as the kernel has it

// addSource marks where a source lies. An error wraps fs.ErrNotExist where the source is not there.
func (p *place) addSource(source string) error {
	if !strings.HasPrefix(source, "/") {
		return fmt.Errorf("source %q is not an absolute path", source)
	}
	todo, at := splitPath(path.Clean(source)), "/"
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		target, err := readLink(at, name)
		switch {
		case err != nil && links > 0 && errors.Is(err, fs.ErrNotExist):
			return nil // the link is there, what it leads to is not
		case err != nil:
			return fmt.Errorf("source %s: %w", source, err)
		case target == "":
			at = path.Join(at, name)
			continue
		}
		if links++; links > maxSymlinks {
			return fmt.Errorf("source %s: more than %d symlinks on the way", source, maxSymlinks)
		}
		p.add(path.Join(at, name)).source = true
		if strings.HasPrefix(target, "/") {
			at = "/"
		}
		// What ".." means depends on where the links before it lead, so the names are gone through one by one.
		todo = append(splitPath(target), todo...)
	}
	p.add(at).source = true
	return nil
}

// readLink returns the target of name in the directory, "" when it is no symlink.
func readLink(dir, name string) (string, error) {
	d, err := openAbs(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	var st fsmeta.Stat
	if err := d.Lstat(name, &st); err != nil {
		return "", err
	}
	if st.Type() != recipe.ModeSymlink {
		return "", nil
	}
	return d.Readlink(name)
}

// openAbs opens a directory name by name, so that its path may be of any length.
func openAbs(dir string) (*fsmeta.Dir, error) {
	d, err := fsmeta.OpenRoot()
	for _, name := range splitPath(dir) {
		if err != nil {
			return nil, err
		}
		var next *fsmeta.Dir
		next, err = d.OpenDir(name)
		_ = d.Close()
		d = next
	}
	return d, err
}
