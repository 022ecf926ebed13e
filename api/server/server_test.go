package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/api/server"
	"coffer/api/server/servertest"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden holds got against testdata/name, or rewrites it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update rewrites it); got:\n%s", file, got)
	}
}

// caller speaks HTTP to a running server.
type caller struct {
	t     *testing.T
	url   string
	token string
	http  *http.Client
}

func start(t *testing.T) (*servertest.Running, *caller) {
	t.Helper()
	r := servertest.Start(t, servertest.New())
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	return r, &caller{t: t, url: r.URL, http: &http.Client{Transport: tr, Timeout: 30 * time.Second}}
}

// as returns a caller that is logged in.
func (c *caller) as(user string) *caller {
	c.t.Helper()
	password := servertest.Password
	res, body := c.do("POST", "/login", fmt.Sprintf(`{"user":%q,"password":%q}`, user, password))
	var s api.Session
	if err := json.Unmarshal(body, &s); err != nil || res.StatusCode != 200 {
		c.t.Fatalf("login as %s: %s: %s", user, res.Status, body)
	}
	n := *c
	n.token = s.Token
	return &n
}

func (c *caller) do(method, path, body string) (*http.Response, []byte) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url+api.Prefix+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return res, data
}

// transcript formats an answer for a golden file.
func transcript(method, path, body string, res *http.Response, data []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", method, path)
	if body != "" {
		fmt.Fprintf(&b, "%s\n", body)
	}
	fmt.Fprintf(&b, "→ %d %s\n", res.StatusCode, res.Header.Get("Content-Type"))
	for _, h := range []string{"Www-Authenticate", "Retry-After", "Content-Disposition"} {
		if v := res.Header.Get(h); v != "" {
			fmt.Fprintf(&b, "%s: %s\n", h, v)
		}
	}
	var indented bytes.Buffer
	if json.Indent(&indented, bytes.TrimSpace(data), "", "  ") == nil {
		data = indented.Bytes()
	}
	fmt.Fprintf(&b, "%s\n\n", data)
	return b.String()
}

