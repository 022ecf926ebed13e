package appliance

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/pki"
	"coffer/appliance/retention"
	"coffer/nbd"
)

// TestExports: a client sees, with its certificate, the exports that name it; a locked store serves none; an export keeps its
// saveset; a revoked client is cut off.
func TestExports(t *testing.T) {
	s := serve(t)
	ctx := api.WithCaller(t.Context(), api.Caller{Identity: api.Identity{User: api.User{Name: "admin"}}})
	source := filepath.Join(s.home, "source")
	content := bytes.Repeat([]byte("a disk that is no image "), 50_000)
	if err := errors.Join(os.MkdirAll(source, 0o755), os.WriteFile(filepath.Join(source, "disk"), content, 0o600)); err != nil {
		t.Fatal(err)
	}
	e := must[api.Enrolment](t)(s.AddClient(ctx, api.ClientSpec{Name: "web1"}))
	state := s.agent(e.Token)
	must[api.Task](t)(s.AddTask(ctx, api.TaskSpec{Name: "t", Client: "web1", Sources: []string{source}}))
	run := s.ended(s.StartBackup(ctx, api.BackupRequest{Task: "t"}))
	disk := filepath.Join(source, "disk")
	mine := must[api.Export](t)(s.AddExport(ctx, api.ExportSpec{Saveset: run.Saveset, Disk: disk, Overlay: true, Clients: []string{"web1"}}))
	must[api.Export](t)(s.AddExport(ctx, api.ExportSpec{Saveset: run.Saveset, Disk: disk}))
	if mine.By != "admin" || mine.Client != "web1" || len(mine.URIs) != 2 || mine.Bytes != int64(len(content)) {
		t.Errorf("%+v", mine)
	}

	identity := must[*pki.Identity](t)(pki.LoadIdentity(filepath.Join(state, "identity.pem")))
	conf := pki.ClientTLS(identity)
	conf.NextProtos = nil
	a := s.machine.appliance
	c := must[*nbd.Client](t)(nbd.Dial(t.Context(), "tcp", a.nbdPort.Addr().String(), nbd.ClientOptions{Export: mine.ID, TLS: conf}))
	got := make([]byte, c.Size())
	if err := c.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read over TLS: %v", err)
	}
	v := must[retention.Verdict](t)(a.verdict(ctx, run.Saveset))
	if len(v.Kept) == 0 || v.Kept[0].Cause != retention.Exported {
		t.Errorf("kept for %+v", v.Kept)
	}
	wantCode(t, s.DeleteSaveset(ctx, run.Saveset, true), api.CodeConflict)
	_, err := s.LockStore(ctx)
	wantCode(t, err, api.CodeInUse)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	s.until("the connection is gone", func() bool { return must[api.Export](t)(s.Export(ctx, mine.ID)).Connections == 0 })

	must[api.Store](t)(s.LockStore(ctx))
	if x := must[api.Export](t)(s.Export(ctx, mine.ID)); x.State != api.ExportLocked || x.Problem == "" {
		t.Errorf("in a locked store: %+v", x)
	}
	_, err = s.AddExport(ctx, api.ExportSpec{Saveset: run.Saveset, Disk: disk})
	wantCode(t, err, api.CodeStoreLocked)
	must[api.Store](t)(s.UnlockStore(ctx, api.StoreUnlock{}))
	if x := must[api.Export](t)(s.Export(ctx, mine.ID)); x.State != api.ExportReady {
		t.Errorf("in an unlocked store: %+v", x)
	}
	wantCode(t, s.DeleteSaveset(ctx, run.Saveset, true), api.CodeConflict)

	c = must[*nbd.Client](t)(nbd.Dial(t.Context(), "tcp", a.nbdPort.Addr().String(), nbd.ClientOptions{Export: mine.ID, TLS: conf}))
	defer c.Close()
	must[api.Client](t)(s.RevokeClient(ctx, "web1"))
	if err := c.ReadAt(t.Context(), got[:1], 0); nbd.ErrnoOf(err) != nbd.EPERM {
		t.Errorf("read by a revoked client: %v", err)
	}
	short := must[[]api.Export](t)(s.Exports(ctx))
	if len(short) != 2 {
		t.Errorf("%d exports", len(short))
	}
	_, err = s.CommitExport(ctx, short[1].ID)
	wantCode(t, err, api.CodeConflict)
	wantCode(t, s.DropExport(ctx, mine.ID, false), api.CodeInUse)
	for _, x := range short {
		if err := s.DropExport(ctx, x.ID, true); err != nil {
			t.Error(err)
		}
	}
	log := must[api.Page[api.AuditEntry]](t)(s.AuditLog(ctx, api.AuditFilter{Action: "saveset.nbd", Limit: 10}))
	if len(log.Items) != 1 || log.Items[0].Object != run.Saveset || time.Since(log.Items[0].Time) > time.Hour {
		t.Errorf("audit log: %+v", log.Items)
	}
}
