package tree

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pkg is what `go list -json` says of one package.
type pkg struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

func (p pkg) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, Module), "/")
}

func load(t *testing.T) (*Layers, []pkg) {
	t.Helper()
	f, err := os.Open("layers.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layers, err := Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,GoFiles,Imports,Deps", "./...")
	cmd.Dir = filepath.Join("..", "..", "..")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list found no package")
	}
	return layers, pkgs
}

func TestImportsPointDown(t *testing.T) {
	layers, pkgs := load(t)
	seen := map[string]bool{}
	for _, p := range pkgs {
		seen[p.name()] = true
		allowed, ok := layers.Allowed[p.name()]
		if !ok {
			t.Errorf("%s is not in layers.txt: add a line that says what it may import", p.name())
			continue
		}
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, Module+"/"); ok && !Matches(allowed, own) {
				t.Errorf("%s imports %s, which layers.txt does not allow", p.name(), own)
			}
		}
	}
	for name := range layers.Allowed {
		if !seen[name] {
			t.Errorf("layers.txt names %s, which does not exist", name)
		}
	}
}

func TestLibrariesHaveOneOwner(t *testing.T) {
	layers, pkgs := load(t)
	used := map[string]bool{}
	for _, p := range pkgs {
		for _, imp := range p.Imports {
			for lib, owners := range layers.Owners {
				if imp != lib && !strings.HasPrefix(imp, lib+"/") {
					continue
				}
				used[lib] = true
				if !Matches(owners, p.name()) {
					t.Errorf("%s imports %s, which only %v may", p.name(), imp, owners)
				}
			}
		}
	}
	for lib := range layers.Owners {
		if !used[lib] {
			t.Errorf("layers.txt gives %s an owner, but nobody imports it", lib)
		}
	}
}

func TestProgramsStaySmall(t *testing.T) {
	layers, pkgs := load(t)
	for _, name := range slices.Sorted(maps.Keys(layers.Never)) {
		i := slices.IndexFunc(pkgs, func(p pkg) bool { return p.name() == name })
		if i < 0 {
			t.Errorf("layers.txt names the program %s, which does not exist", name)
			continue
		}
		for _, dep := range pkgs[i].Deps {
			if slices.Contains(layers.Never[name], dep) {
				t.Errorf("%s links %s", name, dep)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	_, pkgs := load(t)
	for _, p := range pkgs {
		if len(p.GoFiles) > 0 && len(p.Doc) < 20 {
			t.Errorf("%s has no package comment that says what it owns", p.ImportPath)
		}
	}
}

func TestParseNamesTheLine(t *testing.T) {
	for _, bad := range []string{"a -\nlonely", "a -\na -", "lib x"} {
		if _, err := Parse(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), "layers.txt:") {
			t.Errorf("Parse(%q) = %v, want an error that names the line", bad, err)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"dedup", "dedup", true}, {"dedup", "dedup/blob", false},
		{"dedup/...", "dedup", true}, {"dedup/...", "dedup/blob", true}, {"dedup/...", "dedupe", false},
	} {
		if got := Matches([]string{c.pattern}, c.path); got != c.want {
			t.Errorf("Matches(%q, %q) = %v", c.pattern, c.path, got)
		}
	}
}
