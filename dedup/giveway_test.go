package dedup

import (
	"testing"
	"time"
)

// TestPace has maintenance run for ten seconds in each way that a busy machine may treat it: it keeps to its share, and gets
// it where the machine gives it a processor in time.
func TestPace(t *testing.T) {
	const length = 10 * time.Second
	for _, c := range []struct {
		name             string
		part, wait, late time.Duration // processor time of a part, what it waits for beside, how late it wakes up
		full             bool          // it gets its whole share
	}{
		{"small parts", 200 * time.Microsecond, 0, 0, true},
		{"parts", 3 * time.Millisecond, 0, 0, true},
		{"large parts", 80 * time.Millisecond, 0, 0, true},
		{"woken late", 3 * time.Millisecond, 0, 10 * time.Millisecond, true},
		{"waits for the disk", 3 * time.Millisecond, 5 * time.Millisecond, 0, true},
		{"waits for the disk most of the time", time.Millisecond, 20 * time.Millisecond, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p pace
			start := time.Unix(1764000000, 0)
			now, used := start, time.Duration(0)
			for now.Sub(start) < length {
				now, used = now.Add(c.part+c.wait), used+c.part
				if rest := p.spend(c.part, now); rest > 0 {
					now = now.Add(rest + c.late)
				}
			}
			share := time.Duration(float64(now.Sub(start)) * maintenanceShare)
			if used > share+maxCredit+restFrom {
				t.Errorf("it used %v of %v", used, share)
			}
			if c.full && used < share-share/20 {
				t.Errorf("it used only %v of %v", used, share)
			}
		})
	}
}
