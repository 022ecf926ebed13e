package server_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"coffer/api"
	"coffer/api/server/servertest"
)

func TestTar(t *testing.T) {
	_, c := start(t)
	res, data := c.as("rita").do("GET", "/savesets/a1b2c3/content?path=/etc", "")
	if res.Header.Get("Content-Type") != "application/x-tar" || !strings.Contains(res.Header.Get("Content-Disposition"), "etc.tar") {
		t.Errorf("header %v", res.Header)
	}
	headers, contents := untar(t, data)
	if headers["etc/"] == nil || headers["etc/ssl/"] == nil || len(contents["etc/ssl/key.pem"]) != 4000 {
		t.Errorf("directories or their files are missing: %v", headers)
	}
	if h := headers["etc/hosts"]; h == nil || h.PAXRecords["SCHILY.xattr.user.origin"] != "by hand" || h.ModTime.UnixNano() != servertest.Epoch.UnixNano()+123456789 {
		t.Errorf("etc/hosts: %+v", h)
	}
	if h := headers["etc/hosts.link"]; h == nil || h.Typeflag != tar.TypeLink || h.Linkname != "etc/hosts" {
		t.Errorf("hard link: %+v", h)
	}
	if h := headers["etc/mtab"]; h == nil || h.Linkname != "../proc/self/mounts" {
		t.Errorf("symlink: %+v", h)
	}
	if h := headers["etc/passwd"]; h == nil || h.Mode != 0o4755 || h.ModTime.Unix() != -1 || h.ModTime.Nanosecond() != 5 {
		t.Errorf("setuid, before 1970: %+v", h)
	}
	if contents["etc/caf\xe9"] != "latin 1\n" {
		t.Error("a name that is not UTF-8 is lost")
	}
	if h := headers["etc/console"]; h == nil || h.Typeflag != tar.TypeChar || h.Devmajor != 5 {
		t.Errorf("device: %+v", h)
	}
	if headers["etc/pipe"] == nil || headers["etc/socket"] != nil {
		t.Error("a fifo belongs into a tar, a socket does not")
	}
}

func untar(t *testing.T, data []byte) (headers map[string]*tar.Header, contents map[string]string) {
	t.Helper()
	headers, contents = map[string]*tar.Header{}, map[string]string{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name], contents[h.Name] = h, string(body)
	}
}

// TestTornDownloads checks that a fault in the middle never looks like an end.
func TestTornDownloads(t *testing.T) {
	r, c := start(t)
	r.Backend.AddBroken()
	rita := c.as("rita")
	for _, query := range []string{"path=" + servertest.Broken, "path=/etc"} {
		req, err := http.NewRequest("GET", c.url+api.Prefix+"/savesets/a1b2c3/content?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+rita.token)
		res, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err == nil {
			t.Errorf("%s: a torn download ended without an error", query)
		}
		_ = res.Body.Close()
	}
}
