package agent_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coffer/appliance/agent"
	"coffer/appliance/ingest"
	"coffer/appliance/pki"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// appliance is a real store behind a real SMS server and authority, with nothing else of an appliance.
type appliance struct {
	t      testing.TB
	pki    *pki.Authority
	store  *dedup.Store
	server *ingest.Server
	addr   string
	stop   func()

	mu        sync.Mutex // guards all below
	token     pki.Token  // accepted once
	revokeAll bool
	online    chan string
	renewed   int
}

func newAppliance(t testing.TB, validity time.Duration) *appliance {
	t.Helper()
	dir := t.TempDir()
	a := &appliance{t: t, online: make(chan string, 100)}
	var err error
	if a.pki, err = pki.OpenAuthority(filepath.Join(dir, "pki"), pki.Options{ClientValidity: validity}); err != nil {
		t.Fatal(err)
	}
	a.store = openStore(t, dir)
	log := &lockedLog{}
	a.server = ingest.NewServer(ingest.Options{Clients: a, Enroller: a, Logger: slog.New(slog.NewTextHandler(log, nil))})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.server.Serve(ctx, ln, a.pki.SMSConfig()); err != nil {
			t.Error(err)
		}
	}()
	a.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(func() {
		a.stop()
		if t.Failed() {
			t.Log("appliance:\n" + log.String())
		}
	})
	return a
}

func openStore(t testing.TB, dir string) *dedup.Store {
	t.Helper()
	b, err := blob.OpenDir(vfs.OS(), filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := keys.NewKeyFile(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.KeyFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, err := dedup.Create(t.Context(), dedup.Options{Blob: b, FS: vfs.OS(), SpoolDir: filepath.Join(dir, "spool"),
		IndexDir: filepath.Join(dir, "index"), Key: key, Owner: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// lockedLog collects log lines.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (a *appliance) Authenticate(_ context.Context, cert *x509.Certificate) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.revokeAll {
		return "", sms.Errorf(sms.CodeAuth, "the certificate is revoked")
	}
	return cert.Subject.CommonName, nil
}

func (a *appliance) Connected(client string, _ sms.Hello, _ net.Addr) { a.online <- client }

func (a *appliance) Disconnected(string, error) {}

func (a *appliance) Enrol(_ context.Context, e sms.Enrol, _ net.Addr) (sms.EnrolResult, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !bytes.Equal(e.Secret, a.token.Secret[:]) {
		return sms.EnrolResult{}, sms.Errorf(sms.CodeAuth, "the token is unknown, used or too old")
	}
	a.token = pki.Token{}
	return a.issue("web1", e.CSR)
}

func (a *appliance) Renew(_ context.Context, client string, _ *x509.Certificate, csr []byte) (sms.EnrolResult, error) {
	a.mu.Lock()
	a.renewed++
	a.mu.Unlock()
	return a.issue(client, csr)
}

func (a *appliance) issue(client string, csr []byte) (sms.EnrolResult, error) {
	is, err := a.pki.IssueClient(client, csr)
	return sms.EnrolResult{Client: client, Certificate: is.Cert, CA: is.CA}, err
}

func (a *appliance) newToken() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.token = pki.NewToken(a.pki.Fingerprint())
	return a.token.String()
}

// agent enrols and runs an agent; stop ends it and returns what Run returned.
func (a *appliance) agent() (stop func() error) {
	a.t.Helper()
	dir := a.t.TempDir()
	client, err := agent.Enrol(a.t.Context(), agent.EnrolOptions{Server: a.addr, Token: a.newToken(), StateDir: dir})
	if err != nil || client != "web1" {
		a.t.Fatalf("enrol: %q, %v", client, err)
	}
	return a.launch(dir)
}

func (a *appliance) launch(dir string) (stop func() error) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	log := &lockedLog{}
	go func() {
		ended <- agent.Run(ctx, agent.Config{StateDir: dir, Version: "test", Logger: slog.New(slog.NewTextHandler(log, nil))})
	}()
	select {
	case <-a.online:
	case err := <-ended:
		a.t.Fatalf("the agent ended: %v", err)
	case <-time.After(time.Minute):
		a.t.Fatalf("the agent does not connect:\n%s", log)
	}
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	a.t.Cleanup(func() {
		_ = stop()
		if a.t.Failed() {
			a.t.Log("agent:\n" + log.String())
		}
	})
	return stop
}

// sink commits into the store.
type sink struct {
	run      *dedup.Run
	mu       sync.Mutex // guards all below
	notices  []sms.Notice
	commit   sms.Commit
	manifest dedup.Manifest
	opened   chan struct{}
}

func (k *sink) Opened(resumed bool) {
	if !resumed {
		close(k.opened)
	}
}
func (k *sink) Interrupted(error, time.Time) {}
func (k *sink) Progress(sms.Progress)        {}

func (k *sink) Notice(n sms.Notice) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.notices = append(k.notices, n)
}

