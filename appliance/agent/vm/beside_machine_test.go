package vm

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coffer/appliance/sms"
)

func packed(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestVariables(t *testing.T) {
	large := bytes.Repeat([]byte("variable"), 1<<17)
	for name, c := range map[string]struct {
		d     sms.MachineDefinition
		want  []byte
		fault string
	}{
		"none":    {},
		"plain":   {d: sms.MachineDefinition{NVRAM: []byte("x")}, want: []byte("x")},
		"packed":  {d: sms.MachineDefinition{NVRAMGzip: packed(t, large)}, want: large},
		"no gzip": {d: sms.MachineDefinition{NVRAMGzip: []byte("x")}, fault: "unpack"},
		"cut":     {d: sms.MachineDefinition{NVRAMGzip: packed(t, large)[:100]}, fault: "unpack"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := variables(&c.d)
			if !bytes.Equal(got, c.want) || c.fault == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestUnpackIsBounded(t *testing.T) {
	b := packed(t, make([]byte, 5000))
	if got, err := unpack(b, 5000); err != nil || len(got) != 5000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := unpack(b, 4999); err == nil {
		t.Errorf("%d bytes of at most 4999", len(got))
	}
}

func TestChangeover(t *testing.T) {
	ms := &Machines{StateDir: filepath.Join(t.TempDir(), "machines")}
	const id = "0123456789ab"
	if n, err := ms.changeover(id); n != nil || err != nil {
		t.Errorf("before: %+v, %v", n, err)
	}
	want := changeover{Pool: "p", Images: []string{"/a", "/b"}, XML: "<domain/>"}
	for range 2 {
		if err := ms.keepChangeover(id, want); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := ms.changeover(id); err != nil || n.Pool != "p" || n.XML != want.XML || !slices.Equal(n.Images, want.Images) {
		t.Errorf("%+v, %v", n, err)
	}
	for _, bad := range []string{"", "{}", `{"version": 2}`, "["} {
		if err := os.WriteFile(ms.changeoverPath(id), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := ms.changeover(id); err == nil {
			t.Errorf("%q was taken for %+v", bad, n)
		}
	}
	for range 2 {
		if err := ms.dropChangeover(id); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNamesOfImages(t *testing.T) {
	own := ownImage("0123456789ab")
	if name := imageName("shop", "vda", "0123456789ab", "qcow2"); !own(name) || name != "shop-vda-0123456789ab.qcow2" {
		t.Error(name)
	}
	for _, other := range []string{"shop-vda-0123456789ac.qcow2", "0123456789ab", "shop-vda-0123456789ab-copy.qcow2", "shop.qcow2", ""} {
		if own(other) {
			t.Errorf("%q is ours", other)
		}
	}
}
