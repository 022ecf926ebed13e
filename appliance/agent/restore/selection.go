package restore

import (
	"strings"

	"coffer/appliance/sms"
)

// selection is what the order's paths pick, as a tree of names. The nil selection picks all.
type selection struct {
	children map[string]*selection
	all      bool // this and all below
	met      bool // of one with all: the saveset has it
}

func newSelection(paths []sms.Path) *selection {
	if len(paths) == 0 {
		return nil
	}
	root := &selection{}
	for _, p := range paths {
		s := root
		for name := range strings.SplitSeq(string(p), "/") {
			if name == "" || name == "." {
				continue
			}
			next := s.children[name]
			if next == nil {
				next = &selection{}
				if s.children == nil {
					s.children = map[string]*selection{}
				}
				s.children[name] = next
			}
			s = next
		}
		s.all = true
	}
	if root.all {
		return nil
	}
	return root
}

// child returns what is picked below name; picked says whether name itself is, leads that something below may be.
func (s *selection) child(name string) (sub *selection, picked, leads bool) {
	if s == nil {
		return nil, true, true
	}
	next := s.children[name]
	if next == nil {
		return nil, false, false
	}
	if next.all {
		next.met = true
		return nil, true, true
	}
	return next, false, true
}

// missing lists the paths that the saveset does not have.
func (s *selection) missing(prefix string, out []string) []string {
	if s == nil {
		return out
	}
	for name, next := range s.children {
		switch {
		case next.all && !next.met:
			out = append(out, prefix+"/"+name)
		case !next.all:
			out = next.missing(prefix+"/"+name, out)
		}
	}
	return out
}

// leads reports whether a directory of the saveset only leads to sources: it is neither one nor in one.
func leads(sources []sms.Path, path string) bool {
	if len(sources) == 0 {
		return false
	}
	for _, s := range sources {
		source := strings.TrimRight(string(s), "/")
		if rest, ok := strings.CutPrefix(path, source); ok && (rest == "" || rest[0] == '/') {
			return false
		}
	}
	return true
}