func (k *sink) Commit(ctx context.Context, c sms.Commit) (sms.CommitResult, error) {
	m, err := k.run.Commit(ctx, dedup.Draft{Root: c.Root, Side: c.Side, Client: "web1", Task: "t", TaskType: sms.TaskPath,
		RequestedLevel: "FULL", Level: "FULL", Reason: "requested", Started: c.Started, Finished: c.Finished})
	if err != nil {
		return sms.CommitResult{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.manifest, k.commit = m, c
	return sms.CommitResult{SavesetID: m.ID.String(), Stored: m.Stored}, nil
}

var runNumber struct {
	sync.Mutex
	n int
}

func nextRun() string {
	runNumber.Lock()
	defer runNumber.Unlock()
	runNumber.n++
	return fmt.Sprintf("run-%d", runNumber.n)
}

// startBackup orders a backup and returns its run.
func (a *appliance) startBackup(order sms.BackupOrder, parent *dedup.Manifest) (*ingest.Run, *sink) {
	a.t.Helper()
	ctx := context.Background()
	order.RunID = nextRun()
	opts := dedup.RunOptions{ID: order.RunID}
	d := a.store.Domain()
	o := ingest.RunOptions{ID: order.RunID, Client: "web1", Domain: d.ID, Key: d.Key, Chunking: d.Chunking}
	if parent != nil {
		opts.Parents = []dedup.SavesetID{parent.ID}
		o.Parent = &ingest.Parent{Root: parent.Root, Side: parent.Side, Started: parent.Started}
		v, err := a.store.View(ctx, parent.ID)
		if err != nil {
			a.t.Fatal(err)
		}
		o.View = v
		a.t.Cleanup(func() { _ = v.Close() })
	}
	run, err := a.store.Begin(ctx, opts)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = run.Abort(context.Background(), "test over") })
	k := &sink{run: run, opened: make(chan struct{})}
	o.Sink, o.Store = k, ingest.FromRun(run)
	r, err := a.server.StartRun(o)
	if err != nil {
		a.t.Fatal(err)
	}
	order.Token = r.Token()
	if _, err := a.server.Send(ctx, "web1", sms.Order{ID: order.RunID, Kind: sms.OrderBackup, Backup: &order}); err != nil {
		a.t.Fatal(err)
	}
	return r, k
}

// backup runs a backup to its end.
func (a *appliance) backup(order sms.BackupOrder, parent *dedup.Manifest) (dedup.Manifest, *sink) {
	a.t.Helper()
	r, k := a.startBackup(order, parent)
	if res := r.Wait(context.Background()); res.Err != nil || res.Committed == nil {
		a.t.Fatalf("the backup ended with %+v, %v", res.Outcome, res.Err)
	}
	return k.manifest, k
}

// restore runs a restore to its end.
func (a *appliance) restore(m dedup.Manifest, order sms.RestoreOrder) (sms.Outcome, *sink) {
	a.t.Helper()
	ctx := context.Background()
	v, err := a.store.View(ctx, m.ID)
	if err != nil {
		a.t.Fatal(err)
	}
	defer v.Close()
	d := a.store.Domain()
	k := &sink{opened: make(chan struct{})}
	order.RunID = nextRun()
	r, err := a.server.StartRun(ingest.RunOptions{ID: order.RunID, Client: "web1", Sink: k, Domain: d.ID, Key: d.Key,
		Chunking: d.Chunking, Root: m.Root, View: v})
	if err != nil {
		a.t.Fatal(err)
	}
	order.Token = r.Token()
	if _, err := a.server.Send(ctx, "web1", sms.Order{ID: order.RunID, Kind: sms.OrderRestore, Restore: &order}); err != nil {
		a.t.Fatal(err)
	}
	res := r.Wait(ctx)
	if res.Err != nil || res.Outcome == nil || res.Outcome.Code != "" {
		a.t.Fatalf("the restore ended with %+v, %v", res.Outcome, res.Err)
	}
	return *res.Outcome, k
}
