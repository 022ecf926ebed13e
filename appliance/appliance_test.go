package appliance

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/agent"
	"coffer/appliance/catalog"
	"coffer/appliance/config"
	"coffer/appliance/jobs"
	"coffer/appliance/pki"
	"coffer/appliance/sms"
	"coffer/dedup"
)

// testConfig is a configuration below a scratch directory, on free ports.
func testConfig(t *testing.T) config.Config {
	t.Helper()
	c := config.Default()
	c.Data = filepath.Join(t.TempDir(), "data")
	c.Memory = 0
	c.REST.Listen, c.SMS.Listen, c.NBD.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Store.Reserve, c.Store.IndexMemory = 1<<20, 32<<20
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// log is a log that tests read.
type log struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// opened opens an appliance without serving it.
func opened(t *testing.T, conf config.Config, opts Options) *appliance {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	a := &appliance{conf: conf, opts: opts, log: opts.Logger, started: opts.Now()}
	if err := a.open(t.Context()); err != nil {
		t.Fatal(errors.Join(err, a.close()))
	}
	return a
}

func closed(t *testing.T, a *appliance) {
	t.Helper()
	if err := errors.Join(a.stopRuns(), a.close()); err != nil {
		t.Error(err)
	}
}

func wantCode(t *testing.T, err error, code api.Code) {
	t.Helper()
	if api.CodeOf(err) != code {
		t.Errorf("error %v has code %q, want %q", err, api.CodeOf(err), code)
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestFirstLogin(t *testing.T) {
	var screen bytes.Buffer
	a := opened(t, testConfig(t), Options{Terminal: &screen})
	defer closed(t, a)
	b, ctx := newBackend(a), t.Context()
	path := a.data.FirstPassword()
	info := must[os.FileInfo](t)(os.Stat(path))
	raw := must[[]byte](t)(os.ReadFile(path))
	password := strings.TrimSpace(string(raw))
	if info.Mode().Perm() != 0o600 || len(password) < 20 || !strings.Contains(screen.String(), password) {
		t.Errorf("first password: mode %v, %d characters, on the terminal %q", info.Mode(), len(password), screen.String())
	}
	_, err := b.Login(ctx, api.LoginRequest{User: firstUser, Password: "wrong"})
	wantCode(t, err, api.CodeBadCredentials)
	_, err = b.Login(ctx, api.LoginRequest{User: "nobody", Password: "wrong"})
	wantCode(t, err, api.CodeBadCredentials)

	one := must[api.Session](t)(b.Login(ctx, api.LoginRequest{User: firstUser, Password: password}))
	two := must[api.Session](t)(b.Login(ctx, api.LoginRequest{User: firstUser, Password: password}))
	id := must[api.Identity](t)(b.Authenticate(ctx, one.Token))
	if !id.User.MustChange || !id.Session || id.User.Role != api.RoleSuperuser {
		t.Errorf("identity %+v", id)
	}
	wantCode(t, b.ChangePassword(ctx, firstUser, id.TokenID, api.PasswordChange{Old: "wrong", New: "long enough now"}), api.CodeBadCredentials)
	wantCode(t, b.ChangePassword(ctx, firstUser, id.TokenID, api.PasswordChange{Old: password, New: "short"}), api.CodeWeakPassword)
	wantCode(t, b.ChangePassword(ctx, firstUser, id.TokenID, api.PasswordChange{Old: password, New: password}), api.CodeWeakPassword)
	if err := b.ChangePassword(ctx, firstUser, id.TokenID, api.PasswordChange{Old: password, New: "long enough now"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file of the first password is still there")
	}
	if id = must[api.Identity](t)(b.Authenticate(ctx, one.Token)); id.User.MustChange {
		t.Error("the password must be changed again")
	}
	_, err = b.Authenticate(ctx, two.Token)
	wantCode(t, err, api.CodeUnauthenticated)
	if err := b.Logout(ctx, id.TokenID); err != nil {
		t.Fatal(err)
	}
	_, err = b.Authenticate(ctx, one.Token)
	wantCode(t, err, api.CodeUnauthenticated)
}

func TestUsersAndTokens(t *testing.T) {
	now := time.Now()
	a := opened(t, testConfig(t), Options{Now: func() time.Time { return now }})
	defer closed(t, a)
	b, ctx := newBackend(a), t.Context()
	wantCode(t, b.RemoveUser(ctx, firstUser), api.CodeConflict)
	_, err := b.AddUser(ctx, api.UserSpec{Name: "rita", Role: api.RoleRestore, Clients: []string{"web9"}, Password: "long enough now"})
	wantCode(t, err, api.CodeNotFound)
	_, err = b.AddUser(ctx, api.UserSpec{Name: "rita", Role: api.RoleAdmin, Clients: []string{"*"}, Password: "long enough now"})
	wantCode(t, err, api.CodeBadRequest)
	rita := must[api.User](t)(b.AddUser(ctx, api.UserSpec{Name: "rita", Role: api.RoleRestore, Clients: []string{"*"}, Password: "long enough now"}))
	if !rita.MustChange || rita.Clients[0] != "*" {
		t.Errorf("user %+v", rita)
	}
	_, err = b.AddUser(ctx, api.UserSpec{Name: "rita", Role: api.RoleAdmin, Password: "long enough now"})
	wantCode(t, err, api.CodeExists)
	past := now.Add(-time.Hour)
	_, err = b.AddToken(ctx, "rita", api.TokenSpec{Name: "old", ExpiresAt: &past})
	wantCode(t, err, api.CodeBadRequest)
	soon := now.Add(time.Hour)
	tok := must[api.NewToken](t)(b.AddToken(ctx, "rita", api.TokenSpec{Name: "script", ExpiresAt: &soon}))
	if id := must[api.Identity](t)(b.Authenticate(ctx, tok.Secret)); id.Session || id.User.Name != "rita" {
		t.Errorf("identity %+v", id)
	}
	now = soon
	_, err = b.Authenticate(ctx, tok.Secret)
	wantCode(t, err, api.CodeUnauthenticated)
	wantCode(t, b.RemoveToken(ctx, "t0"), api.CodeNotFound)
	if err := b.RemoveUser(ctx, "rita"); err != nil {
		t.Error(err)
	}
}

func TestPasswordHashes(t *testing.T) {
	p := newPasswords()
	hash := must[string](t)(p.hash(t.Context(), "correct horse"))
	for password, want := range map[string]bool{"correct horse": true, "correct horsf": false, "": false} {
		if ok, err := p.check(t.Context(), password, hash); ok != want || err != nil {
			t.Errorf("%q: %v, %v", password, ok, err)
		}
	}
	if ok, err := p.check(t.Context(), "x", nobody); ok || err != nil {
		t.Errorf("the hash that nobody has: %v, %v", ok, err)
	}
	for _, bad := range []string{"", "$argon2id$", "$argon2id$v=19$m=99999999,t=2,p=1$AAAA$AAAA", "plain"} {
		if _, err := p.check(t.Context(), "x", bad); err == nil {
			t.Errorf("%q is taken for a hash", bad)
		}
	}
}

func TestStartsWithALockedStore(t *testing.T) {
	conf := testConfig(t)
	a := opened(t, conf, Options{})
	if s := must[api.Store](t)(newBackend(a).Store(t.Context())); s.State != api.StoreGreen || s.Domain == "" || s.CapacityBytes == 0 {
		t.Errorf("fresh store: %+v", s)
	}
	closed(t, a)
	key := must[[]byte](t)(os.ReadFile(conf.KeyFile()))
	other := filepath.Join(t.TempDir(), "other.key")
	if _, err := makeKeyFile(other); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func() error
		say   string
	}{
		"wrong key":   {func() error { return os.WriteFile(conf.KeyFile(), must[[]byte](t)(os.ReadFile(other)), 0o600) }, "wrong key"},
		"damaged key": {func() error { return os.WriteFile(conf.KeyFile(), key[:len(key)/2], 0o600) }, "damaged"},
		"no key":      {func() error { return os.Remove(conf.KeyFile()) }, "missing"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.spoil(); err != nil {
				t.Fatal(err)
			}
			a := opened(t, conf, Options{})
			defer closed(t, a)
			b := newBackend(a)
			s := must[api.Store](t)(b.Store(t.Context()))
			if s.State != api.StoreLocked || !strings.Contains(s.Reason, c.say) {
				t.Errorf("store: %s, %q", s.State, s.Reason)
			}
			_, err := b.OpenTree(t.Context(), strings.Repeat("0", 32))
			wantCode(t, err, api.CodeStoreLocked)
			if _, err := os.Stat(conf.KeyFile()); name == "no key" && err == nil {
				t.Error("a new key was made for an old store")
			}
			_, err = b.SetMount(t.Context(), true)
			wantCode(t, err, api.CodeMountFailed)
		})
	}
	if err := os.WriteFile(conf.KeyFile(), key, 0o600); err != nil {
		t.Fatal(err)
	}
	a = opened(t, conf, Options{})
	defer closed(t, a)
	if s := must[api.Store](t)(newBackend(a).Store(t.Context())); s.State != api.StoreGreen {
		t.Errorf("store with its key again: %s %s", s.State, s.Reason)
	}
}

// A store whose disk is not mounted must not be replaced by a new one, nor another one be taken for it.
func TestAnotherStoreIsNotTakenForOurs(t *testing.T) {
	conf := testConfig(t)
	closed(t, opened(t, conf, Options{}))
	away := conf.StoreDir() + "-away"
	if err := os.Rename(conf.StoreDir(), away); err != nil {
		t.Fatal(err)
	}
	state := func() api.Store {
		a := opened(t, conf, Options{})
		defer closed(t, a)
		return must[api.Store](t)(newBackend(a).Store(t.Context()))
	}
	if s := state(); s.State != api.StoreLocked || !strings.Contains(s.Reason, "mounted") {
		t.Errorf("missing store: %s %s", s.State, s.Reason)
	}
	other := testConfig(t)
	closed(t, opened(t, other, Options{}))
	if err := errors.Join(os.RemoveAll(conf.StoreDir()), os.Rename(other.StoreDir(), conf.StoreDir())); err != nil {
		t.Fatal(err)
	}
	key := must[[]byte](t)(os.ReadFile(conf.KeyFile()))
	if err := os.WriteFile(conf.KeyFile(), must[[]byte](t)(os.ReadFile(other.KeyFile())), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := state(); s.State != api.StoreLocked || !strings.Contains(s.Reason, "another disk") {
		t.Errorf("another store: %s %s", s.State, s.Reason)
	}
	if err := errors.Join(os.RemoveAll(conf.StoreDir()), os.Rename(away, conf.StoreDir()), os.WriteFile(conf.KeyFile(), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	if s := state(); s.State != api.StoreGreen {
		t.Errorf("the store is back: %s %s", s.State, s.Reason)
	}
}

// Certificates: only those that the catalog knows and has not revoked count; renewal gives a further one.
func TestCertificates(t *testing.T) {
	a := opened(t, testConfig(t), Options{})
	defer closed(t, a)
	d, ctx := &clientDesk{a}, t.Context()
	peer := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	enrolment := must[api.Enrolment](t)(clients{a}.AddClient(ctx, api.ClientSpec{Name: "web1"}))
	token := must[pki.Token](t)(pki.ParseToken(enrolment.Token))
	if token.CA != a.authority.Fingerprint() || time.Until(enrolment.ExpiresAt) > time.Hour {
		t.Errorf("enrolment %+v", enrolment)
	}
	req := must[pki.Request](t)(pki.NewRequest("x"))
	_, err := d.Enrol(ctx, sms.Enrol{Secret: token.Secret[:], CSR: []byte("garbage")}, peer)
	if sms.CodeOf(err) != sms.CodeAuth {
		t.Errorf("garbage for a request: %v", err)
	}
	first := must[sms.EnrolResult](t)(d.Enrol(ctx, sms.Enrol{Secret: token.Secret[:], CSR: req.CSR}, peer))
	id := must[*pki.Identity](t)(pki.NewIdentity(req.Key, first.Certificate, first.CA))
	if name := must[string](t)(d.Authenticate(ctx, id.Cert)); name != "web1" || first.Client != "web1" {
		t.Errorf("enrolled as %q, certificate of %q", first.Client, name)
	}
	next := must[sms.EnrolResult](t)(d.Renew(ctx, "web1", id.Cert, req.CSR))
	renewed := must[*pki.Identity](t)(pki.NewIdentity(req.Key, next.Certificate, next.CA))
	for _, cert := range []*x509.Certificate{id.Cert, renewed.Cert} {
		if _, err := d.Authenticate(ctx, cert); err != nil {
			t.Errorf("after the renewal: %v", err)
		}
	}
	issued := must[pki.Issued](t)(a.authority.IssueClient("web1", req.CSR)) // as after the catalog was lost
	unknown := must[*x509.Certificate](t)(x509.ParseCertificate(issued.Cert))
	if _, err := d.Authenticate(ctx, unknown); sms.CodeOf(err) != sms.CodeAuth {
		t.Errorf("a certificate that the catalog does not know: %v", err)
	}
	must[api.Client](t)(clients{a}.RevokeClient(ctx, "web1"))
	for _, cert := range []*x509.Certificate{id.Cert, renewed.Cert} {
		if _, err := d.Authenticate(ctx, cert); sms.CodeOf(err) != sms.CodeAuth || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("after the revocation: %v", err)
		}
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	conf := testConfig(t)
	a := opened(t, conf, Options{})
	defer closed(t, a)
	if err := Run(t.Context(), conf, Options{}); !errors.Is(err, config.ErrDataInUse) {
		t.Errorf("second daemon on one data directory: %v", err)
	}
	other := testConfig(t)
	other.REST.Listen = a.rest.Addr().String()
	if err := Run(t.Context(), other, Options{}); err == nil || !strings.Contains(err.Error(), `"rest.listen"`) {
		t.Errorf("taken port: %v", err)
	}
}

// served is an appliance that serves, with a client whose agent is connected.
type served struct {
	*backend
	t    *testing.T
	log  *log
	home string
}

func serve(t *testing.T, change ...func(*Options)) *served {
	t.Helper()
	s := &served{t: t, log: &log{}, home: t.TempDir()}
	opts := Options{Logger: slog.New(slog.NewTextHandler(s.log, nil))}
	for _, c := range change {
		c(&opts)
	}
	a := opened(t, testConfig(t), opts)
	s.backend = newBackend(a)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, a.close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", s.log)
		}
	})
	return s
}

// agent enrols an agent with the token and runs it until the test ends.
func (s *served) agent(token string) (state string) {
	s.t.Helper()
	state = filepath.Join(s.home, "agent")
	if _, err := agent.Enrol(s.t.Context(), agent.EnrolOptions{Server: s.machine.sms.Addr().String(), Token: token, StateDir: state}); err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx, agent.Config{StateDir: state}) }()
	s.t.Cleanup(func() { stop(); <-ended })
	s.until("the agent is online", func() bool {
		c, err := s.Client(s.t.Context(), "web1")
		return err == nil && c.State == api.ClientOnline
	})
	return state
}

