package dedup

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"coffer/dedup/chunk"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fullManifest has every field set.
func fullManifest() Manifest {
	at := func(s int64) time.Time { return time.Unix(1_800_000_000+s, 123456789).UTC() }
	ref := func(b byte) recipe.Ref {
		return recipe.Ref{Digest: digest.Digest{b}, Totals: recipe.Totals{Entries: 3, Bytes: 4}}
	}
	return Manifest{
		ID: SavesetID{1, 2, 3}, Domain: digest.DomainID{4}, Run: "run-17", Root: ref(5), Side: ref(6),
		Client: "web1", Task: "web1-etc", TaskType: "path", RequestedLevel: "INCR", Level: "FULL", Reason: "no_valid_full",
		Parent: SavesetID{7}, Started: at(0), Finished: at(10), Committed: at(11), Sources: []string{"/etc", "/a\u00ff"},
		Warnings: 2, Entries: 3, Logical: 4, New: 5, Stored: 6, Meta: json.RawMessage(`{"k":[1,null]}`),
		State: State{Time: at(11), EOL: at(1000), Cause: "retention", Locked: true, ImmutableUntil: at(500), Deleted: true},
	}
}

func golden(t *testing.T, name string, v any) []byte {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), want) {
		t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
	}
	return got
}

// manifestComesBack holds a manifest against its golden file, and against what is decoded from that.
func manifestComesBack(t *testing.T, name string, m Manifest) {
	t.Helper()
	var mo manifestObject
	if err := decodeObject(manifestKind, "", golden(t, name, m.object()), &mo); err != nil {
		t.Fatal(err)
	}
	back := mo.manifest()
	var a, b bytes.Buffer
	_ = json.Compact(&a, m.Meta)
	_ = json.Compact(&b, back.Meta)
	if a.String() != b.String() {
		t.Errorf("meta %s, want %s", b.String(), a.String())
	}
	if back.Meta = m.Meta; !reflect.DeepEqual(back, m) {
		t.Errorf("manifest comes back as %+v, want %+v", back, m)
	}
}

func TestObjectGoldens(t *testing.T) {
	m := fullManifest()
	manifestComesBack(t, "manifest.json", m) // version 1, as every program wrote it that did not count switches
	withSwitches := m
	withSwitches.Switches = 7
	manifestComesBack(t, "manifest-switches.json", withSwitches)
	sealed := withSwitches
	sealed.SealedBy = seal.ID{8, 9}
	manifestComesBack(t, "manifest-sealed.json", sealed)
	golden(t, "manifest-empty.json", (&Manifest{}).object())
	golden(t, "state.json", State{Number: 1, Time: m.Started}.object(m.ID))
	row := damageRow{sort: damagedFrame, dormant: []digest.Digest{{2}}, Damage: Damage{Container: 0x100000002,
		Kind: container.Data, Frame: 3, Digests: []digest.Digest{{1}}, Reason: "checksum", Found: m.Started}}
	rowComesBack(t, "damage.json", row)
	rowComesBack(t, "damage-object.json", damageRow{sort: damagedObject,
		Damage: Damage{Frame: WholeContainer, Object: manifestName(m.ID), Saveset: m.ID, Found: m.Started}})
	golden(t, "check.json", checkObject{Version: objectVersion, Round: 3, Cursor: "0000000100000002", Done: 4, Total: 9,
		Shallow: true, Pages: m.Started, Deep: m.Started, Objects: m.Started})
	golden(t, "epoch.json", epochObject{objectVersion, 9, "backup1 pid 42", m.Started})
	d := Domain{ID: digest.DomainID{1}, Key: digest.DomainKey{2}, Chunking: chunk.Params{Polynomial: 0x3DA3358B4DC173, Min: 512 << 10, Max: 8 << 20, AvgBits: 20}}
	var o domainObject
	if err := decodeObject(domainKind, "", golden(t, "domain.json", d.object()), &o); err != nil {
		t.Fatal(err)
	}
	got, err := o.domain()
	if d.Keys = digest.Derive(d.Key); err != nil || got != d {
		t.Errorf("domain comes back as %+v, %v", got, err)
	}
}

func rowComesBack(t *testing.T, name string, row damageRow) {
	t.Helper()
	var o damageObject
	if err := decodeObject(damageKind, "", golden(t, name, row.object()), &o); err != nil {
		t.Fatal(err)
	}
	if got, err := o.row(); err != nil || !reflect.DeepEqual(got, row) {
		t.Errorf("row comes back as %+v, %v", got, err)
	}
}

// FuzzDamageRow: what passes is a row that says the same again.
func FuzzDamageRow(f *testing.F) {
	for _, name := range []string{"damage.json", "damage-object.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o, again damageObject
		if decodeObject(damageKind, "", b, &o) != nil {
			return
		}
		r, err := o.row()
		if err != nil {
			return
		}
		text, err := json.Marshal(r.object())
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeObject(damageKind, "", text, &again); err != nil {
			t.Fatal(err)
		}
		if r2, err := again.row(); err != nil || r2.sort != r.sort || r2.Container != r.Container || r2.Frame != r.Frame {
			t.Fatalf("%+v comes back as %+v, %v", r, r2, err)
		}
	})
}

func TestObjectNames(t *testing.T) {
	id := SavesetID{0xab}
	for got, want := range map[string]string{
		epochName(255):    "epochs/000000ff",
		manifestName(id):  "manifests/ab000000000000000000000000000000",
		stateName(id, 16): "states/ab000000000000000000000000000000/00000010",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, s := range []string{"", "1", "0000000G", "000000FF", "+0000001", "0000000000000001"} {
		if _, ok := parseNumber(s); ok {
			t.Errorf("number %q is taken", s)
		}
	}
	if _, err := ParseSavesetID("xyz"); KindOf(err) != Invalid {
		t.Error(err)
	}
}

func TestSavesetIDsSortByTime(t *testing.T) {
	a, b := newSavesetID(time.UnixMilli(1000)), newSavesetID(time.UnixMilli(1001))
	if bytes.Compare(a[:], b[:]) >= 0 {
		t.Errorf("%v is not before %v", a, b)
	}
}

func FuzzObject(f *testing.F) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again manifestObject
		if err := decodeObject(manifestKind, "x", b, &m); err == nil {
			man := m.manifest()
			enc, err := json.Marshal(man.object())
			if err != nil {
				t.Skip("a time or meta that JSON cannot write")
			}
			if err := decodeObject(manifestKind, "x", enc, &again); err != nil {
				t.Fatalf("%s: %v", enc, err)
			}
		}
		var st stateObject
		if err := decodeObject(stateKind, "x", b, &st); err == nil {
			_ = State{}.follow(st.state())
		}
		var d domainObject
		if err := decodeObject(domainKind, "x", b, &d); err == nil {
			_, _ = d.domain()
		}
	})
}