func TestAnswers(t *testing.T) {
	type call struct{ as, method, path, body string }
	for name, calls := range map[string][]call{
		"accounts": {
			{"", "GET", "/whoami", ""},
			{"", "POST", "/login", `{"user":"root","password":"wrong"}`},
			{"", "POST", "/login", `{"user":"root"}`},
			{"root", "GET", "/whoami", ""},
			{"new", "GET", "/whoami", ""},
			{"new", "GET", "/clients", ""},
			{"new", "PUT", "/password", `{"old":"correct horse battery","new":"short"}`},
			{"new", "PUT", "/password", `{"old":"not the old one","new":"a new password"}`},
			{"new", "PUT", "/password", `{"old":"correct horse battery","new":"a new password"}`},
			{"root", "GET", "/users", ""},
			{"root", "POST", "/users", `{"name":"eve","role":"restore","clients":["web1"],"password":"first password"}`},
			{"root", "POST", "/users", `{"name":"eve","role":"restore","password":"first password"}`},
			{"root", "POST", "/users", `{"name":"adm2","role":"admin","clients":["web1"],"password":"first password"}`},
			{"root", "POST", "/users", `{"name":"../x","role":"king","password":"first password","extra":1}`},
			{"adam", "POST", "/users", `{"name":"mallory","role":"superuser","password":"first password"}`},
			{"root", "PUT", "/users/bob/role", `{"role":"operator"}`},
			{"root", "DELETE", "/users/nobody", ""},
			{"root", "DELETE", "/users/eve", ""},
			{"rita", "POST", "/tokens", `{"name":"nightly"}`},
			{"rita", "GET", "/tokens", ""},
			{"adam", "GET", "/tokens", ""},
			{"adam", "DELETE", "/tokens/t1", ""},
			{"root", "GET", "/audit?limit=5", ""},
			{"root", "POST", "/logout", ""},
		},
		"clients": {
			{"root", "GET", "/clients", ""},
			{"rita", "GET", "/clients", ""},
			{"rita", "GET", "/clients/db1", ""},
			{"root", "POST", "/clients", `{"name":"web2"}`},
			{"root", "POST", "/clients", `{"name":"web2"}`},
			{"root", "POST", "/clients", `{"name":""}`},
			{"root", "POST", "/clients", `{`},
			{"root", "GET", "/clients/web2", ""},
			{"root", "POST", "/clients/web2/token", ""},
			{"root", "POST", "/clients/web2/revoke", ""},
			{"root", "GET", "/clients/none", ""},
		},
		"tasks": {
			{"root", "GET", "/tasks", ""},
			{"bob", "GET", "/tasks", ""},
			{"root", "GET", "/tasks/web1-etc", ""},
			{"root", "POST", "/tasks", `{"name":"t1","client":"web1","sources":["/srv"]}`},
			{"root", "POST", "/tasks", `{"name":"t2","client":"web1","sources":["/missing"]}`},
			{"root", "POST", "/tasks", `{"name":"t3","client":"web1"}`},
			{"root", "POST", "/tasks", `{"name":"t4","client":"web1","type":"stream","sources":["/srv"],"stream_name":"a/b"}`},
			{"root", "DELETE", "/tasks/t1", ""},
			{"root", "GET", "/pools", ""},
			{"root", "GET", "/pools/default", ""},
		},
		"machines": {
			{"olga", "GET", "/clients/web1/vms", ""},
			{"root", "GET", "/clients/web1/vms?uri=qemu%2Bssh://nowhere/system", ""},
			{"root", "GET", "/clients/none/vms", ""},
			{"bob", "GET", "/clients/web1/vms", ""},
			{"root", "POST", "/clients/web1/vms/tasks", `{"uri":"qemu+ssh://kvm2/system","exclude":["test-*"],"dry_run":true}`},
			{"root", "POST", "/clients/web1/vms/tasks", `{"quiesce":"sometimes"}`},
			{"olga", "POST", "/clients/web1/vms/tasks", `{}`},
			{"root", "POST", "/tasks", `{"name":"m1","client":"web1","type":"libvirt","mover":"db1","libvirt":{"domain":"shop","exclude_disks":["vdb"]}}`},
			{"root", "POST", "/tasks", `{"name":"m2","client":"web1","type":"libvirt"}`},
			{"root", "POST", "/tasks", `{"name":"m3","client":"web1","type":"libvirt","libvirt":{"domain":"shop"},"sources":["/srv"]}`},
			{"root", "POST", "/tasks", `{"name":"m4","client":"web1","libvirt":{"domain":"shop"},"sources":["/srv"]}`},
			{"root", "GET", "/tasks/m1", ""},
		},
		"runs": {
			{"bob", "POST", "/backups", `{"task":"web1-etc"}`},
			{"bob", "POST", "/backups", `{"task":"db1-pg"}`},
			{"root", "POST", "/backups", `{"task":"db1-pg","level":"FULL"}`},
			{"root", "POST", "/backups", `{"task":"none"}`},
			{"root", "POST", "/backups", `{"task":"web1-etc","level":"SOME"}`},
			{"bob", "POST", "/runs/run-0004/cancel", ""},
			{"bob", "POST", "/runs/run-0004/cancel", ""},
			{"rita", "POST", "/restores", `{"saveset":"a1b2c3","to":"/tmp/r"}`},
			{"rita", "POST", "/restores", `{"saveset":"c3d4e5f60718293a","to":"/tmp/r"}`},
			{"rita", "POST", "/restores", `{"saveset":"a1b2c3","client":"db1","to":"/tmp/r"}`},
			{"root", "POST", "/restores", `{"saveset":"a1b2c3","command":["cat"]}`},
			{"root", "POST", "/restores", `{"saveset":"c3d4e5"}`},
			{"root", "POST", "/restores", `{"saveset":"a1b2c3","flat":true}`},
			{"root", "POST", "/restores", `{"saveset":"a1b2c3","paths":["etc"]}`},
			{"bob", "POST", "/runs/run-0005/cancel", ""},
			{"rita", "GET", "/runs", ""},
			{"root", "GET", "/runs?limit=1&state=success", ""},
			{"root", "GET", "/runs?limit=0", ""},
			{"root", "GET", "/runs?sort=up", ""},
			{"root", "GET", "/runs/run-0001/notices", ""},
			{"root", "GET", "/audit?action=restore", ""},
		},
		"savesets": {
			{"rita", "GET", "/savesets?task=web1-etc&limit=1", ""},
			{"rita", "GET", "/savesets/c3d4e5f60718293a", ""},
			{"root", "GET", "/savesets/a1b2c3", ""},
			{"bob", "GET", "/savesets/a1b2c3/entries", ""},
			{"rita", "GET", "/savesets/a1b2c3/entries?path=/etc&limit=4", ""},
			{"rita", "GET", "/savesets/a1b2c3/entries?path=/etc/../etc/passwd", ""},
			{"rita", "GET", "/savesets/a1b2c3/entries?path=etc", ""},
			{"rita", "GET", "/savesets/a1b2c3/entries?path=/none", ""},
			{"rita", "GET", "/savesets/a1b2c3/content?path=/etc/fstab", ""},
			{"rita", "GET", "/savesets/a1b2c3/content?path=/etc/caf%E9", ""},
			{"rita", "GET", "/savesets/a1b2c3/content?path=/etc&format=file", ""},
			{"root", "GET", "/audit?action=saveset.get", ""},
		},
		"keeping": {
			{"adam", "POST", "/savesets/a1b2c3/lock", ""},
			{"adam", "DELETE", "/savesets/a1b2c3?force=true", ""},
			{"adam", "POST", "/savesets/a1b2c3/unlock", ""},
			{"adam", "PUT", "/savesets/a1b2c3/immutable", `{"until":"2027-01-01T00:00:00Z"}`},
			{"adam", "PUT", "/savesets/a1b2c3/immutable", `{"until":"tomorrow"}`},
			{"adam", "DELETE", "/savesets/a1b2c3", ""},
			{"adam", "DELETE", "/savesets/a1b2c3?force=true", ""},
			{"adam", "DELETE", "/savesets/a1b2c3", ""},
			{"rita", "DELETE", "/savesets/c3d4e5", ""},
			{"root", "GET", "/audit?limit=5", ""},
		},
		"unsealing": {
			{"rita", "POST", "/savesets/a1b2c3/unseal", `{"key":"5d41402abc4b2a76b9719d911017c592 and more"}`},
			{"rita", "POST", "/savesets/c3d4e5/unseal", `{"key":"5d41402abc4b2a76b9719d911017c592 and more"}`},
			{"olga", "POST", "/savesets/c3d4e5/unseal", `{"key":"another"}`},
			{"olga", "POST", "/savesets/c3d4e5/unseal", `{"key":""}`},
			{"olga", "POST", "/savesets/c3d4e5/unseal", `{"key":"5d41402abc4b2a76b9719d911017c592 and more","minutes":30}`},
			{"bob", "POST", "/savesets/c3d4e5/seal", ""},
			{"olga", "POST", "/savesets/c3d4e5/seal", ""},
			{"olga", "POST", "/savesets/ffffff/seal", ""},
			{"adam", "POST", "/tasks", `{"name":"hr1","client":"web1","sources":["/srv"],"encryption":{"key_id":"short"}}`},
			{"root", "GET", "/audit?action=saveset.unseal", ""},
		},
		"store": {
			{"olga", "GET", "/store", ""},
			{"rita", "GET", "/store/damage", ""},
			{"olga", "GET", "/store/damage", ""},
			{"olga", "POST", "/store/maintenance", `{"kind":"gc","options":{"sparse":0.5,"budget":60}}`},
			{"olga", "POST", "/store/maintenance", `{"kind":"gc"}`},
			{"olga", "POST", "/store/maintenance", `{"kind":"gc","options":{"sparse":2}}`},
			{"olga", "POST", "/store/maintenance", `{"kind":"dust"}`},
			{"olga", "POST", "/store/maintenance", `{"kind":"repair","options":{"from":[{"path":"/mnt/replica"}]}}`},
			{"adam", "POST", "/store/maintenance", `{"kind":"repair","options":{"from":[{"path":"mnt/replica"}]}}`},
			{"adam", "POST", "/store/maintenance", `{"kind":"repair","options":{"from":[{"path":"/mnt/replica"}]}}`},
			{"olga", "POST", "/store/maintenance", `{"kind":"reindex"}`},
			{"adam", "POST", "/store/maintenance", `{"kind":"reindex"}`},
			{"bob", "POST", "/store/maintenance", `{"kind":"gc"}`},
			{"olga", "GET", "/store/maintenance?kind=gc&limit=1", ""},
			{"olga", "GET", "/store/maintenance/m-0004", ""},
			{"olga", "GET", "/store/maintenance/none", ""},
			{"olga", "POST", "/store/maintenance/m-0004/cancel", ""},
			{"olga", "POST", "/store/maintenance/m-0004/cancel", ""},
			{"olga", "GET", "/audit?action=store.maintenance", ""},
		},
		"storekeys": {
			{"root", "GET", "/store/keys", ""},
			{"adam", "GET", "/store/keys", ""},
			{"olga", "POST", "/store/unlock", `{"password":"not it"}`},
			{"olga", "POST", "/store/unlock", `{"password":"open sesame, please"}`},
			{"olga", "POST", "/store/unlock", `{"password":"open sesame, please","create":true}`},
			{"root", "POST", "/store/unlock", `{"create":true}`},
			{"root", "POST", "/store/unlock", `{"password":"a","recovery_key":"b"}`},
			{"bob", "POST", "/store/unlock", `{}`},
			{"adam", "POST", "/store/lock", ""},
			{"root", "POST", "/store/lock", ""},
			{"root", "PUT", "/store/openers", `{}`},
			{"root", "PUT", "/store/openers", `{"remove":["door"]}`},
			{"root", "PUT", "/store/openers", `{"password":"a new store password","remove":["key_file"]}`},
			{"root", "POST", "/store/recovery-key", ""},
			{"root", "POST", "/store/keys", ""},
			{"root", "DELETE", "/store/keys/1", ""},
			{"root", "DELETE", "/store/keys/7", ""},
			{"root", "DELETE", "/store/keys/x", ""},
			{"root", "POST", "/store/encryption", `{"password":"a new store password","remove":["key_file"]}`},
			{"root", "POST", "/store/encryption", `{"key_file":true}`},
			{"root", "GET", "/audit?limit=12", ""},
		},
		"machine": {
			{"root", "GET", "/system", ""},
			{"root", "GET", "/store", ""},
			{"rita", "GET", "/store", ""},
			{"root", "GET", "/mount", ""},
			{"root", "PUT", "/mount", `{"on":true}`},
			{"root", "GET", "/none", ""},
			{"root", "PATCH", "/mount", ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, c := start(t)
			users := map[string]*caller{"": c}
			var all strings.Builder
			for _, k := range calls {
				if users[k.as] == nil {
					users[k.as] = c.as(k.as)
				}
				res, data := users[k.as].do(k.method, k.path, k.body)
				who := k.as
				if who == "" {
					who = "nobody"
				}
				all.WriteString("# " + who + "\n" + transcript(k.method, k.path, k.body, res, data))
			}
			golden(t, name+".txt", []byte(all.String()))
		})
	}
}