func (s *served) until(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if done() {
			return
		}
	}
	s.t.Fatalf("waited in vain until %s", what)
}

func (s *served) ended(run api.Run, err error) api.Run {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	s.until("run "+run.ID+" ends", func() bool {
		run, err = s.Run(s.t.Context(), run.ID)
		return err == nil && run.State.Final()
	})
	return run
}

// The whole way in one process: enrol, task, backup, browse, restore, revoke.
func TestMainJob(t *testing.T) {
	s := serve(t)
	ctx := api.WithCaller(t.Context(), api.Caller{Identity: api.Identity{User: api.User{Name: "admin"}}})
	source := filepath.Join(s.home, "source")
	for name, text := range map[string]string{"a.txt": "first", "dir/b.txt": strings.Repeat("second ", 100_000), "dir/c\xff": "odd"} {
		path := filepath.Join(source, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	e := must[api.Enrolment](t)(s.AddClient(ctx, api.ClientSpec{Name: "web1"}))
	_, err := s.AddClient(ctx, api.ClientSpec{Name: "web1"})
	wantCode(t, err, api.CodeExists)
	_, err = s.AddTask(ctx, api.TaskSpec{Name: "t", Client: "web1", Sources: []string{source}})
	wantCode(t, err, api.CodeClientOffline)
	state := s.agent(e.Token)
	if _, err := agent.Enrol(ctx, agent.EnrolOptions{Server: s.machine.sms.Addr().String(), Token: e.Token, StateDir: state + "2"}); err == nil || !strings.Contains(err.Error(), "used before") {
		t.Errorf("a used token: %v", err)
	}
	_, err = s.AddTask(ctx, api.TaskSpec{Name: "t", Client: "web1", Sources: []string{source, source + "/none"}})
	wantCode(t, err, api.CodeSourceRefused)
	_, err = s.AddTask(ctx, api.TaskSpec{Name: "t", Client: "web1", Sources: []string{"relative"}, Command: []string{"x"}})
	wantCode(t, err, api.CodeBadRequest)
	if _, err := s.AddTask(ctx, api.TaskSpec{Name: "t", Client: "web1", Sources: []string{source}}); err != nil {
		t.Fatal(err)
	}

	events := must[<-chan api.Event](t)(s.Subscribe(ctx, api.EventFilter{}))
	run := s.ended(s.StartBackup(ctx, api.BackupRequest{Task: "t"}))
	if run.State != api.RunSuccess || run.LevelEffective != api.LevelFull || run.LevelReason != "no_valid_full" || run.User != "admin" {
		t.Fatalf("backup: %+v", run)
	}
	for e := range events {
		if e.Type == api.EventRun && e.Run.State.Final() {
			break
		}
	}
	set := must[api.Saveset](t)(s.Saveset(ctx, run.Saveset[:12]))
	if set.ID != run.Saveset || set.Task != "t" || set.EOL.Sub(set.EndedAt) < 29*24*time.Hour {
		t.Errorf("saveset %+v", set)
	}
	s.browse(ctx, set.ID, source)
	s.restoreAndRevoke(ctx, set.ID, source)
}

func (s *served) browse(ctx context.Context, id, source string) {
	t := s.t
	t.Helper()
	tree, err := s.OpenTree(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	root := must[api.Entry](t)(tree.Stat(ctx, "/"))
	if root.Type != api.EntryDir || root.Mode != 0o755 || root.Name != "" {
		t.Errorf("root %+v", root)
	}
	_, err = tree.Stat(ctx, source+"/a.txt/x")
	wantCode(t, err, api.CodeNotFound)
	_, err = tree.Stat(ctx, source+"/none")
	wantCode(t, err, api.CodeNotFound)
	first, more, err := tree.List(ctx, source, "", 1)
	if err != nil || !more || len(first) != 1 || first[0].Name != "a.txt" || first[0].Mode != 0o640 {
		t.Errorf("first page: %+v, %v, %v", first, more, err)
	}
	rest, more, err := tree.List(ctx, source, "a.txt", 10)
	if err != nil || more || len(rest) != 1 || rest[0].EntryCount != 2 {
		t.Errorf("second page: %+v, %v, %v", rest, more, err)
	}
	odd, _, err := tree.List(ctx, source+"/dir", "b.txt", 10)
	if err != nil || len(odd) != 1 || odd[0].RawName() != "c\xff" {
		t.Errorf("name that is not UTF-8: %+v, %v", odd, err)
	}
	r, err := tree.Open(ctx, source+"/dir/b.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != strings.Repeat("second ", 100_000) {
		t.Errorf("content: %d bytes, %v", len(got), err)
	}
	_, err = tree.Open(ctx, source)
	wantCode(t, err, api.CodeBadRequest)
}

func (s *served) restoreAndRevoke(ctx context.Context, id, source string) {
	t := s.t
	t.Helper()
	to := filepath.Join(s.home, "restored")
	run := s.ended(s.StartRestore(ctx, api.RestoreRequest{Saveset: id, Client: "web1", To: to}))
	if run.State != api.RunSuccess || run.Restore == nil || run.Restore.To != to {
		t.Errorf("restore: %+v", run)
	}
	if got, err := os.ReadFile(filepath.Join(to, source, "a.txt")); err != nil || string(got) != "first" {
		t.Errorf("restored file: %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(to, source, "a.txt"), []byte("other"), 0o640); err != nil {
		t.Fatal(err)
	}
	run = s.ended(s.StartRestore(ctx, api.RestoreRequest{Saveset: id, Client: "web1", To: to, Verify: true}))
	if run.State != api.RunWarning || !strings.Contains(run.Reason, "differ") {
		t.Errorf("verify: %+v", run)
	}
	c := must[api.Client](t)(s.RevokeClient(ctx, "web1"))
	if c.State != api.ClientRevoked {
		t.Errorf("revoked client: %+v", c)
	}
	_, err := s.StartBackup(ctx, api.BackupRequest{Task: "t"})
	wantCode(t, err, api.CodeClientRevoked)
	if err := agent.Run(ctx, agent.Config{StateDir: filepath.Join(s.home, "agent")}); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the agent of a revoked client: %v", err)
	}
	if !strings.Contains(s.log.String(), "was revoked at") {
		t.Error("the log does not tell of the refused certificate")
	}
	page := must[api.Page[api.AuditEntry]](t)(s.AuditLog(ctx, api.AuditFilter{Action: "client.enrol", Limit: 10}))
	if len(page.Items) != 1 || page.Items[0].Object != "web1" {
		t.Errorf("audit of the enrolment: %+v", page.Items)
	}
}

func TestErrorsOfTheAPI(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code api.Code
	}{
		{nil, ""},
		{errors.New("anything"), api.CodeInternal},
		{api.Errorf(api.CodeExists, "x"), api.CodeExists},
		{&jobs.Error{Kind: jobs.KindOffline}, api.CodeClientOffline},
		{&jobs.Error{Kind: jobs.KindStopping}, api.CodeShuttingDown},
		{&jobs.Error{Kind: jobs.KindUnwritable, Err: &catalog.Error{Kind: catalog.KindNoSpace}}, api.CodeStoreUnwritable},
		{&catalog.Error{Kind: catalog.KindNotFound}, api.CodeNotFound},
		{&catalog.Error{Kind: catalog.KindNoSpace}, api.CodeStoreUnwritable},
		{&dedup.Error{Kind: dedup.Damaged}, api.CodeDamaged},
		{&dedup.Error{Kind: dedup.NotFound}, api.CodeNotFound},
		{sms.Errorf(sms.CodeTimeout, "x"), api.CodeTimeout},
	} {
		if got := api.CodeOf(apiError(tt.err)); got != tt.code {
			t.Errorf("%v becomes %q, want %q", tt.err, got, tt.code)
		}
	}
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cofferd.toml")
	if err := os.WriteFile(file, []byte("data = \"/somewhere\"\n[log]\nlevel = \"warn\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := flags{config: file, data: dir, rest: ":1"}
	conf, err := f.load()
	if err != nil || conf.Data != dir || conf.REST.Listen != ":1" || conf.Log.Level != "warn" || conf.SMS.Listen != config.DefaultSMSListen {
		t.Errorf("flags over file over defaults: %+v, %v", conf, err)
	}
	run := func(args ...string) (string, error) {
		cmd := Command()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(args)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	if out, err := run("--config", file, "--check"); err != nil || !strings.Contains(out, "valid") {
		t.Errorf("--check: %q, %v", out, err)
	}
	if _, err := run("--config", file, "--check", "--log-level", "loud", "--listen-sms", "x"); err == nil ||
		!strings.Contains(err.Error(), "log.level") || !strings.Contains(err.Error(), "sms.listen") {
		t.Errorf("two faults: %v", err)
	}
	if out, err := run("--help"); err != nil || !strings.Contains(out, "--listen-rest") || !strings.Contains(out, "first-password") {
		t.Errorf("--help: %q, %v", out, err)
	}
	if _, err := run("--config", filepath.Join(dir, "none.toml")); err == nil || !strings.Contains(err.Error(), "none.toml") {
		t.Errorf("a configuration file that is named must exist: %v", err)
	}
}
