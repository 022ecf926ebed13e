package maintenance

import (
	"errors"
	"strings"
	"testing"
	"time"

	"coffer/dedup"
)

func TestJudge(t *testing.T) {
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	ago := func(days int) time.Time { return now.AddDate(0, 0, -days) }
	const days = 24 * time.Hour
	fresh := dedup.CheckState{Objects: ago(1), Deep: ago(20)}
	for name, c := range map[string]struct {
		facts Facts
		state State
		words []string // of the reasons, in their order
	}{
		"empty":              {Facts{Overdue: 35 * days}, Green, nil},
		"checked":            {Facts{Overdue: 35 * days, Oldest: ago(400), Check: fresh}, Green, nil},
		"young":              {Facts{Overdue: 35 * days, Oldest: ago(30)}, Green, nil},
		"never":              {Facts{Overdue: 35 * days, Oldest: ago(36)}, Yellow, []string{"never checked"}},
		"pages overdue":      {Facts{Overdue: 35 * days, Oldest: ago(400), Check: dedup.CheckState{Objects: ago(1), Pages: ago(36)}}, Yellow, []string{"overdue"}},
		"objects overdue":    {Facts{Overdue: 35 * days, Oldest: ago(400), Check: dedup.CheckState{Objects: ago(36), Pages: ago(1)}}, Yellow, []string{"overdue"}},
		"nobody cares":       {Facts{Oldest: ago(400)}, Green, nil},
		"old data is gone":   {Facts{Overdue: 35 * days, Oldest: ago(3), Check: dedup.CheckState{Objects: ago(50), Pages: ago(50)}}, Green, nil},
		"damaged":            {Facts{Damage: 2}, Red, []string{"2 damaged"}},
		"damaged and late":   {Facts{Damage: 2, Overdue: days, Oldest: ago(9)}, Red, []string{"2 damaged", "never"}},
		"full":               {Facts{Full: true}, Unwritable, []string{"reserve"}},
		"disk fault":         {Facts{Fault: errors.New("input/output error")}, Unwritable, []string{"input/output error"}},
		"everything at once": {Facts{Full: true, ReadOnly: true, Damage: 1, Overdue: days, Oldest: ago(9)}, Unwritable, []string{"no writes", "reserve", "1 damaged", "never"}},
	} {
		c.facts.Now = now
		state, reasons := Judge(c.facts)
		if state != c.state || len(reasons) != len(c.words) {
			t.Errorf("%s: %s for %v, want %s for %v", name, state, reasons, c.state, c.words)
			continue
		}
		for i, w := range c.words {
			if !strings.Contains(reasons[i].Message, w) || reasons[i].Hint == "" {
				t.Errorf("%s: reason %d is %q (%q), want %q", name, i, reasons[i].Message, reasons[i].Hint, w)
			}
		}
	}
}