// TestAPITokensAreLesserThanLogins checks what a token may not do although its user may.
func TestAPITokensAreLesserThanLogins(t *testing.T) {
	_, c := start(t)
	_, data := c.as("root").do("POST", "/tokens", `{"name":"script"}`)
	var tok api.NewToken
	if err := json.Unmarshal(data, &tok); err != nil {
		t.Fatal(err)
	}
	script := *c
	script.token = tok.Secret
	if res, data := script.do("GET", "/clients", ""); res.StatusCode != 200 {
		t.Errorf("a token cannot list clients: %s", data)
	}
	for _, k := range [][3]string{{"POST", "/tokens", `{"name":"another"}`}, {"PUT", "/password", `{"old":"correct horse battery","new":"a new password"}`}} {
		if res, data := script.do(k[0], k[1], k[2]); res.StatusCode != http.StatusForbidden {
			t.Errorf("%s %s: %s: %s", k[0], k[1], res.Status, data)
		}
	}
}

func TestLoginsAreLimited(t *testing.T) {
	r, c := start(t)
	wrong := `{"user":"root","password":"guess"}`
	refused := 0
	var last *http.Response
	for range 12 {
		if res, _ := c.do("POST", "/login", wrong); res.StatusCode == http.StatusTooManyRequests {
			refused++
			last = res
		}
	}
	if refused != 2 {
		t.Fatalf("%d of 12 guesses refused, want 2", refused)
	}
	if last.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	audit, err := r.Backend.AuditLog(t.Context(), api.AuditFilter{Action: "login", Limit: 100})
	if err != nil || len(audit.Items) != 10 {
		t.Errorf("audit log has %d failed logins (%v), want 10: refused ones are not checked", len(audit.Items), err)
	}
}

