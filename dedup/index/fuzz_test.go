package index

import (
	"bytes"
	"testing"

	"coffer/dedup/container"
)

func FuzzMeta(f *testing.F) {
	f.Add((meta{store: testStore, memtable: minMemtable, state: stateOpening, deaths: 1}).encode())
	f.Add([]byte("coffer-index 1 "))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err == nil && !bytes.Equal(m.encode(), b) {
			t.Fatalf("%q decodes to %q", b, m.encode())
		}
	})
}

func FuzzEntry(f *testing.F) {
	f.Add(appendLoc(nil, Loc{container.MakeID(1, 2), 3, container.Node}))
	f.Add(markKey(container.MakeID(1, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := parseLoc(b); err == nil && !bytes.Equal(appendLoc(nil, l), b) {
			t.Fatalf("location %x decodes to %v", b, l)
		}
		if id, ok := parseMark(b); ok && !bytes.Equal(markKey(id)[keySize:], b[keySize:]) {
			t.Fatalf("mark %x decodes to %v", b, id)
		}
	})
}

func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want string
	}{
		{"meta", string((meta{store: testStore, memtable: 32 << 20, state: stateOpen}).encode()),
			"coffer-index 2 01020300000000000000000000000000 33554432 open 0 c042f38a\n"},
		{"location of data", string(appendLoc(nil, Loc{0x0102030405060708, 0x0a0b0c0d, container.Data})),
			"\x08\x07\x06\x05\x04\x03\x02\x01\x0d\x0c\x0b\x0a"},
		{"location of a node", string(appendLoc(nil, Loc{1, 2, container.Node})),
			"\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x80"},
		{"mark", string(markKey(0x0102030405060708)), string(make([]byte, 16)) + "m\x01\x02\x03\x04\x05\x06\x07\x08"},
		{"dead rows", string(deadKey()), string(make([]byte, 16)) + "d"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
}
