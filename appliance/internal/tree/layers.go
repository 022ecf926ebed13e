package tree

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Module is the name of the module, as its go.mod says.
const Module = "coffer"

// Layers is the content of layers.txt.
type Layers struct {
	// Allowed maps a package, named without the module, to the patterns of
	// the packages that it may import.
	Allowed map[string][]string
	// Owners maps the path of a library to the patterns of its owners.
	Owners map[string][]string
	// Never maps a program to import paths that it must not link at any depth.
	Never map[string][]string
}

// Parse reads the format of layers.txt. Errors name the line.
func Parse(r io.Reader) (*Layers, error) {
	l := &Layers{Allowed: map[string][]string{}, Owners: map[string][]string{}, Never: map[string][]string{}}
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if err := l.add(f); err != nil {
			return nil, fmt.Errorf("layers.txt:%d: %w", n, err)
		}
	}
	return l, sc.Err()
}

func (l *Layers) add(f []string) error {
	table := l.Allowed
	switch f[0] {
	case "lib":
		table, f = l.Owners, f[1:]
	case "never":
		table, f = l.Never, f[1:]
	}
	if len(f) < 2 {
		return fmt.Errorf("%q names nothing that it allows; write - for none", f[0])
	}
	if _, twice := table[f[0]]; twice {
		return fmt.Errorf("%q stands here twice", f[0])
	}
	if f[1] == "-" {
		f = f[:1]
	}
	table[f[0]] = f[1:]
	return nil
}

// Matches reports whether the package path, named without the module, is one
// of the patterns: equal, or below a pattern that ends in "/...".
func Matches(patterns []string, path string) bool {
	for _, p := range patterns {
		if p == path {
			return true
		}
		if root, ok := strings.CutSuffix(p, "/..."); ok && (path == root || strings.HasPrefix(path, root+"/")) {
			return true
		}
	}
	return false
}
