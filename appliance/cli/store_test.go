package cli

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/api/server/servertest"
)

// endJobs ends every maintenance job as a test wants it, as soon as somebody watches it.
func (u *shellUser) endJobs(state api.RunState, reason, hint string, report api.MaintenanceReport) {
	ctx := u.t.Context()
	go func() {
		for ctx.Err() == nil {
			jobs, _ := u.r.Backend.MaintenanceJobs(ctx, api.MaintenanceFilter{State: api.RunActive, Limit: 10})
			for _, m := range jobs.Items {
				for u.r.Backend.Watchers() == 0 && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				u.r.Backend.UpdateMaintenance(m.ID, func(m *api.Maintenance) {
					m.Progress = api.MaintenanceProgress{Phase: "sweep", Done: 3, Total: 12, Unit: "containers", Rate: 1.5, SecondsLeft: 6}
				})
				u.r.Backend.UpdateMaintenance(m.ID, func(m *api.Maintenance) { m.Report, m.Hint = report, hint })
				u.r.Backend.EndMaintenance(m.ID, state, reason)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
}

func transcript(line string, code int, out, errOut string) string {
	if errOut != "" {
		errOut = "--- stderr\n" + errOut
	}
	return fmt.Sprintf("$ coffer %s\n%s%s--- exit %d\n\n", line, out, errOut, code)
}

func TestStoreOutput(t *testing.T) {
	u := newUser(t)
	u.login("root")
	frame := int64(12)
	damage := api.DamageReport{Harms: api.HarmKnown, Hint: "the next backup stores anew what it finds on its client",
		Places: []api.Damage{
			{Container: "0000000100000003", Kind: "data", Frame: &frame, Digests: []string{"00ff", "01ff"}, Reason: "checksum", FoundAt: servertest.Epoch},
			{Container: "0000000100000004", Kind: "node", Reason: "directory does not read", FoundAt: servertest.Epoch},
			{Object: "manifests/b2c3d4e5f6071829", Saveset: "b2c3d4e5f6071829", Reason: "seal", FoundAt: servertest.Epoch}},
		Savesets: []api.DamagedSaveset{{Saveset: "a1b2c3d4e5f60718", Client: "web1", Task: "web1-etc", Level: api.LevelFull, StartedAt: servertest.Epoch, More: 1200,
			Files: []api.DamagedFile{{Path: "/etc/fstab"}, {Path: "/etc/caf\uFFFD", PathRaw: []byte("/etc/caf\xe9")}}}}}
	var all strings.Builder
	for _, line := range []string{"store status", "store damage", "store gc --detach", "store status", "store gc", "store jobs", "store jobs --kind gc --limit 1 --json",
		"store cancel m-0004", "store cancel m-0004", "store watch m-0004", "store watch m-0001", "store watch none", "store reindex", "store check --objects --pages",
		"store check --share 150%", "store gc --rate fast", "store gc now", "DAMAGED", "store damage", "store damage --json", "store status",
		"store dismiss manifests/none", "store dismiss manifests/none --yes"} {
		if line == "DAMAGED" {
			u.r.Backend.Damaged = damage
			continue
		}
		code, out, errOut := u.run("", strings.Fields(line)...)
		all.WriteString(transcript(line, code, out, errOut))
	}
	golden(t, "store.txt", all.String())
}

// TestFollowMaintenance shows how jobs that are waited for end, in words and exit codes.
func TestFollowMaintenance(t *testing.T) {
	var all strings.Builder
	for _, test := range []struct {
		line         string
		state        api.RunState
		reason, hint string
		report       api.MaintenanceReport
		code         int
	}{
		{"store gc --sparse 0.5 --budget 90s --rate 50MiB", api.RunSuccess, "", "", api.MaintenanceReport{GC: &api.GCReport{Savesets: 3, MarkedChunks: 4321, DeadChunks: 100, Deleted: 2,
			Copied: 1, Kept: 12, Remains: 1, FreedBytes: 64 << 20, CopiedBytes: 5 << 20, Complete: true}}, exitOK},
		{"store check --pages --share 10%", api.RunWarning, "2 damaged places found", "see: coffer store damage", api.MaintenanceReport{Check: &api.CheckReport{Containers: 12, Frames: 1300,
			Bytes: 384 << 20, Savesets: 3, References: 4321, Found: 2}}, exitWarning},
		{"store check --json", api.RunCancelled, "cancelled by root", "", api.MaintenanceReport{}, exitRunFailed},
		{"store repair --from /mnt/replica,/mnt/key", api.RunSuccess, "", "", api.MaintenanceReport{Repair: &api.RepairReport{Local: 1, Salvaged: 2, Fetched: 3, FetchedBytes: 3 << 20}}, exitOK},
		{"store usage", api.RunError, "the disk of the catalog is full", "make space", api.MaintenanceReport{Usage: &api.StoreUsage{LogicalBytes: 156 << 20, StoredBytes: 37 << 20, DedupRatio: 2,
			CompressionRatio: 2.1, SharedBytes: 40 << 20, GarbageBytes: 2 << 20, ContainerBytes: 39 << 20}}, exitRunFailed},
	} {
		u := newUser(t)
		u.login("root")
		u.endJobs(test.state, test.reason, test.hint, test.report)
		code, out, errOut := u.run("", strings.Fields(test.line)...)
		if code != test.code {
			t.Errorf("%s: exit code %d, want %d", test.line, code, test.code)
		}
		all.WriteString(transcript(test.line, code, out, errOut))
	}
	golden(t, "storejobs.txt", all.String())
}

func TestHowFar(t *testing.T) {
	for want, p := range map[string]api.MaintenanceProgress{
		"":                                 {},
		" mark":                            {Phase: "mark"},
		" mark 1,200 savesets":             {Phase: "mark", Done: 1200, Unit: "savesets"},
		" 3 of 12 containers (25 %) 0.4/s": {Done: 3, Total: 12, Unit: "containers", Rate: 0.4},
		" pages 1.00 MiB of 4.00 MiB (25 %) 512.0 KiB/s 6.0s left": {Phase: "pages", Done: 1 << 20, Total: 4 << 20, Unit: "bytes", Rate: 512 << 10, SecondsLeft: 6},
	} {
		if got := howFar(p); got != want {
			t.Errorf("%+v shows as %q, want %q", p, got, want)
		}
	}
}

func TestInterruptLeavesTheJobGoing(t *testing.T) {
	u := newUser(t)
	u.login("root")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for u.r.Backend.Watchers() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	var out, errOut strings.Builder
	code := Run(ctx, []string{"store", "gc"}, Streams{In: strings.NewReader(""), Out: &out, Err: &errOut, Env: func(n string) string { return u.env[n] }, Now: sampleTime})
	if code != exitInterrupted || !strings.Contains(errOut.String(), "goes on") {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
	if m, _ := u.r.Backend.MaintenanceJob(t.Context(), "m-0004"); m.State != api.RunActive {
		t.Errorf("the job is %s", m.State)
	}
}
