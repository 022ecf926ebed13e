package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// results are the values of each step by server, in the order of the rounds.
type results struct {
	values map[[2]string][]float64
	cpu    map[[2]string][]float64 // seconds of the server's processor per MB or request
}

func newResults() *results {
	return &results{values: map[[2]string][]float64{}, cpu: map[[2]string][]float64{}}
}

func (r *results) add(step, server string, v, cpu float64) {
	k := [2]string{step, server}
	r.values[k] = append(r.values[k], v)
	r.cpu[k] = append(r.cpu[k], cpu)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// print shows medians, and ratios: the median of the rounds' own ratios, because rounds differ more than servers do where
// others use the machine.
func (r *results) print(w io.Writer, servers []server) {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	head, line := "| step |", "|---|"
	for _, s := range servers {
		head += fmt.Sprintf(" %s |", s.name())
		line += "---|"
	}
	for _, s := range servers[1:] {
		head += fmt.Sprintf(" of %s |", s.name())
		line += "---|"
	}
	fmt.Fprintf(t, "%s goal | µs of CPU |\n%s---|---|\n", head, line)
	for _, st := range steps {
		row := fmt.Sprintf("| %s, %s |", st.title(), st.unit)
		for _, s := range servers {
			row += number(r.values[[2]string{st.title(), s.name()}])
		}
		for _, s := range servers[1:] {
			row += r.ratio(st, servers[0].name(), s.name())
		}
		fmt.Fprintf(t, "%s %s | %s |\n", row, st.goal(), r.processor(st, servers))
	}
	_ = t.Flush() // standard output
}

func number(v []float64) string {
	if len(v) == 0 {
		return " |"
	}
	return fmt.Sprintf(" %.0f |", median(v))
}

func (r *results) ratio(st step, ours, theirs string) string {
	a, b := r.values[[2]string{st.title(), ours}], r.values[[2]string{st.title(), theirs}]
	var v []float64
	for i := range min(len(a), len(b)) {
		v = append(v, a[i]/b[i])
	}
	if len(v) == 0 {
		return " |"
	}
	return fmt.Sprintf(" %.2f (%.2f–%.2f) |", median(v), slices.Min(v), slices.Max(v))
}

func (s step) goal() string {
	switch {
	case s.nbdkit > 0:
		return fmt.Sprintf("%.1f of nbdkit", s.nbdkit)
	case s.qemu > 0:
		return fmt.Sprintf("%.1f of qemu-nbd", s.qemu)
	}
	return ""
}

// processor is what the servers used per MB or request.
func (r *results) processor(st step, servers []server) string {
	text := ""
	for i, s := range servers {
		if i > 0 {
			text += " / "
		}
		if v := r.cpu[[2]string{st.title(), s.name()}]; len(v) > 0 && !st.write {
			text += fmt.Sprintf("%.0f", 1e6*median(v))
		} else {
			text += "–"
		}
	}
	return text
}
