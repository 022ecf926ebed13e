package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run executes a command line with an input that is no terminal.
func run(t *testing.T, input string, vars map[string]string, args ...string) (code int, out, errs string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var o, e bytes.Buffer
	code = Run(t.Context(), args, Env{In: in, Out: &o, Err: &e, Version: "v1",
		Getenv: func(name string) string { return vars[name] }})
	return code, o.String(), e.String()
}

func TestVersionAndHelp(t *testing.T) {
	if code, out, _ := run(t, "", nil, "version"); code != 0 || out != "coffer-agent v1\n" {
		t.Errorf("version: %d, %q", code, out)
	}
	for _, args := range [][]string{nil, {"--help"}, {"enrol", "--help"}, {"run", "--help"}} {
		code, out, errs := run(t, "", nil, args...)
		if code != 0 || !strings.Contains(out, "Examples:") || errs != "" {
			t.Errorf("%v: %d, %q, %q", args, code, out, errs)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{"enrol"},
		{"enrol", "--server", "x"}, // no terminal and no token
		{"enrol", "--server", "x", "TOKEN"},
		{"run", "--nonsense"},
		{"dance"},
	} {
		code, _, errs := run(t, "", nil, append(args, "--state", t.TempDir())...)
		if code != 2 || !strings.Contains(errs, "coffer-agent --help") {
			t.Errorf("%v: exit %d, %q", args, code, errs)
		}
	}
}

// A token comes in three ways; that it arrived shows by what is wrong with it.
func TestTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("coffer1-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		input string
		vars  map[string]string
		args  []string
	}{
		"file":     {args: []string{"--token-file", file}},
		"stdin":    {input: "coffer1-stdin\n", args: []string{"--token-file", "-"}},
		"variable": {vars: map[string]string{TokenVariable: "coffer1-variable"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"enrol", "--server", "127.0.0.1:1", "--state", t.TempDir()}, tc.args...)
			code, _, errs := run(t, tc.input, tc.vars, args...)
			if code != 1 || !strings.Contains(errs, "not an enrolment token") || strings.Contains(errs, "coffer1-"+name) {
				t.Errorf("exit %d, %q", code, errs)
			}
		})
	}
}

func TestRunWithoutAnIdentity(t *testing.T) {
	code, _, errs := run(t, "", nil, "run", "--state", t.TempDir())
	if code != 1 || !strings.Contains(errs, "coffer-agent enrol") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// A task key is made once, for its owner alone, and is never replaced.
func TestTaskKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "a.key")
	code, id, warning := run(t, "", nil, "task-key", "new", "--output", path)
	if code != 0 || len(strings.TrimSpace(id)) != 32 || !strings.Contains(warning, "KEEP A COPY") {
		t.Fatalf("%d: %q, %q", code, id, warning)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if code, again, _ := run(t, "", nil, "task-key", "id", path); code != 0 || again != id {
		t.Errorf("id: %d, %q, want %q", code, again, id)
	}
	if code, _, why := run(t, "", nil, "task-key", "new", "--output", path); code != 1 || !strings.Contains(why, "only key") {
		t.Errorf("made twice: %d, %q", code, why)
	}
	for _, args := range [][]string{{"task-key", "new"}, {"task-key", "id"}, {"task-key", "new", "x"}} {
		if code, _, _ := run(t, "", nil, args...); code != 2 {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
}