func TestBodyLimit(t *testing.T) {
	_, c := start(t)
	root := c.as("root")
	res, data := root.do("POST", "/clients", `{"name":"`+strings.Repeat("x", api.MaxBody)+`"}`)
	if res.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(data), `"too_large"`) {
		t.Errorf("got %s: %s", res.Status, data)
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	_, c := start(t)
	res, err := http.Get(strings.Replace(c.url, "https:", "http:", 1) + api.Prefix + "/system")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP got %s", res.Status)
	}
}

// TestInternalErrors checks that what the backend did not mean for callers stays inside.
func TestInternalErrors(t *testing.T) {
	r, c := start(t)
	root := c.as("root")
	r.Backend.Fail = fmt.Errorf("catalog: /var/lib/coffer/catalog.db: disk I/O error")
	res, data := root.do("PUT", "/mount", `{"on":true}`)
	if res.StatusCode != 500 || strings.Contains(string(data), "catalog") {
		t.Errorf("got %s: %s", res.Status, data)
	}
}

func TestNewWantsTLS(t *testing.T) {
	if _, err := server.New(servertest.New(), server.Options{}); err == nil {
		t.Error("a server without TLS was made")
	}
}

// TestStop checks that Serve ends watchers and idle connections quickly.
func TestStop(t *testing.T) {
	r, c := start(t)
	root := c.as("root")
	_, data := root.do("POST", "/backups", `{"task":"web1-etc"}`)
	var run api.Run
	if err := json.Unmarshal(data, &run); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(context.Background(), "GET", c.url+api.Prefix+"/runs/"+run.ID+"/events", nil)
		req.Header.Set("Authorization", "Bearer "+root.token)
		res, err := c.http.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		ended <- err
	}()
	for r.Backend.Watchers() == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	begin := time.Now()
	r.Stop()
	if err := <-ended; err != nil {
		t.Errorf("watcher: %v", err)
	}
	if took := time.Since(begin); took >= 10*time.Second { // what calls have to finish
		t.Errorf("stopping took %s", took)
	}
	if conn, err := net.DialTimeout("tcp", strings.TrimPrefix(c.url, "https://"), time.Second); err == nil {
		_ = conn.Close()
		t.Error("the port still answers")
	}
}
