//go:build !windows

package command

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestOutput(t *testing.T) {
	for _, argv := range [][]string{{"printf 'a b'; echo noise >&2"}, {"printf", "%s", "a b"}} {
		c, err := New(t.Context(), argv)
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(out)
		if err != nil || string(got) != "a b" {
			t.Errorf("%q printed %q, %v", argv, got, err)
		}
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestFailure(t *testing.T) {
	c, _ := New(t.Context(), []string{"yes | head -c 100000 >&2; echo the last words >&2; exit 3"})
	err := c.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("error is %v, want exit status 3", err)
	}
	if !strings.HasSuffix(err.Error(), "the last words") || len(err.Error()) > tailSize+500 {
		t.Errorf("error does not end in what the command said: %d bytes", len(err.Error()))
	}
}

func TestInput(t *testing.T) {
	c, _ := New(t.Context(), []string{"cat >&2; exit 1"})
	in, err := c.Input()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(in, "hello")
	_ = in.Close()
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "hello") {
		t.Errorf("error is %v", err)
	}
}

func TestCancelEndsChildren(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c, _ := New(ctx, []string{"sleep 60 | sleep 60; true"})
	start := time.Now()
	if err := c.Run(); err == nil {
		t.Error("a cancelled command succeeded")
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("took %v to end", d)
	}
}

func TestEmpty(t *testing.T) {
	for _, argv := range [][]string{nil, {" "}} {
		if _, err := New(t.Context(), argv); !errors.Is(err, ErrEmpty) {
			t.Errorf("New(%q) = %v", argv, err)
		}
	}
}
