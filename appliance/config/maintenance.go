package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Maintenance says when and how the store is maintained.
type Maintenance struct {
	// Start is NEWDAY on the server's clock: when the daily maintenance begins.
	Start Clock `toml:"start"`
	// CheckShare is the part of all containers that the daily check reads, 0 to 1; 0 reads none.
	CheckShare float64 `toml:"check_share"`
	// CheckRate and GCRate are bytes a second; 0: no limit.
	CheckRate Size `toml:"check_rate"`
	GCRate    Size `toml:"gc_rate"`
	// CheckOverdue is the age of the last complete check from which the store is yellow; 0: never.
	CheckOverdue Duration `toml:"check_overdue"`
	// GCSparse is the live share of a container below which garbage collection rewrites it; 0: the store's default.
	GCSparse float64 `toml:"gc_sparse"`
	// GCBudget is the time after which a garbage collection stops, to go on the next time; 0: none.
	GCBudget Duration `toml:"gc_budget"`
}

// Defaults of the keys of maintenance: the shares of four weeks make a whole check, which is overdue after five.
const (
	DefaultStart        = Clock(8 * time.Hour)
	DefaultCheckShare   = 1.0 / 28
	DefaultCheckOverdue = Duration(35 * 24 * time.Hour)
	DefaultGCBudget     = Duration(6 * time.Hour)
)

// DefaultMaintenance is the maintenance of an appliance without a configuration file.
func DefaultMaintenance() Maintenance {
	return Maintenance{Start: DefaultStart, CheckShare: DefaultCheckShare, CheckOverdue: DefaultCheckOverdue, GCBudget: DefaultGCBudget}
}

func (m Maintenance) validate(fault func(key, format string, args ...any)) {
	if m.CheckShare < 0 || m.CheckShare > 1 {
		fault("maintenance.check_share", "%g is not between 0 and 1", m.CheckShare)
	}
	if m.GCSparse < 0 || m.GCSparse > 1 {
		fault("maintenance.gc_sparse", "%g is not between 0 and 1", m.GCSparse)
	}
}

// Clock is a time of the day since midnight, in the file like "08:00"; Off, in the file "off", is none.
type Clock time.Duration

// Off is no time of the day.
const Off Clock = -1

// String prints the time as the file has it.
func (c Clock) String() string {
	if c == Off {
		return "off"
	}
	d := time.Duration(c)
	return fmt.Sprintf("%02d:%02d", int(d.Hours()), int(d.Minutes())%60)
}

// UnmarshalTOML takes a string.
func (c *Clock) UnmarshalTOML(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("time of day %v is not a string such as \"08:00\"", v)
	}
	return c.Set(s)
}

// Set parses the text form.
func (c *Clock) Set(text string) error {
	if text == "off" {
		*c = Off
		return nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return fmt.Errorf("time of day %q is not like \"08:00\", nor \"off\"", text)
	}
	*c = Clock(time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute)
	return nil
}

// Duration is a span of time, in the file a string like "35d", "6h" or "90m".
type Duration time.Duration

// String prints whole days as such.
func (d Duration) String() string {
	const day = Duration(24 * time.Hour)
	if d != 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return time.Duration(d).String()
}

// UnmarshalTOML takes a string.
func (d *Duration) UnmarshalTOML(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("duration %v is not a string such as \"6h\" or \"35d\"", v)
	}
	return d.Set(s)
}

// maxDays is beyond any use, and far from what a Duration holds.
const maxDays = 100_000

// Set parses the text form.
func (d *Duration) Set(text string) error {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > maxDays {
			return fmt.Errorf("duration %q is not a number of days", text)
		}
		*d = Duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	n, err := time.ParseDuration(text)
	if err != nil || n < 0 {
		return fmt.Errorf("duration %q is not like \"6h\", \"90m\" or \"35d\"", text)
	}
	*d = Duration(n)
	return nil
}
