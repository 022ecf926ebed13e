package config

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMaintenance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cofferd.toml")
	write(t, path, `
[maintenance]
start = "06:30"
check_share = 0.1
check_rate = "50 MiB"
check_overdue = "14d"
gc_budget = "90m"
gc_sparse = 0.5
`)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Maintenance{Start: Clock(6*time.Hour + 30*time.Minute), CheckShare: 0.1, CheckRate: 50 << 20,
		CheckOverdue: Duration(14 * 24 * time.Hour), GCBudget: Duration(90 * time.Minute), GCSparse: 0.5}
	if c.Maintenance != want {
		t.Errorf("read %+v", c.Maintenance)
	}
	for _, bad := range []string{`start = "25:00"`, `start = 8`, `check_overdue = "a month"`, `check_overdue = 35`, `gc_budget = "-1h"`, `gc_budget = "999999999d"`} {
		write(t, path, "[maintenance]\n"+bad)
		if _, err := Load(path); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	c.Maintenance.CheckShare, c.Maintenance.GCSparse = 2, -1
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "check_share") || !strings.Contains(err.Error(), "gc_sparse") {
		t.Errorf("faults: %v", err)
	}
}

func TestMaintenanceTextForms(t *testing.T) {
	for text, want := range map[string]Clock{"08:00": DefaultStart, "off": Off, "00:00": 0, "23:59": Clock(24*time.Hour - time.Minute)} {
		var c Clock
		if err := c.Set(text); err != nil || c != want || c.String() != text {
			t.Errorf("%s is read as %v (%v)", text, c, err)
		}
	}
	for text, want := range map[string]Duration{"35d": DefaultCheckOverdue, "6h0m0s": DefaultGCBudget} {
		var d Duration
		if err := d.Set(text); err != nil || d != want || d.String() != text {
			t.Errorf("%s is read as %v (%v)", text, d, err)
		}
	}
}
