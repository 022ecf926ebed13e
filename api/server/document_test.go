package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"crypto/tls"

	"coffer/api"
)

// document returns a server of no backend, and its OpenAPI document.
func document(t *testing.T) (*Server, map[string]map[string]any) {
	t.Helper()
	s, err := New(nil, Options{TLS: &tls.Config{MinVersion: tls.VersionTLS13}})
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}
	if err := json.Unmarshal(s.Document(), &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("OpenAPI version %s", doc.OpenAPI)
	}
	return s, doc.Paths
}

// TestDocumentIsGolden shows every change of the API's contract in review.
func TestDocumentIsGolden(t *testing.T) {
	s, _ := document(t)
	const file = "testdata/openapi.json"
	if slices.Contains(os.Args, "-update") || slices.Contains(os.Args, "-update=true") {
		if err := os.WriteFile(file, s.Document(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, s.Document()) {
		t.Errorf("the OpenAPI document differs from %s (-update rewrites it)", file)
	}
}

// TestRoutesAndDocumentAgree holds gin's routes and the document together, both ways.
func TestRoutesAndDocumentAgree(t *testing.T) {
	s, paths := document(t)
	documented := map[string]bool{}
	for path, methods := range paths {
		for method := range methods {
			documented[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, r := range s.gin.Routes() {
		segments := strings.Split(r.Path, "/")
		for i, seg := range segments {
			if name, ok := strings.CutPrefix(seg, ":"); ok {
				segments[i] = "{" + name + "}"
			}
		}
		key := r.Method + " " + strings.Join(segments, "/")
		if !documented[key] {
			t.Errorf("gin serves %s, the document does not know it", key)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("the document has %s, gin does not serve it", key)
	}
}

// TestPermissionsAreGolden shows every change of who may do what in review.
func TestPermissionsAreGolden(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-16s %-7s %-28s", "operation", "method", "path")
	for _, r := range api.Roles() {
		fmt.Fprintf(&b, " %-9s", r)
	}
	b.WriteString(" audit\n")
	for _, op := range operations() {
		fmt.Fprintf(&b, "%-16s %-7s %-28s", op.id, op.method, op.path)
		for _, r := range api.Roles() {
			mark := "-"
			if op.allows(r) || op.roles == nil {
				mark = "yes"
			}
			fmt.Fprintf(&b, " %-9s", mark)
		}
		b.WriteString(" " + op.audit + "\n")
	}
	const file = "testdata/permissions.txt"
	if slices.Contains(os.Args, "-update") || slices.Contains(os.Args, "-update=true") {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != b.String() {
		t.Errorf("the permissions differ from %s (-update rewrites it); got:\n%s", file, b.String())
	}
}

// TestChangesAreAudited checks that no operation that changes something is missing from the audit log.
func TestChangesAreAudited(t *testing.T) {
	for _, op := range operations() {
		if op.method != "GET" && op.audit == "" {
			t.Errorf("operation %s changes something and is not audited", op.id)
		}
	}
}
