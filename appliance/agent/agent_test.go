//go:build linux

package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/appliance/agent"
	"coffer/appliance/internal/nastytree"
	"coffer/appliance/internal/treecmp"
	"coffer/appliance/sms"
)

func TestBackupAndRestoreOverTheWire(t *testing.T) {
	needRoot(t)
	a := newAppliance(t, 0)
	stop := a.agent()
	src := cleanDir(t)
	if _, err := nastytree.Make(src, nastytree.Options{Seed: 3}); err != nil {
		t.Fatal(err)
	}
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}, ReadAll: true}
	full, k := a.backup(order, nil)
	for _, n := range k.notices {
		t.Errorf("backup: %+v", n)
	}
	if k.commit.SourceID == "" {
		t.Error("the source has no identity")
	}
	if _, err := nastytree.Mutate(src, 1, nastytree.Options{Seed: 3}); err != nil {
		t.Fatal(err)
	}
	order.ReadAll = false
	incr, k := a.backup(order, &full)
	t.Logf("INCR: %+v", k.commit.Counters)
	dst := cleanDir(t)
	_, k = a.restore(incr, sms.RestoreOrder{Target: sms.Path(dst)})
	for _, n := range k.notices {
		t.Errorf("restore: %+v", n)
	}
	treecmp.Check(t, src, filepath.Join(dst, src), treecmp.Options{})
	if out, _ := a.restore(incr, sms.RestoreOrder{Target: sms.Path(dst), Verify: true}); out.Different != 0 {
		t.Errorf("verify found %d differences", out.Different)
	}
	if err := stop(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
}

func TestEnrol(t *testing.T) {
	a := newAppliance(t, 0)
	dir := t.TempDir()
	opts := agent.EnrolOptions{Server: a.addr, Token: a.newToken(), StateDir: dir}
	if _, err := agent.Enrol(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "identity.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity file: %v, %v", info.Mode(), err)
	}
	if _, err := agent.Enrol(t.Context(), opts); !errors.Is(err, agent.ErrEnrolled) {
		t.Errorf("enrolled twice: %v", err)
	}
	opts.Force = true
	if _, err := agent.Enrol(t.Context(), opts); sms.CodeOf(err) != sms.CodeAuth {
		t.Errorf("a used token: %v", err)
	}
	other := newAppliance(t, 0)
	opts.Token = other.newToken() // its authority is not that of the server
	if _, err := agent.Enrol(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "trusts") {
		t.Errorf("enrolled with the wrong appliance: %v", err)
	}
	if err := agent.Run(t.Context(), agent.Config{StateDir: t.TempDir()}); !errors.Is(err, agent.ErrNotEnrolled) {
		t.Errorf("run without an identity: %v", err)
	}
}

func TestCertificateRenewsItself(t *testing.T) {
	a := newAppliance(t, time.Hour) // certificates start a day ago: two thirds are over at once
	a.agent()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		a.mu.Lock()
		n := a.renewed
		a.mu.Unlock()
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the certificate was not renewed")
		}
	}
}

func TestRevokedAgentEnds(t *testing.T) {
	a := newAppliance(t, 0)
	dir := t.TempDir()
	if _, err := agent.Enrol(t.Context(), agent.EnrolOptions{Server: a.addr, Token: a.newToken(), StateDir: dir}); err != nil {
		t.Fatal(err)
	}
	stop := a.launch(dir)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.revokeAll = true
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := agent.Run(ctx, agent.Config{StateDir: dir})
	if err == nil || !strings.Contains(err.Error(), "enrol again") {
		t.Errorf("a revoked agent ended with %v", err)
	}
}

// A stopped agent ends its runs cancelled, and tells the appliance.
func TestStopCancelsRuns(t *testing.T) {
	a := newAppliance(t, 0)
	stop := a.agent()
	r, k := a.startBackup(sms.BackupOrder{TaskType: sms.TaskStream, Command: []string{"echo begun; sleep 100"}}, nil)
	<-k.opened
	start := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	res := r.Wait(t.Context())
	if res.Outcome == nil || res.Outcome.Code != "cancelled" {
		t.Errorf("the run ended with %+v, %v", res.Outcome, res.Err)
	}
	if err := <-ended; err != nil || time.Since(start) > time.Minute {
		t.Errorf("the agent ended after %v with %v", time.Since(start), err)
	}
}

