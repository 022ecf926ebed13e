package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

// table is the figures, in the order in which they came.
type table struct{ rows []row }

type row struct{ part, figure, value, goal, verdict string }

// add enters a figure without a goal.
func (t *table) add(part, figure, format string, a ...any) {
	t.enter(row{part, figure, fmt.Sprintf(format, a...), "", ""})
}

// enter shows a figure as soon as it is there, too: all of them take long.
func (t *table) enter(r row) {
	t.rows = append(t.rows, r)
	fmt.Fprintf(os.Stderr, "%s: %s: %s %s %s\n", r.part, r.figure, r.value, r.goal, r.verdict)
}

// atMost and atLeast enter a figure with its goal.
func (t *table) atMost(part, figure, format string, v, goal float64) {
	t.judge(part, figure, fmt.Sprintf(format, v), "at most "+fmt.Sprintf(format, goal), v <= goal)
}

func (t *table) atLeast(part, figure, format string, v, goal float64) {
	t.judge(part, figure, fmt.Sprintf(format, v), "at least "+fmt.Sprintf(format, goal), v >= goal)
}

func (t *table) judge(part, figure, value, goal string, met bool) {
	verdict := "met"
	if !met {
		verdict = "**missed**"
	}
	t.enter(row{part, figure, value, goal, verdict})
}

func (t *table) print(w io.Writer) {
	fmt.Fprintln(w, "| part | figure | value | goal | |")
	fmt.Fprintln(w, "|---|---|---|---|---|")
	for _, r := range t.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", r.part, r.figure, r.value, r.goal, r.verdict)
	}
}

// machine says what the figures were taken on, and how busy it was.
func machine() string {
	load := "unknown"
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return fmt.Sprintf("%d processors, %s; load when it began: %s", runtime.GOMAXPROCS(0), runtime.Version(), load)
}
