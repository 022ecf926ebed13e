package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"coffer/api"
)

// print writes v as JSON when --json was given, otherwise what plain writes.
func (a *app) print(v any, plain func(w io.Writer)) error {
	if !a.json {
		var b strings.Builder
		plain(&b)
		_, err := io.WriteString(a.Out, b.String())
		return err
	}
	enc := json.NewEncoder(a.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printList writes a list as {"items": [...]} or as a table.
func printList[T any](a *app, items []T, empty string, t *table, row func(T) []string) error {
	if items == nil {
		items = []T{}
	}
	return a.print(api.Page[T]{Items: items}, func(w io.Writer) {
		if len(items) == 0 {
			fmt.Fprintln(w, empty)
			return
		}
		for _, it := range items {
			t.add(row(it)...)
		}
		t.write(w)
	})
}

// say writes a line for people; nothing with --json.
func (a *app) say(format string, args ...any) {
	if !a.json {
		fmt.Fprintf(a.Out, format+"\n", args...)
	}
}

// note writes a line for people on standard error.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.Err, format+"\n", args...) }

// table is text in columns. A heading that begins with ">" makes its column right-aligned.
type table struct {
	right []bool
	rows  [][]string
}

func newTable(headings ...string) *table {
	t := &table{right: make([]bool, len(headings))}
	head := make([]string, len(headings))
	for i, h := range headings {
		head[i], t.right[i] = strings.CutPrefix(h, ">")
	}
	t.rows = append(t.rows, head)
	return t
}

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = safe(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t *table) write(w io.Writer) {
	widths := make([]int, len(t.right))
	for _, r := range t.rows {
		for i, c := range r {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, r := range t.rows {
		var line strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if i > 0 {
				line.WriteString("  ")
			}
			if t.right[i] {
				line.WriteString(pad + c)
			} else {
				line.WriteString(c + pad)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// fields writes "name: value" lines with the values in one column; empty values are left out.
func fields(w io.Writer, pairs ...string) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			width = max(width, len(pairs[i]))
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width+1, pairs[i]+":", safe(pairs[i+1]))
		}
	}
}

// safe makes text harmless for a terminal: control characters, and bytes that are not UTF-8, are shown as escapes.
func safe(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			b.WriteString(s[:n])
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// size shows bytes in binary units with three digits or more.
func size(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, unit := float64(n)/1024, 0
	for v >= 999.95 && unit < 5 {
		v /= 1024
		unit++
	}
	digits := 1
	if v < 10 {
		digits = 2
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + string("KMGTPE"[unit]) + "iB"
}

// count shows a number with thousands apart.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plural shows a number with its noun.
func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + many
}

// clock shows a time in the zone of the caller; the zero time is "-".
func (a *app) clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.In(a.Zone).Format("2006-01-02 15:04:05")
}

func (a *app) clockOr(t *time.Time, other string) string {
	if t == nil {
		return other
	}
	return a.clock(*t)
}

// day shows the date of a time.
func (a *app) day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.In(a.Zone).Format("2006-01-02")
}

// span shows a duration: 0.4s, 12.3s, 4m05s, 3h12m.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// words joins arguments so that a shell would read them again as they are.
func words(args []string) string {
	out := make([]string, len(args))
	for i, w := range args {
		out[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$&|;<>()*?[]#~`!{}") {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}
