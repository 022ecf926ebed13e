package main

import (
	"fmt"
	"slices"
	"strings"
)

// measurement is one step of one tool in one round.
type measurement struct {
	wall, cpu float64 // seconds
	anon, hwm int64   // bytes, of the largest process
	each      []int64 // anonymous memory of the tool's lasting processes
	stored    int64   // bytes that the repository grew by
}

type results struct {
	steps []string
	tools []string
	by    map[[2]string][]*measurement
}

func newResults() *results { return &results{by: map[[2]string][]*measurement{}} }

func (r *results) add(step, tool string, m *measurement) {
	if !slices.Contains(r.steps, step) {
		r.steps = append(r.steps, step)
	}
	if !slices.Contains(r.tools, tool) {
		r.tools = append(r.tools, tool)
	}
	key := [2]string{step, tool}
	r.by[key] = append(r.by[key], m)
}

func (r *results) last(step, tool string) *measurement {
	all := r.by[[2]string{step, tool}]
	return all[len(all)-1]
}

// spread is the median of a figure with its least and greatest value.
type spread struct{ lo, mid, hi float64 }

func (r *results) spread(step, tool string, figure func(*measurement) float64) (spread, bool) {
	var v []float64
	for _, m := range r.by[[2]string{step, tool}] {
		v = append(v, figure(m))
	}
	if len(v) == 0 {
		return spread{}, false
	}
	slices.Sort(v)
	return spread{v[0], median(v), v[len(v)-1]}, true
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func wall(m *measurement) float64     { return m.wall }
func cpu(m *measurement) float64      { return m.cpu }
func storedMB(m *measurement) float64 { return float64(m.stored) / 1e6 }
func anonMiB(m *measurement) float64  { return float64(m.anon) / (1 << 20) }
func hwmMiB(m *measurement) float64   { return float64(m.hwm) / (1 << 20) }

func (r *results) print(set string, rounds int) {
	fmt.Printf("\n## %s: medians of %d alternating rounds (least–greatest)\n\n", set, rounds)
	fmt.Println("| step | tool | seconds | CPU seconds | stored MB | peak RssAnon MiB | VmHWM MiB |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, step := range r.steps {
		for _, tool := range append([]string{"coffer"}, slices.DeleteFunc(slices.Clone(r.tools), func(t string) bool { return t == "coffer" })...) {
			w, ok := r.spread(step, tool, wall)
			if !ok {
				continue
			}
			c, _ := r.spread(step, tool, cpu)
			s, _ := r.spread(step, tool, storedMB)
			a, _ := r.spread(step, tool, anonMiB)
			h, _ := r.spread(step, tool, hwmMiB)
			fmt.Printf("| %s | %s | %.2f (%.2f–%.2f) | %.2f | %.1f | %.0f | %.0f |\n", step, tool, w.mid, w.lo, w.hi, c.mid, s.mid, a.mid, h.mid)
		}
	}
	r.printRatios()
	r.printMemory()
}

// ratio compares a figure of coffer with a peer's, round by round.
func (r *results) ratio(step, stepB, peer string, figure func(*measurement) float64) (spread, bool) {
	ours, theirs := r.by[[2]string{step, "coffer"}], r.by[[2]string{stepB, peer}]
	var v []float64
	for i := range min(len(ours), len(theirs)) {
		if d := figure(theirs[i]); d > 0 {
			v = append(v, figure(ours[i])/d)
		}
	}
	if len(v) == 0 {
		return spread{}, false
	}
	slices.Sort(v)
	return spread{v[0], median(v), v[len(v)-1]}, true
}

func (r *results) printRatios() {
	goals := []struct {
		what, step, stepB, peer string
		figure                  func(*measurement) float64
		goal                    float64
	}{
		{"FULL, wall time", "FULL", "FULL", "*", wall, 0.6},
		{"FULL, stored bytes", "FULL", "FULL", "*", storedMB, 0.9},
		{"unchanged INCR, wall time", "INCR, nothing changed", "INCR, nothing changed", "*", wall, 0.3},
		{"FULL after 1 %, stored bytes", "FULL after 1 %", "FULL after 1 %", "restic", storedMB, 1.2},
		{"restore, wall time", "restore", "restore", "*", wall, 0.5},
		{"restore, wall time", "restore", "restore", "cp -a", wall, 1.3},
		{"subtree from the mount / restoring it", "cp -a of the subtree from the mount", "restore of a subtree", "coffer", wall, 1.5},
	}
	fmt.Println("\n| ratio | to | median (least–greatest) | goal |\n|---|---|---|---|")
	for _, g := range goals {
		peers := []string{g.peer}
		if g.peer == "*" { // the best of the peers
			peers = []string{"restic", "borg"}
		}
		for _, peer := range peers {
			if s, ok := r.ratio(g.step, g.stepB, peer, g.figure); ok {
				fmt.Printf("| %s | %s | %.2f (%.2f–%.2f) | %.1f |\n", g.what, peer, s.mid, s.lo, s.hi, g.goal)
			}
		}
	}
}

// printMemory tells the anonymous memory of cofferd and the agent apart.
func (r *results) printMemory() {
	var daemon, agent int64
	for key, all := range r.by {
		if key[1] != "coffer" {
			continue
		}
		for _, m := range all {
			if len(m.each) == 2 {
				daemon, agent = max(daemon, m.each[0]), max(agent, m.each[1])
			}
		}
	}
	if daemon > 0 {
		fmt.Println(strings.Join([]string{"", fmt.Sprintf("Highest RssAnon of any step: cofferd %d MiB, agent %d MiB.", daemon>>20, agent>>20)}, "\n"))
	}
}
