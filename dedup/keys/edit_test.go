package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"coffer/dedup/blob"
)

func recoveryKey(t testing.TB, seed byte) RecoveryKey {
	t.Helper()
	k, err := NewRecoveryKey(testRand(seed))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func saved(t *testing.T, b blob.Store, sources ...Source) *Ring {
	t.Helper()
	r := create(t, sources...)
	if err := Save(t.Context(), b, r); err != nil {
		t.Fatal(err)
	}
	return r
}

func change(t *testing.T, b blob.Store, r *Ring, f func(*Edit) error) {
	t.Helper()
	if err := Update(t.Context(), b, r, f); err != nil {
		t.Fatal(err)
	}
}

func addKey(e *Edit) error {
	_, err := e.AddKey()
	return err
}

func sealed(t *testing.T, r *Ring) []byte {
	t.Helper()
	s, err := r.Seal("k", "n", []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func opens(t *testing.T, r *Ring, sealed []byte) {
	t.Helper()
	if text, err := r.Open("k", "n", sealed); err != nil || string(text) != "text" {
		t.Fatalf("opened %q, %v", text, err)
	}
}

func TestUpdate(t *testing.T) {
	_, b := store(t)
	_, err := Load(t.Context(), b, pw("a"))
	wantErr(t, "load nothing", err, blob.ErrNotExist)
	_, err = Peek(t.Context(), b)
	wantErr(t, "peek at nothing", err, blob.ErrNotExist)
	r := saved(t, b, pw("a"))
	wantErr(t, "save twice", Save(t.Context(), b, r), blob.ErrExists)
	old := sealed(t, r)
	change(t, b, r, addKey)
	change(t, b, r, func(e *Edit) error {
		return errors.Join(e.SetOpener(t.Context(), pw("b")), e.SetOpener(t.Context(), keyFileSource(t, 1)))
	})
	_, err = Load(t.Context(), b, pw("a"))
	wantErr(t, "the old password", err, ErrWrongKey)
	for _, src := range []Source{pw("b"), keyFileSource(t, 1)} {
		got, err := Load(t.Context(), b, src)
		if err != nil {
			t.Fatal(err)
		}
		if got.Current() != 2 || got.Generation() != 3 {
			t.Fatalf("current key %d, generation %d", got.Current(), got.Generation())
		}
		opens(t, got, old)
	}
	kinds, err := Peek(t.Context(), b)
	if want := []Kind{KindKeyFile, KindPassword}; err != nil || !slices.Equal(kinds, want) || !slices.Equal(r.Openers(), want) {
		t.Fatalf("openers %v, %v, %v, want %v", kinds, err, r.Openers(), want)
	}
	change(t, b, r, func(e *Edit) error { return e.Destroy(1) })
	_, err = r.Open("k", "n", old)
	wantErr(t, "under a destroyed key", err, ErrUnknownKey)
	if names, _ := list(t.Context(), b); len(names) != copies {
		t.Fatalf("keyrings %v", names)
	}
}

func TestUpdateRefuses(t *testing.T) {
	_, b := store(t)
	_, plainStore := store(t)
	secret, plain := saved(t, b, pw("a")), saved(t, plainStore, None())
	ctx := context.Background()
	for _, c := range []struct {
		name string
		b    blob.Store
		r    *Ring
		f    func(*Edit) error
	}{
		{"the last opener", b, secret, func(e *Edit) error { return e.RemoveOpener(KindPassword) }},
		{"a recovery key alone", b, secret, func(e *Edit) error {
			return errors.Join(e.SetOpener(ctx, recoveryKey(t, 1).Source()), e.RemoveOpener(KindPassword))
		}},
		{"an opener that is not there", b, secret, func(e *Edit) error { return e.RemoveOpener(KindKeyFile) }},
		{"no encryption as an opener", b, secret, func(e *Edit) error { return e.SetOpener(ctx, None()) }},
		{"encrypt twice", b, secret, func(e *Edit) error { _, err := e.Encrypt(ctx, pw("b")); return err }},
		{"destroy the current key", b, secret, func(e *Edit) error { return e.Destroy(1) }},
		{"retire the current key", b, secret, func(e *Edit) error { return e.Retire(1, true, true) }},
		{"destroy no key", b, secret, func(e *Edit) error { return e.Destroy(7) }},
		{"a password for a plain ring", plainStore, plain, func(e *Edit) error { return e.SetOpener(ctx, pw("a")) }},
		{"encrypt with nothing", plainStore, plain, func(e *Edit) error { _, err := e.Encrypt(ctx); return err }},
		{"encrypt with a recovery key alone", plainStore, plain, func(e *Edit) error {
			_, err := e.Encrypt(ctx, recoveryKey(t, 1).Source())
			return err
		}},
	} {
		before := marshalSize(t, c.r)
		if err := Update(ctx, c.b, c.r, c.f); err == nil {
			t.Errorf("%s is allowed", c.name)
		}
		if c.r.Generation() != 1 || marshalSize(t, c.r) != before {
			t.Errorf("%s: refused, and changed the ring", c.name)
		}
	}
}

func marshalSize(t *testing.T, r *Ring) int { return len(marshal(t, r)) }

// TestEncrypt switches encryption on: what was sealed before opens until its key is retired, and nobody can pass plain
// bytes off as sealed by the new key.
func TestEncrypt(t *testing.T) {
	_, b := store(t)
	r := saved(t, b, None())
	old := sealed(t, r)
	oldKey, wrapped, err := r.NewDataKey(func(WrappedKey) []byte { return nil })
	if err != nil {
		t.Fatal(err)
	}
	change(t, b, r, func(e *Edit) error { _, err := e.Encrypt(t.Context(), pw("a")); return err })
	if !r.Encrypted() || r.Current() != 2 {
		t.Fatalf("encrypted %v, current key %d", r.Encrypted(), r.Current())
	}
	fresh := sealed(t, r)
	if strings.Contains(string(fresh), "text") || !strings.Contains(string(old), "text") {
		t.Fatal("encrypted or not, it is the wrong way round")
	}
	_, err = Load(t.Context(), b, None())
	wantErr(t, "without a key", err, ErrWrongKey)
	if r, err = Load(t.Context(), b, pw("a")); err != nil {
		t.Fatal(err)
	}
	opens(t, r, old)
	opens(t, r, fresh)
	if k, err := r.OpenDataKey(wrapped, nil); err != nil || k.MAC != oldKey.MAC {
		t.Fatalf("data key of the time before: %v", err)
	}
	forged := slices.Clone(old)
	forged[8] = 2 // a plain object that names the secret key
	_, err = r.Open("k", "n", forged)
	wantErr(t, "plain under the new key", err, ErrDamaged)

	change(t, b, r, func(e *Edit) error { return e.Retire(1, true, false) })
	_, err = r.Open("k", "n", old)
	wantErr(t, "object of a retired key", err, ErrDamaged)
	if _, err := r.OpenDataKey(wrapped, nil); err != nil {
		t.Fatalf("containers of the key still count: %v", err)
	}
	change(t, b, r, func(e *Edit) error { return e.Retire(1, false, true) })
	if r, err = Load(t.Context(), b, pw("a")); err != nil {
		t.Fatal(err)
	}
	_, err = r.OpenDataKey(wrapped, nil)
	wantErr(t, "container of a retired key", err, ErrDamaged)
	opens(t, r, fresh)
	if want := []KeyState{{Number: 1}, {Number: 2, Encrypted: true, Objects: true, Containers: true}}; !slices.Equal(r.Keys(), want) {
		t.Fatalf("keys %+v, want %+v", r.Keys(), want)
	}
}

// faulty fails the operations on keyrings that it is told to.
type faulty struct {
	blob.Store
	puts, deletes func(n int) error // n counts from 0
	nput, ndelete int
}

func (f *faulty) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	n := f.nput
	f.nput++
	if f.puts != nil {
		if err := f.puts(n); err != nil {
			return err
		}
	}
	return f.Store.Put(ctx, name, r, size)
}

func (f *faulty) Delete(ctx context.Context, name string) error {
	n := f.ndelete
	f.ndelete++
	if f.deletes != nil {
		if err := f.deletes(n); err != nil {
			return err
		}
	}
	return f.Store.Delete(ctx, name)
}

var errDisk = errors.New("input/output error")

// TestUpdateFails: a change that could not be made durable is not used, and can be tried again; one that is durable is.
func TestUpdateFails(t *testing.T) {
	at := func(want int) func(int) error {
		return func(n int) error {
			if n == want {
				return errDisk
			}
			return nil
		}
	}
	always := func(int) error { return errDisk }
	for _, c := range []struct {
		name          string
		puts, deletes func(int) error
		counts        bool
	}{
		{"first copy", at(0), nil, false},
		{"second copy", at(1), nil, false},
		{"second copy, and the first one stays", at(1), always, false},
		{"older ones stay", nil, always, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, b := store(t)
			r := saved(t, b, pw("a"))
			err := Update(t.Context(), &faulty{Store: b, puts: c.puts, deletes: c.deletes}, r, addKey)
			wantErr(t, "update", err, errDisk)
			if errors.Is(err, ErrOldKeyrings) != c.counts || (r.Current() == 2) != c.counts {
				t.Fatalf("current key %d after %v", r.Current(), err)
			}
			mine := sealed(t, r)
			again, err := Load(t.Context(), b, pw("a")) // a crash: what is on disk opens what was sealed
			if err != nil {
				t.Fatal(err)
			}
			opens(t, again, mine)
			change(t, b, r, addKey)
			if names, _ := list(t.Context(), b); len(names) != copies {
				t.Fatalf("keyrings %v", names)
			}
			if again, err = Load(t.Context(), b, pw("a")); err != nil {
				t.Fatal(err)
			}
			opens(t, again, mine)
			opens(t, again, sealed(t, r))
		})
	}
}

func TestMend(t *testing.T) {
	_, b := store(t)
	saved(t, b, pw("a"))
	mend := func(generation uint64) {
		t.Helper()
		r, err := Load(t.Context(), b, pw("a"))
		if err == nil {
			err = Mend(t.Context(), b, r)
		}
		if names, _ := list(t.Context(), b); err != nil || len(names) != copies || r.Generation() != generation {
			t.Fatalf("%v: %v, %v", r, names, err)
		}
	}
	mend(1)
	for i := range copies {
		if err := b.Delete(t.Context(), ringName(uint64(i)+1, i)); err != nil {
			t.Fatal(err)
		}
		mend(uint64(i) + 2)
	}
	older := create(t, pw("old"))
	if err := Save(t.Context(), b, older); err != nil { // what a deletion that failed leaves
		t.Fatal(err)
	}
	mend(4)
}

func TestRecoveryKey(t *testing.T) {
	k := recoveryKey(t, 3)
	text := k.Text()
	if len(strings.Split(text, "-")) != 8 || len(text) != 47 {
		t.Fatalf("written as %s", text)
	}
	for _, s := range []string{text, strings.ToLower(text), strings.ReplaceAll(text, "-", " "), strings.ReplaceAll(text, "-", "") + "\n",
		strings.NewReplacer("0", "O", "1", "l").Replace(text)} {
		if got, err := ParseRecoveryKey(s); err != nil || got != k {
			t.Errorf("%q: %v", s, err)
		}
	}
	for i := range text {
		for _, c := range recoveryAlphabet + "U*é" {
			typed := text[:i] + string(c) + text[i+1:]
			if got, err := ParseRecoveryKey(typed); err == nil && got != k {
				t.Fatalf("%q is taken for a key", typed)
			}
		}
	}
	_, err := ParseRecoveryKey(strings.Repeat("A", 1<<20))
	wantErr(t, "long", err, ErrDamaged)
	_, err = ParseRecoveryKey("")
	wantErr(t, "empty", err, ErrDamaged)
}

func FuzzRecoveryKey(f *testing.F) {
	k, err := NewRecoveryKey(testRand(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.Text())
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseRecoveryKey(s)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		if again, err := ParseRecoveryKey(k.Text()); err != nil || again != k {
			t.Fatalf("%s: %v", fmt.Sprintf("%q", s), err)
		}
	})
}