func TestCancelFromTheAppliance(t *testing.T) {
	a := newAppliance(t, 0)
	a.agent()
	r, k := a.startBackup(sms.BackupOrder{TaskType: sms.TaskStream, Command: []string{"echo begun; sleep 100"}}, nil)
	<-k.opened
	r.Cancel("enough")
	if res := r.Wait(t.Context()); res.Committed != nil {
		t.Errorf("the run ended with %+v", res)
	}
	// The agent is free for the next one.
	a.backup(sms.BackupOrder{TaskType: sms.TaskStream, Command: []string{"echo done"}}, nil)
}

func TestFailuresAreTold(t *testing.T) {
	a := newAppliance(t, 0)
	a.agent()
	none := t.TempDir() + "/none"
	for _, tc := range []struct {
		name, code, says string
		order            sms.BackupOrder
	}{
		{"source", "source_missing", none, sms.BackupOrder{Sources: []sms.Path{sms.Path(none)}}},
		{"command", "command_failed", "oops", sms.BackupOrder{TaskType: sms.TaskStream, Command: []string{"echo oops >&2; false"}}},
		{"pre", "command_failed", "not now", sms.BackupOrder{Sources: []sms.Path{"/etc/hostname"}, PreCommand: []string{"echo not now; exit 1"}}},
		{"type", "bad_order", "unheard", sms.BackupOrder{TaskType: "unheard"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, _ := a.startBackup(tc.order, nil)
			res := r.Wait(t.Context())
			if res.Outcome == nil || res.Outcome.Code != tc.code || !strings.Contains(res.Outcome.Message, tc.says) {
				t.Errorf("the run ended with %+v, %v", res.Outcome, res.Err)
			}
		})
	}
}

func TestPrePostCommands(t *testing.T) {
	a := newAppliance(t, 0)
	a.agent()
	dir := t.TempDir()
	write(t, dir+"/src/f", "x")
	_, k := a.backup(sms.BackupOrder{Sources: []sms.Path{sms.Path(dir + "/src")}, PreFailureWarns: true,
		PreCommand: []string{"touch " + dir + "/pre; false"}, PostCommand: []string{"touch", dir + "/post"}}, nil)
	if got := list(t, dir); got != "post pre src src/f" {
		t.Errorf("commands left %s", got)
	}
	if len(k.notices) != 1 || k.notices[0].Code != "pre_command" {
		t.Errorf("notices: %+v", k.notices)
	}
}

func TestStatAndBrowse(t *testing.T) {
	a := newAppliance(t, 0)
	a.agent()
	dir := t.TempDir()
	for _, name := range []string{"c", "a", "b\xff", "d"} {
		write(t, dir+"/"+name, name)
	}
	if err := os.Symlink("a", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	reply, err := a.server.Send(t.Context(), "web1", sms.Order{ID: "1", Kind: sms.OrderStat,
		Stat: &sms.StatOrder{Paths: []sms.Path{sms.Path(dir), sms.Path(dir + "/b\xff"), sms.Path(dir + "/none"), "/", "relative", sms.Path(dir + "/a/x")}}})
	if err != nil {
		t.Fatal(err)
	}
	var got []bool
	for _, f := range reply.Stat.Files {
		got = append(got, f.Exists)
		if f.Exists == (f.Error != "") {
			t.Errorf("%+v", f)
		}
	}
	if want := []bool{true, true, false, true, false, false}; !slices.Equal(got, want) {
		t.Errorf("exist: %v, want %v", got, want)
	}
	reply, err = a.server.Send(t.Context(), "web1", sms.Order{ID: "2", Kind: sms.OrderBrowse,
		Browse: &sms.BrowseOrder{Path: sms.Path(dir), After: "a", Limit: 2}})
	if err != nil || len(reply.Browse.Files) != 2 || !reply.Browse.More || reply.Browse.Files[0].Path != "b\xff" {
		t.Errorf("browse: %+v, %v", reply.Browse, err)
	}
	_, err = a.server.Send(t.Context(), "web1", sms.Order{ID: "3", Kind: sms.OrderBrowse, Browse: &sms.BrowseOrder{Path: sms.Path(dir + "/none")}})
	if sms.CodeOf(err) != sms.CodeNotFound {
		t.Errorf("browse nothing: %v", err)
	}
	_, err = a.server.Send(t.Context(), "web1", sms.Order{ID: "4", Kind: "dance"})
	if sms.CodeOf(err) != sms.CodeUnknownOrder {
		t.Errorf("unknown order: %v", err)
	}
}
