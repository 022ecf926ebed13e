package digest_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"coffer/dedup/digest"

	"github.com/zeebo/blake3"
)

// key is the key of all goldens: the bytes 0 to 31.
func key() (k digest.DomainKey) {
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

// TestGolden pins the format: the same key and bytes give these digests for ever.
func TestGolden(t *testing.T) {
	keys := digest.Derive(key())
	data, node := digest.NewHasher(keys.Data), digest.NewHasher(keys.Node)
	for _, c := range []struct {
		name string
		got  string
		want string
	}{
		{"data key", fmt.Sprintf("%x", keys.Data[:]), "a2b16f0e0de36d8a2bcc0ed931a52d854c579487868432153b1b7cd3c7c7d032"},
		{"node key", fmt.Sprintf("%x", keys.Node[:]), "2673b59ff26a0d3ce9ed286d9fb14ea6d4af4602191c018b1eddd749672ccb14"},
		{"data digest of nothing", data.Sum(nil).String(), "4602e96fb876d9fc4c08b43c80bd379b8f0768a76b9fe2d33498e0a7ff01e334"},
		{"data digest of abc", data.Sum([]byte("abc")).String(), "719bfaec1f892f0304c8b9de45c3ed6157b97665f0fb8286ff4e16af61efcefb"},
		{"node digest of abc", node.Sum([]byte("abc")).String(), "40a8ab25aa336dc76af00af7c42cba4ed42423056d8c575b05ca5d3638617765"},
		{"data digest of 100,000 zeros", data.Sum(make([]byte, 100_000)).String(), "3c07dc81ac761a407f4e575aeb49647f44093aeb2929b276c33b1f2d4dd600d7"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.name, c.got, c.want)
		}
	}
}

// TestKeyedHashSpec holds the hasher against a test vector of the BLAKE3 authors.
func TestKeyedHashSpec(t *testing.T) {
	k := [32]byte([]byte("whats the Elvish word for friend"))
	in := make([]byte, 1025)
	for i := range in {
		in[i] = byte(i % 251)
	}
	for n, want := range map[int]string{
		0:    "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26",
		1025: "357dc55de0c7e382c900fd6e320acc04146be01db6a8ce7210b7189bd664ea69",
	} {
		if got := digest.NewHasher(k).Sum(in[:n]).String(); got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
}

func TestSumForgetsWrites(t *testing.T) {
	h := digest.NewHasher(digest.Derive(key()).Data)
	want := h.Sum([]byte("hello world"))
	h.Write([]byte("junk"))
	if got := h.Sum([]byte("hello world")); got != want {
		t.Errorf("after a write: %v", got)
	}
	h.Write([]byte("hello "))
	h.Write([]byte("world"))
	if got := h.Digest(); got != want {
		t.Errorf("in pieces: %v", got)
	}
	if got := h.Digest(); got != h.Sum(nil) {
		t.Errorf("digest does not reset: %v", got)
	}
}

func TestTextForms(t *testing.T) {
	d := digest.NewHasher(key()).Sum([]byte("x"))
	if p, err := digest.Parse(d.String()); err != nil || p != d {
		t.Errorf("parse: %v, %v", p, err)
	}
	type both struct {
		D digest.Digest
		I digest.DomainID
	}
	in := both{D: d, I: digest.DomainID(d[:16])}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out both
	if err := json.Unmarshal(text, &out); err != nil || out != in {
		t.Errorf("%s gives %v, %v", text, out, err)
	}
	for _, bad := range []string{"", "00", strings.Repeat("0", 63), strings.Repeat("0", 65), strings.Repeat("g", 64)} {
		if _, err := digest.Parse(bad); err == nil {
			t.Errorf("parse %q: no error", bad)
		}
		if _, err := digest.ParseDomainID(bad); err == nil {
			t.Errorf("parse domain id %q: no error", bad)
		}
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	k := key()
	keys := digest.Derive(k)
	s := fmt.Sprintf("%v %s %+v %#v %v %+v %#v", k, k, k, k, keys, keys, keys)
	if strings.ContainsAny(s, "0x[") {
		t.Errorf("a key shows in %q", s)
	}
}

func TestSumDoesNotAllocate(t *testing.T) {
	h := digest.NewHasher(key())
	for _, n := range []int{0, 100, 1 << 10, 16 << 10, 1 << 20} {
		p := make([]byte, n)
		if got := testing.AllocsPerRun(10, func() { h.Sum(p) }); got != 0 {
			t.Errorf("%d bytes: %v allocations", n, got)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{100, 4 << 10, 16 << 10, 1 << 20} {
		p := make([]byte, n)
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			h := digest.NewHasher(key())
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				h.Sum(p)
			}
		})
		b.Run(fmt.Sprintf("%d-bare", n), func(b *testing.B) {
			k := key()
			h, _ := blake3.NewKeyed(k[:])
			var out [64]byte
			b.SetBytes(int64(n))
			for b.Loop() {
				h.Reset()
				h.Write(p)
				h.Sum(out[:0])
			}
		})
	}
}
