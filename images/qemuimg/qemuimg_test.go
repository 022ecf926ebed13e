package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"coffer/images"
)

func need(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("COFFER_REQUIRE_LAB") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// A disk goes through every format and comes back as it was.
func TestThereAndBack(t *testing.T) {
	need(t)
	dir := t.TempDir()
	want := make([]byte, 3<<20)
	for i := range 200000 {
		want[i+1<<20] = byte(i * i >> 5)
	}
	raw := Image{filepath.Join(dir, "disk,with=odd:name.raw"), images.Raw}
	if err := os.WriteFile(raw.Path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []images.Format{images.Qcow2, images.VMDK, images.VHD, images.VHDX} {
		other, back := Image{filepath.Join(dir, "x."+string(format)), format}, Image{filepath.Join(dir, "back."+string(format)), images.Raw}
		last := 0.0
		if err := Convert(t.Context(), raw, other, Options{Progress: func(f float64) { last = f }}); err != nil {
			t.Fatal(err)
		}
		if err := Convert(t.Context(), other, back, Options{}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(back.Path)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) || len(bytes.TrimRight(got[len(want):], "\x00")) > 0 { // VHD rounds up to cylinders
			t.Errorf("%s: %d bytes, want %d", format, len(got), len(want))
		}
		if last != 1 {
			t.Errorf("%s: progress ends at %v", format, last)
		}
	}
}

func TestFailures(t *testing.T) {
	need(t)
	dir := t.TempDir()
	out := Image{filepath.Join(dir, "out"), images.Raw}
	if err := Convert(t.Context(), Image{filepath.Join(dir, "none"), images.Raw}, out, Options{}); err == nil {
		t.Error("a file that is not there was converted")
	}
	if err := Convert(t.Context(), Image{"x", "qed"}, out, Options{}); err == nil {
		t.Error("a format that is not known was taken")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no time")
	cancel(why)
	in := Image{filepath.Join(dir, "in"), images.Raw}
	if err := os.WriteFile(in.Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Convert(ctx, in, out, Options{}); !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestParseProgress(t *testing.T) {
	for text, want := range map[string]float64{"    (12.50/100%)": 0.125, "\r    (100.00/100%)": 1, "(0.00/100%)": 0} {
		if got, ok := parseProgress(text); !ok || got != want {
			t.Errorf("%q is %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "(x/100%)", "(101/100%)", "12.5", "(12.5%)"} {
		if got, ok := parseProgress(text); ok {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// On another machine it is a shell that does not find the program.
func TestMissingElsewhere(t *testing.T) {
	shell := func(ctx context.Context, name string, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "sh", "-c", "exec no-such-"+name)
	}
	err := Convert(t.Context(), Image{"/in", images.Raw}, Image{"/out", images.Raw}, Options{Command: shell})
	if !errors.Is(err, ErrMissing) {
		t.Errorf("%v", err)
	} else {
		t.Log(err)
	}
}
