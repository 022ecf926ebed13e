package server_test

import (
	"testing"

	"coffer/api"
	"coffer/api/server/servertest"
)

// TestGuests holds who may do what with machines that run from savesets.
func TestGuests(t *testing.T) {
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
	mine, err := rita.BootGuest(ctx, api.GuestBoot{Saveset: of["web1"][:8], Host: "web1"})
	if err != nil || mine.Saveset != of["web1"] || mine.State != api.GuestBooting {
		t.Fatalf("booted %+v, %v", mine, err)
	}
	other, err := root.BootGuest(ctx, api.GuestBoot{Saveset: of["web1"], Host: "db1", Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		err  error
		want api.Code
	}{
		"another client's saveset": {fails(rita.BootGuest(ctx, api.GuestBoot{Saveset: of["db1"], Host: "web1"})), api.CodeForbidden},
		"on another host":          {fails(rita.BootGuest(ctx, api.GuestBoot{Saveset: of["web1"], Host: "db1"})), api.CodeForbidden},
		"restored to another host": {fails(rita.RestoreGuest(ctx, api.GuestRestore{Saveset: of["web1"], Host: "db1", Pool: "p"})), api.CodeForbidden},
		"on no host known":         {fails(root.BootGuest(ctx, api.GuestBoot{Saveset: of["web1"], Host: "none"})), api.CodeNotFound},
		"a network and none":       {fails(root.BootGuest(ctx, api.GuestBoot{Saveset: of["web1"], Host: "web1", Network: "n", NoNetwork: true})), api.CodeBadRequest},
		"show another's":           {fails(rita.Guest(ctx, other.ID)), api.CodeForbidden},
		"move another's":           {fails(rita.MoveGuest(ctx, other.ID, api.GuestMove{Pool: "p"})), api.CodeForbidden},
		"reset another's":          {fails(rita.ResetGuest(ctx, other.ID)), api.CodeForbidden},
		"drop another's":           {rita.DropGuest(ctx, other.ID, true), api.CodeForbidden},
		"by a role for backups":    {fails(bob.Guests(ctx)), api.CodeForbidden},
		"drop nothing":             {root.DropGuest(ctx, "none", false), api.CodeNotFound},
	} {
		if api.CodeOf(c.err) != c.want {
			t.Errorf("%s: %v, want %s", name, c.err, c.want)
		}
	}
	if got, err := rita.Guests(ctx); err != nil || len(got) != 1 || got[0].ID != mine.ID {
		t.Errorf("rita sees %+v, %v", got, err)
	}
	if _, err := rita.Guest(ctx, mine.ID); err != nil { // it runs from here on
		t.Fatal(err)
	}
	if g, err := rita.MoveGuest(ctx, "shop", api.GuestMove{Pool: "ssd"}); err != nil || g.State != api.GuestMoving || g.Pool != "ssd" {
		t.Errorf("move: %+v, %v", g, err)
	}
	if err := rita.DropGuest(ctx, mine.ID, false); err != nil {
		t.Error(err)
	}
	audit, err := root.AuditLog(ctx, api.AuditFilter{Limit: 1})
	if err != nil || len(audit.Items) != 1 || audit.Items[0].Action != "vm.drop" || audit.Items[0].Object != mine.ID {
		t.Errorf("audit %+v, %v", audit.Items, err)
	}
}
