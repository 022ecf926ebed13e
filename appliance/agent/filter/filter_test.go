package filter

import (
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		patterns string // separated by blanks
		path     string // a trailing slash makes it a directory; "source//below"
		want     bool
	}{
		{"*.tmp", "/a/b/x.tmp", true},
		{"*.tmp", "/a/b/x.tmp/", true},
		{"*.tmp", "/a/b/x.tmpx", false},
		{"*.tmp", "/a/b/.tmp", true},
		{"node_modules/", "/src//x/node_modules/", true},
		{"node_modules/", "/src//x/node_modules", false},
		{"/var/cache", "/var/cache/", true},
		{"/var/cache", "/x/var/cache/", false},
		{"/var/cache", "/var/cache/apt/", false}, // not entered, so never asked
		{"/var/cache/**", "/var/cache/", false},
		{"/var/cache/**", "/var/cache/a", true},
		{"/var/cache/**", "/var/cache/a/b", true},
		{"/home/*/.cache", "/home/joe/.cache/", true},
		{"/home/*/.cache", "/home/joe/x/.cache/", false},
		{"build/out", "/src//build/out", true},
		{"build/out", "/src//x/build/out", false},
		{"**/build/out", "/src//x/build/out", true},
		{"**/build/out", "/src//build/out", true},
		{"a/**/b", "/s//a/b", true},
		{"a/**/b", "/s//a/x/b", true},
		{"a/**/b", "/s//a/x/y/b", true},
		{"a/**/b", "/s//ab", false},
		{"a/**/b/**/c", "/s//a/b/b/x/c", true},
		{"**/foo", "/s//foo", true},
		{"**/foo", "/s//x/foo", true},
		{"**", "/s//x/foo", true},
		{"/**/x", "/x", true},
		{"/**/x", "/a/b/x", true},
		{"foo/**", "/s//foo/x", true},
		{"foo/**", "/s//foo", false},
		{"*.log !keep.log", "/a/keep.log", false},
		{"*.log !keep.log", "/a/x.log", true},
		{"!keep.log *.log", "/a/keep.log", true},
		{"!/a/**/keep *.x keep", "/a/b/keep", true},
		{"# *.a", "/x.b", false},
		{`\#a`, "/#a", true},
		{`\!a`, "/!a", true},
		{"[a-c]x", "/bx", true},
		{"[!a-c]x", "/bx", false},
		{"[^a-c]x", "/dx", true},
		{"[]a]x", "/]x", true},
		{"[a-]x", "/-x", true},
		{`[\]]x`, "/]x", true},
		{"?x", "/äx", true},
		{"?x", "/\xffx", true},
		{"??x", "/äx", false},
		{"[ä]x", "/äx", true},
		{"*\xff*", "/a\xffb", true},
		{"a*b*c", "/aXbXc", true},
		{"a*b*c", "/aXcXb", false},
		{"a**b", "/axxb", true},
		{`a\*b`, "/a*b", true},
		{`a\*b`, "/axb", false},
		{"*", "/anything", true},
		{"/", "/x", false},
	} {
		t.Run(tc.patterns+" "+tc.path, func(t *testing.T) {
			f, err := New(strings.Fields(tc.patterns))
			if err != nil {
				if tc.patterns == "/" {
					return
				}
				t.Fatal(err)
			}
			path, isDir := strings.CutSuffix(tc.path, "/")
			source, below, ok := strings.Cut(path, "//")
			if ok {
				path = source + "/" + below
			}
			if got := f.Match(path, below, isDir); got != tc.want {
				t.Errorf("Match = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestTrailingSpaces(t *testing.T) {
	for pattern, name := range map[string]string{"a  ": "a", `a\ `: "a ", `a\\  `: `a\`} {
		f, err := New([]string{pattern})
		if err != nil || !f.Match("/"+name, name, false) {
			t.Errorf("%q does not match %q: %v", pattern, name, err)
		}
	}
}

func TestWrongPatterns(t *testing.T) {
	_, err := New([]string{"good", "[a", `x\`, "/", "[z-a]", strings.Repeat("x", maxPattern+1)})
	if err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("error does not name the five wrong patterns: %v", err)
	}
}

func TestSelect(t *testing.T) {
	for _, tc := range []struct {
		patterns, path string
		want, below    bool
	}{
		{"", "/a", true, true},
		{"/etc/ssl", "/etc", false, true},
		{"/etc/ssl", "/etc/ssl", true, true},
		{"/etc/ssl", "/etc/ssl/certs/x", true, true},
		{"/etc/ssl", "/var", false, false},
		{"/etc/ssl", "/etc/ssh", false, false},
		{"*.conf", "/etc/x", false, true},
		{"*.conf", "/etc/x.conf", true, true},
		{"/a/**/z", "/a/b/c", false, true},
		{"/a/**/z", "/b", false, false},
	} {
		f, err := New(strings.Fields(tc.patterns))
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Selects(tc.path, true); got != tc.want {
			t.Errorf("%q Selects(%q) = %v", tc.patterns, tc.path, got)
		}
		if got := f.MaySelectBelow(tc.path); got != tc.below {
			t.Errorf("%q MaySelectBelow(%q) = %v", tc.patterns, tc.path, got)
		}
	}
}

// A pattern made to be slow must not be.
func TestHostilePattern(t *testing.T) {
	f, err := New([]string{strings.Repeat("a*", 1000) + "b", strings.Repeat("**/a/", 400) + "b"})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	f.Match("/"+strings.Repeat("a", 250), strings.Repeat("a/", 2000)+"c", false)
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("took %v", d)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("*.tmp", "/a/b.tmp", true)
	f.Add("a/**/[!b]?", "/x/a/y", false)
	f.Add(`\`, "/", false)
	f.Fuzz(func(t *testing.T, pattern, path string, isDir bool) {
		flt, err := New([]string{pattern})
		if err != nil {
			return
		}
		flt.Match(path, strings.TrimPrefix(path, "/"), isDir)
		flt.Selects(path, isDir)
		flt.MaySelectBelow(path)
	})
}
