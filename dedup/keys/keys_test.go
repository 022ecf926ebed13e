package keys

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"coffer/dedup/blob"
	"coffer/dedup/vfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func testRand(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

var cheap = PasswordOptions{Time: 1, MemoryKiB: 64, Threads: 1}

func pw(s string) Source { return Password([]byte(s), cheap) }

func keyFileSource(t testing.TB, seed byte) Source {
	t.Helper()
	data, err := NewKeyFile(testRand(seed))
	if err != nil {
		t.Fatal(err)
	}
	src, err := KeyFile(data)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func create(t testing.TB, sources ...Source) *Ring {
	t.Helper()
	r, err := Create(context.Background(), testRand(1), sources...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func marshal(t testing.TB, r *Ring) []byte {
	t.Helper()
	b, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantErr(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: %v, want %v", what, err, target)
	}
}

func TestSources(t *testing.T) {
	file, other := keyFileSource(t, 1), keyFileSource(t, 2)
	written, mislaid := recoveryKey(t, 1), recoveryKey(t, 2)
	rings := []struct {
		name    string
		sources []Source
	}{{"file", []Source{file}}, {"password", []Source{pw("a")}}, {"both", []Source{file, pw("a")}}, {"plain", []Source{None()}},
		{"three", []Source{file, pw("a"), written.Source()}}}
	tries := []struct {
		name  string
		src   Source
		opens string // names of the rings
	}{{"file", file, "file both three"}, {"other file", other, ""}, {"password", pw("a"), "password both three"},
		{"other password", pw("b"), ""}, {"none", None(), "plain"}, {"recovery key", written.Source(), "three"},
		{"other recovery key", mislaid.Source(), ""}}
	for _, r := range rings {
		ring := create(t, r.sources...)
		sealed, err := ring.Seal("k", "n", []byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		b := marshal(t, ring)
		for _, try := range tries {
			got, err := Unmarshal(t.Context(), nil, b, try.src)
			if !strings.Contains(" "+try.opens+" ", " "+r.name+" ") {
				wantErr(t, r.name+" with "+try.name, err, ErrWrongKey)
				if errors.Is(err, ErrDamaged) {
					t.Fatalf("%v is also taken for damage", err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s with %s: %v", r.name, try.name, err)
			}
			if plain, err := got.Open("k", "n", sealed); err != nil || string(plain) != "text" {
				t.Fatalf("%s: opened %q, %v", r.name, plain, err)
			}
			if got.Encrypted() != (r.name != "plain") || got.Current() != 1 || got.Generation() != 1 {
				t.Fatalf("%s: %v", r.name, got)
			}
		}
	}
	if _, err := Create(t.Context(), nil); err == nil {
		t.Fatal("a ring that nothing opens")
	}
	if _, err := Create(t.Context(), nil, None(), pw("a")); err == nil {
		t.Fatal("a ring that is plain and has a password")
	}
}

// TestEveryByteOfRingCounts: a damaged keyring is never mistaken for a wrong key.
func TestEveryByteOfRingCounts(t *testing.T) {
	for _, src := range []Source{pw("a"), None()} {
		whole := marshal(t, create(t, src))
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1
			_, err := Unmarshal(t.Context(), nil, b, src)
			if errors.Is(err, ErrWrongKey) || (!errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat)) {
				t.Fatalf("byte %d: %v", i, err)
			}
			_, err = Unmarshal(t.Context(), nil, whole[:i], src)
			wantErr(t, fmt.Sprintf("cut to %d bytes", i), err, ErrDamaged)
		}
		_, err := Unmarshal(t.Context(), nil, append(bytes.Clone(whole), 0), src)
		wantErr(t, "one byte more", err, ErrDamaged)
		newer := bytes.Clone(whole)
		newer[8] = ringVersion + 1
		_, err = Unmarshal(t.Context(), nil, newer, src)
		wantErr(t, "one wrong bit in the version", err, ErrDamaged)
		sum := blake3.Sum256(newer[:len(newer)-32])
		copy(newer[len(newer)-32:], sum[:])
		_, err = Unmarshal(t.Context(), nil, newer, src)
		wantErr(t, "newer", err, ErrNewerFormat)
	}
}

func TestObjects(t *testing.T) {
	for _, src := range []Source{pw("a"), None()} {
		r := create(t, src)
		for _, text := range []string{"", "x", strings.Repeat("long ", 1000)} {
			sealed, err := r.Seal("manifest", "m1", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if len(sealed) != len(text)+SealedOverhead {
				t.Fatalf("%d bytes for %d", len(sealed), len(text))
			}
			if got, err := r.Open("manifest", "m1", sealed); err != nil || string(got) != text {
				t.Fatalf("opened %q, %v", got, err)
			}
			if len(text) > 1 && bytes.Contains(sealed, []byte(text)) != (src.kind() == KindNone) {
				t.Fatal("encrypted or not, it is the wrong way round")
			}
			for _, as := range [][2]string{{"manifest", "m2"}, {"state", "m1"}, {"manifestm", "1"}} {
				_, err := r.Open(as[0], as[1], sealed)
				wantErr(t, "as another object", err, ErrDamaged)
			}
			if len(text) > 100 {
				continue
			}
			for i := range sealed {
				b := bytes.Clone(sealed)
				b[i] ^= 1
				if _, err := r.Open("manifest", "m1", b); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) &&
					!errors.Is(err, ErrUnknownKey) {
					t.Fatalf("byte %d: %v", i, err)
				}
				_, err := r.Open("manifest", "m1", sealed[:i])
				wantErr(t, "cut", err, ErrDamaged)
			}
		}
	}
}

func TestDataKeys(t *testing.T) {
	for _, src := range []Source{pw("a"), None()} {
		r := create(t, src)
		var seen WrappedKey
		key, w, err := r.NewDataKey(func(w WrappedKey) []byte { seen = w; return []byte("aad") })
		if err != nil {
			t.Fatal(err)
		}
		if seen.Number != 1 || w.Number != 1 || w.Encrypted != r.Encrypted() {
			t.Fatalf("wrapped: %+v", w)
		}
		var nonce [12]byte
		sealed := key.AEAD.Seal(nil, nonce[:], []byte("record"), []byte("x"))
		if len(sealed) != 6+Overhead {
			t.Fatalf("%d bytes", len(sealed))
		}
		again, err := r.OpenDataKey(w, []byte("aad"))
		if err != nil || again.MAC != key.MAC {
			t.Fatalf("opened: %v", err)
		}
		if text, err := again.AEAD.Open(sealed[:0], nonce[:], sealed, []byte("x")); err != nil || string(text) != "record" {
			t.Fatalf("opened in place: %q, %v", text, err)
		}
		_, err = r.OpenDataKey(w, []byte("other"))
		wantErr(t, "other additional data", err, ErrDamaged)
		bad := w
		bad.Number = 5
		_, err = r.OpenDataKey(bad, []byte("aad"))
		wantErr(t, "unknown number", err, ErrUnknownKey)
		bad = w
		bad.Encrypted = !bad.Encrypted
		_, err = r.OpenDataKey(bad, []byte("aad"))
		wantErr(t, "other mode", err, ErrDamaged)
	}
}

func store(t *testing.T) (*vfs.Mem, *blob.Dir) {
	t.Helper()
	m := vfs.NewMem()
	b, err := blob.OpenDir(m, "/s")
	if err != nil {
		t.Fatal(err)
	}
	return m, b
}

func TestSecondCopy(t *testing.T) {
	m, b := store(t)
	r := create(t, pw("a"))
	if err := Save(t.Context(), b, r); err != nil {
		t.Fatal(err)
	}
	damage := func(name string) {
		f, err := m.OpenReadWrite("/s/" + name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{0xff, 0xff}, 40); err != nil {
			t.Fatal(err)
		}
	}
	damage(ringName(1, 1))
	if _, err := Load(t.Context(), b, pw("a")); err != nil {
		t.Fatalf("one copy is whole: %v", err)
	}
	_, err := Load(t.Context(), b, pw("b"))
	wantErr(t, "wrong password, one copy damaged", err, ErrWrongKey)
	damage(ringName(1, 0))
	_, err = Load(t.Context(), b, pw("a"))
	wantErr(t, "both damaged", err, ErrDamaged)
}

func TestKeyFile(t *testing.T) {
	data, err := NewKeyFile(testRand(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := KeyFile(append(bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n")), ' ')); err != nil {
		t.Fatalf("line ends of another system: %v", err)
	}
	for i := range data[:len(data)-1] {
		b := bytes.Clone(data)
		b[i] ^= 1
		if _, err := KeyFile(b); !errors.Is(err, ErrDamaged) && b[i] != '\n' && data[i] != '\n' {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	_, err = KeyFile(nil)
	wantErr(t, "empty", err, ErrDamaged)
	_, err = KeyFile(make([]byte, 1<<20))
	wantErr(t, "long", err, ErrDamaged)
}

func TestCostIsBounded(t *testing.T) {
	s := slot{kind: KindPassword, cost: argonCost{time: 1, memoryKiB: maxMemoryKiB + 1, threads: 1}}
	_, err := pw("a").kek(t.Context(), &s)
	wantErr(t, "memory", err, ErrDamaged)
	s.cost = argonCost{time: 1 << 31, memoryKiB: 64, threads: 1}
	_, err = pw("a").kek(t.Context(), &s)
	wantErr(t, "time", err, ErrDamaged)
}

func TestNothingIsPrinted(t *testing.T) {
	r := create(t, pw("a"))
	k := recoveryKey(t, 1)
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s", k, k, k, k.Source())} {
		if strings.Contains(s, k.Text()[:5]) || strings.Contains(s, fmt.Sprint(k.key[0])) {
			t.Fatalf("printed: %s", s)
		}
	}
	for _, s := range []string{fmt.Sprint(r), fmt.Sprintf("%v %+v %#v", r, r, r)} {
		if strings.Contains(s, fmt.Sprint(r.now.ringKey[0], r.now.ringKey[1])) || len(s) > 200 {
			t.Fatalf("printed: %s", s)
		}
	}
}

func TestGolden(t *testing.T) {
	file := keyFileSource(t, 4)
	plain := create(t, None())
	ring := create(t, file, pw("secret"))
	ring3 := create(t, file, pw("secret"), recoveryKey(t, 5).Source())
	sealed, err := ring.Seal("manifest", "name", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	sealedPlain, err := plain.Seal("manifest", "name", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	keyFile, err := NewKeyFile(testRand(4))
	if err != nil {
		t.Fatal(err)
	}
	_, b := store(t)
	changed := create(t, None())
	if err := Update(t.Context(), b, changed, func(e *Edit) error {
		if _, err := e.Encrypt(t.Context(), file); err != nil {
			return err
		}
		return e.Retire(1, true, false)
	}); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"ring": marshal(t, ring3), "ring-plain": marshal(t, plain), "ring-encrypted": marshal(t, changed),
		"object": sealed, "object-plain": sealedPlain, "keyfile": keyFile, "recovery": []byte(recoveryKey(t, 5).Text())} {
		path := filepath.Join("testdata", name+".hex")
		dump := hex.Dump(got)
		if *update {
			if err := os.WriteFile(path, []byte(dump), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if dump != string(want) {
			t.Errorf("%s differs (run with -update if that is meant):\n%s", name, dump)
		}
	}
}

// goldenBytes reads a golden file back.
func goldenBytes(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for line := range strings.Lines(string(text)) {
		if len(line) < 60 {
			continue
		}
		raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(line[10:58]), " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, raw...)
	}
	return out
}

// TestVersion1 opens keyrings as they were written before there were flags.
func TestVersion1(t *testing.T) {
	object, plainObject := goldenBytes(t, "object.hex"), goldenBytes(t, "object-plain.hex")
	for _, c := range []struct {
		ring   string
		src    Source
		sealed []byte
	}{{"ring-v1.hex", keyFileSource(t, 4), object}, {"ring-v1.hex", pw("secret"), object}, {"ring-plain-v1.hex", None(), plainObject}} {
		r, err := Unmarshal(t.Context(), nil, goldenBytes(t, c.ring), c.src)
		if err != nil {
			t.Fatalf("%s: %v", c.ring, err)
		}
		if got, err := r.Open("manifest", "name", c.sealed); err != nil || string(got) != "content" {
			t.Fatalf("%s: opened %q, %v", c.ring, got, err)
		}
		if got, want := r.Keys(), []KeyState{{Number: 1, Encrypted: c.ring == "ring-v1.hex", Objects: true, Containers: true}}; !slices.Equal(got, want) {
			t.Fatalf("%s: keys %+v, want %+v", c.ring, got, want)
		}
	}
}

func FuzzRing(f *testing.F) {
	src := keyFileSource(f, 1)
	f.Add(marshal(f, create(f, src)))
	f.Add(marshal(f, create(f, None())))
	f.Add(goldenBytes(f, "ring-v1.hex"))
	f.Add(goldenBytes(f, "ring-plain-v1.hex"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range []Source{src, None()} {
			r, err := Unmarshal(t.Context(), nil, b, s)
			if err != nil {
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, ErrWrongKey) {
					t.Fatal(err)
				}
				continue
			}
			again, err := Unmarshal(t.Context(), nil, marshal(t, r), s)
			if err != nil || again.now.ringKey != r.now.ringKey || !slices.Equal(again.Keys(), r.Keys()) {
				t.Fatalf("written and read again: %v", err)
			}
		}
	})
}

func FuzzObject(f *testing.F) {
	r := create(f, keyFileSource(f, 1))
	sealed, err := r.Seal("k", "n", []byte("text"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := r.Open("k", "n", b); err == nil && !bytes.Equal(b, sealed) {
			t.Fatalf("forged: %x", b)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	data, err := NewKeyFile(testRand(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := KeyFile(b); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
}
