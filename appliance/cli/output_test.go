package cli

import (
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 10 << 10: "10.0 KiB", 1<<20 - 1: "1.00 MiB", 52 << 20: "52.0 MiB", 1 << 62: "4.00 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0.0s", 1530 * time.Millisecond: "1.5s", 245 * time.Second: "4m05s", 193 * time.Minute: "3h13m"} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %s, want %s", d, got, want)
		}
	}
}

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{"plain é 中": "plain é 中", "a\x1b[31mb": `a\x1b[31mb`, "caf\xe9": `caf\xe9`, "two\nlines": `two\nlines`, "\u202eabc": `\u202eabc`} {
		if got := safe(in); got != want {
			t.Errorf("safe(%q) = %s, want %s", in, got, want)
		}
	}
}

// TestEveryCommandIsDocumented holds every command to a short text, and to the rule that leaves run something.
func TestEveryCommandIsDocumented(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no short text", c.CommandPath())
		}
		if len(c.Commands()) == 0 && c.RunE == nil && c.Long == "" {
			t.Errorf("%s does nothing", c.CommandPath())
		}
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	a := &app{}
	walk(a.root())
}
