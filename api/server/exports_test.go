package server_test

import (
	"strings"
	"testing"

	"coffer/api"
	"coffer/api/server/servertest"
)

// TestExports goes through the life of an export, and holds who may do what with whose.
func TestExports(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	root, rita, bob := connect(t, r, "root"), connect(t, r, "rita"), connect(t, r, "bob")
	ctx := t.Context()
	sets, err := root.Savesets(ctx, api.SavesetFilter{})
	if err != nil {
		t.Fatal(err)
	}
	of := map[string]string{} // by client
	for _, s := range sets.Items {
		of[s.Client] = s.ID
	}
	e, err := rita.AddExport(ctx, api.ExportSpec{Saveset: of["web1"][:8], Overlay: true, BytesLimit: 1 << 30, Clients: []string{"web1"}})
	if err != nil || e.Saveset != of["web1"] || e.Overlay == nil || e.Overlay.BytesLimit != 1<<30 || e.State != api.ExportReady {
		t.Fatalf("made %+v, %v", e, err)
	}
	other, err := root.AddExport(ctx, api.ExportSpec{Saveset: of["db1"], Clients: []string{api.ExportAnybody}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		err  error
		want api.Code
	}{
		"another client's saveset": {fails(rita.AddExport(ctx, api.ExportSpec{Saveset: of["db1"]})), api.CodeForbidden},
		"for another client":       {fails(rita.AddExport(ctx, api.ExportSpec{Saveset: of["web1"], Clients: []string{"db1"}})), api.CodeForbidden},
		"for everybody":            {fails(rita.AddExport(ctx, api.ExportSpec{Saveset: of["web1"], Clients: []string{"*"}})), api.CodeForbidden},
		"for nobody known":         {fails(root.AddExport(ctx, api.ExportSpec{Saveset: of["web1"], Clients: []string{"none"}})), api.CodeNotFound},
		"show another's":           {fails(rita.Export(ctx, other.ID)), api.CodeForbidden},
		"commit another's":         {fails(rita.CommitExport(ctx, other.ID)), api.CodeForbidden},
		"drop another's":           {rita.DropExport(ctx, other.ID, true), api.CodeForbidden},
		"by a role for backups":    {fails(bob.Exports(ctx)), api.CodeForbidden},
		"commit without overlay":   {fails(root.CommitExport(ctx, other.ID)), api.CodeConflict},
		"drop nothing":             {root.DropExport(ctx, "none", false), api.CodeNotFound},
	} {
		if api.CodeOf(c.err) != c.want {
			t.Errorf("%s: %v, want %s", name, c.err, c.want)
		}
	}
	if mine, err := rita.Exports(ctx); err != nil || len(mine) != 1 || mine[0].ID != e.ID {
		t.Errorf("rita sees %+v, %v", mine, err)
	}
	run, err := rita.CommitExport(ctx, e.ID)
	if err != nil || run.LevelReason != "overlay_commit" {
		t.Errorf("commit: %+v, %v", run, err)
	}
	r.Backend.ConnectExport(e.ID, 2)
	if err := rita.DropExport(ctx, e.ID, false); api.CodeOf(err) != api.CodeInUse {
		t.Errorf("drop with connections: %v", err)
	}
	if err := rita.DropExport(ctx, e.ID, true); err != nil {
		t.Error(err)
	}
	log, err := root.AuditLog(ctx, api.AuditFilter{User: "rita"})
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, a := range log.Items {
		if a.OK {
			actions = append(actions, a.Action+" "+a.Detail)
		}
	}
	want := "export.drop forced|export.commit |export.add its only disk, with overlay of at most 1073741824 bytes, for web1"
	if got := strings.Join(actions, "|"); !strings.HasPrefix(got, want) {
		t.Errorf("audit log: %s", got)
	}
}

func fails[T any](_ T, err error) error { return err }
