package filter

import (
	"errors"
	"fmt"
	"strings"
)

// Limits of what an order may carry.
const (
	maxPatterns = 10_000
	maxPattern  = 4096 // bytes
)

// Filter decides by a list of patterns. The nil Filter has none.
type Filter struct {
	rules  []rule
	byPath bool // some rule needs more than the name
}

// anchor says what the segments of a rule are matched with.
type anchor uint8

const (
	anyName  anchor = iota // the name alone
	absolute               // the path from the root
	relative               // the path below the source
)

type rule struct {
	anchor  anchor
	negate  bool
	dirOnly bool
	segs    []segment
}

// New compiles patterns. Its error names every one that is wrong.
func New(patterns []string) (*Filter, error) {
	if len(patterns) > maxPatterns {
		return nil, fmt.Errorf("%d patterns, at most %d are possible", len(patterns), maxPatterns)
	}
	f := &Filter{}
	var errs []error
	for _, p := range patterns {
		r, ok, err := compile(p)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("pattern %q: %w", p, err))
		case ok:
			f.rules = append(f.rules, r)
			f.byPath = f.byPath || r.anchor != anyName
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return f, nil
}

// compile reads one pattern; ok is false for one that does nothing.
func compile(p string) (r rule, ok bool, err error) {
	if len(p) > maxPattern {
		return r, false, fmt.Errorf("longer than %d bytes", maxPattern)
	}
	p = trimSpaces(p)
	if p == "" || p[0] == '#' {
		return r, false, nil
	}
	if p[0] == '!' {
		r.negate, p = true, p[1:]
	}
	if cut := strings.TrimRight(p, "/"); cut != p {
		r.dirOnly, p = true, cut
	}
	switch {
	case p == "":
		return r, false, errors.New("matches nothing")
	case p[0] == '/':
		r.anchor, p = absolute, strings.TrimLeft(p, "/")
	case strings.Contains(p, "/"):
		r.anchor = relative
	}
	for _, s := range strings.Split(p, "/") {
		seg, err := compileSegment(s)
		if err != nil {
			return r, false, err
		}
		if n := len(r.segs); n > 0 && seg.deep && r.segs[n-1].deep {
			continue // **/** is **
		}
		r.segs = append(r.segs, seg)
	}
	// "**/name" is "name": the name alone is looked at.
	if r.anchor == relative && len(r.segs) == 2 && r.segs[0].deep && !r.segs[1].deep {
		r.anchor, r.segs = anyName, r.segs[1:]
	}
	if r.anchor == anyName && r.segs[0].deep {
		r.segs[0] = segment{kind: anyText}
	}
	return r, true, nil
}

// trimSpaces takes trailing blanks away, but one that a backslash keeps.
func trimSpaces(p string) string {
	cut := strings.TrimRight(p, " \t\r\n")
	if len(cut) < len(p) && trailingBackslashes(cut)%2 == 1 {
		return p[:len(cut)+1]
	}
	return cut
}

func trailingBackslashes(p string) int { return len(p) - len(strings.TrimRight(p, `\`)) }

// Empty reports whether there is no pattern at all.
func (f *Filter) Empty() bool { return f == nil || len(f.rules) == 0 }

// NamesOnly reports whether the paths given to Match do not matter, but for their last name.
func (f *Filter) NamesOnly() bool { return f == nil || !f.byPath }

// Match reports whether the last pattern that matches says so. Path is absolute with forward slashes; below is the part
// of it that lies below the source, without a slash in front, and may be empty. Parents are not looked at: whoever walks
// does not enter what matched.
func (f *Filter) Match(path, below string, isDir bool) bool {
	if f == nil {
		return false
	}
	for i := len(f.rules) - 1; i >= 0; i-- {
		if f.rules[i].matches(path, below, isDir) {
			return !f.rules[i].negate
		}
	}
	return false
}

func (r *rule) matches(path, below string, isDir bool) bool {
	if r.dirOnly && !isDir {
		return false
	}
	switch r.anchor {
	case anyName:
		return r.segs[0].match(path[strings.LastIndexByte(path, '/')+1:])
	case absolute:
		return matchPath(r.segs, strings.TrimPrefix(path, "/"))
	default:
		return below != "" && matchPath(r.segs, below)
	}
}

// matchPath matches segments with the names of a path. Only the last ** that was met needs to be tried again: what
// came before it has matched, and a later one can take all that an earlier one could.
func matchPath(segs []segment, path string) bool {
	retrySegs, retryPath := []segment(nil), ""
	for {
		switch {
		case len(segs) == 0 && path == "":
			return true
		case len(segs) > 0 && segs[0].deep && len(segs) == 1:
			return path != "" // all that is inside, not the directory itself
		case len(segs) > 0 && segs[0].deep:
			segs = segs[1:]
			retrySegs, retryPath = segs, path
			continue
		case len(segs) > 0 && path != "":
			name, rest, _ := strings.Cut(path, "/")
			if segs[0].match(name) {
				segs, path = segs[1:], rest
				continue
			}
		}
		if retrySegs == nil || retryPath == "" {
			return false
		}
		_, retryPath, _ = strings.Cut(retryPath, "/")
		segs, path = retrySegs, retryPath
	}
}

// Selects reports whether the entry, or a directory above it, matches: picking a directory picks all in it. No pattern
// picks everything.
func (f *Filter) Selects(path string, isDir bool) bool {
	if f.Empty() {
		return true
	}
	for end := 1; end < len(path); end++ {
		if path[end] == '/' && f.Match(path[:end], path[1:end], true) {
			return true
		}
	}
	return f.Match(path, strings.TrimPrefix(path, "/"), isDir)
}

// MaySelectBelow reports whether something inside the directory may be picked, so that it is worth walking.
func (f *Filter) MaySelectBelow(dir string) bool {
	if f.Empty() || f.Selects(dir, true) {
		return true
	}
	names := strings.Split(strings.Trim(dir, "/"), "/")
	for i := range f.rules {
		if !f.rules[i].negate && f.rules[i].mayMatchBelow(names) {
			return true
		}
	}
	return false
}

func (r *rule) mayMatchBelow(names []string) bool {
	if r.anchor == anyName || names[0] == "" {
		return true
	}
	for i, name := range names {
		if i == len(r.segs) {
			return false
		}
		if r.segs[i].deep {
			return true
		}
		if !r.segs[i].match(name) {
			return false
		}
	}
	return len(r.segs) > len(names)
}
