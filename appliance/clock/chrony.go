package clock

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"strconv"
	"time"
)

// What Chrony asks of the machine's time service before it is believed.
const (
	minSources = 2               // that authenticate and that chrony follows: one alone can lie
	maxOffset  = time.Second     // between the machine's clock and what they say
	askTimeout = 5 * time.Second // for an answer of chronyc
)

// Chrony asks the machine's chronyd. It agrees when at least two sources that authenticate (NTS or a symmetric key) are
// selected or combined and the machine's clock is within a second of them. The formats are those of chronyc(1), -c.
func Chrony(ctx context.Context) error {
	return chrony(ctx, func(ctx context.Context, report string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		out, err := exec.CommandContext(ctx, "chronyc", "-n", "-c", report).Output()
		if err != nil {
			return nil, fmt.Errorf("chronyc %s: %w", report, err)
		}
		return out, nil
	})
}

func chrony(ctx context.Context, ask func(ctx context.Context, report string) ([]byte, error)) error {
	auth, err := rows(ctx, ask, "authdata", 10)
	if err != nil {
		return err
	}
	sources, err := rows(ctx, ask, "sources", 10)
	if err != nil {
		return err
	}
	tracking, err := rows(ctx, ask, "tracking", 14)
	if err != nil {
		return err
	}
	if n := agreeing(auth, sources); n < minSources {
		return fmt.Errorf("%d authenticated time sources agree, %d are needed", n, minSources)
	}
	return inStep(tracking)
}

// rows asks for a report and returns its lines, each with at least the given number of fields.
func rows(ctx context.Context, ask func(context.Context, string) ([]byte, error), report string, fields int) ([][]string, error) {
	out, err := ask(ctx, report)
	if err != nil {
		return nil, err
	}
	r := csv.NewReader(bytes.NewReader(out))
	r.FieldsPerRecord = -1
	lines, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("chronyc %s: %w", report, err)
	}
	for _, l := range lines {
		if len(l) < fields {
			return nil, fmt.Errorf("chronyc %s: a line of %d fields, want %d", report, len(l), fields)
		}
	}
	return lines, nil
}

// agreeing counts the sources that chrony follows and that authenticate.
func agreeing(auth, sources [][]string) int {
	authenticated := make(map[string]bool)
	for _, l := range auth { // name, mode, …
		authenticated[l[0]] = l[1] == "NTS" || l[1] == "SK"
	}
	n := 0
	for _, l := range sources { // mode, state, name, …; state * is selected, + combined
		if (l[1] == "*" || l[1] == "+") && authenticated[l[2]] {
			n++
		}
	}
	return n
}

// inStep holds the machine's clock against what chrony makes of its sources.
func inStep(tracking [][]string) error {
	if len(tracking) != 1 || tracking[0][13] != "Normal" {
		return errors.New("the machine's clock is not synchronised")
	}
	offset, err := strconv.ParseFloat(tracking[0][4], 64)
	if err != nil || math.Abs(offset) > maxOffset.Seconds() {
		return fmt.Errorf("the machine's clock is off by %s s", tracking[0][4])
	}
	return nil
}
