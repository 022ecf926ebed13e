// Package blobtest is the contract of blob.Store as a test suite, which every backend runs.
//
// It owns what all backends have in common; what only one of them promises (files, locks, crashes) that one tests.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"coffer/dedup/blob"
)

// Run tests a backend; open returns an empty store each time.
func Run(t *testing.T, open func(t *testing.T) blob.Store) {
	for _, c := range []struct {
		name string
		f    func(t *testing.T, s blob.Store)
	}{
		{"PutReadDelete", testPutReadDelete},
		{"CreateOnly", testCreateOnly},
		{"Ranges", testRanges},
		{"Prefetch", testPrefetch},
		{"Missing", testMissing},
		{"Names", testNames},
		{"WrongSize", testWrongSize},
		{"List", testList},
		{"Cancelled", testCancelled},
		{"Concurrent", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, open(t)) })
	}
}

func put(t *testing.T, s blob.Store, name, data string) {
	t.Helper()
	if err := blob.PutBytes(t.Context(), s, name, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, s blob.Store, name, data string) {
	t.Helper()
	got, err := blob.ReadAll(t.Context(), s, name, 1<<20)
	if err != nil || string(got) != data {
		t.Fatalf("%s holds %q, %v; want %q", name, got, err, data)
	}
}

func wantErr(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: error %v, want %v", what, err, target)
	}
}

func testPutReadDelete(t *testing.T, s blob.Store) {
	put(t, s, "a/b/c", "content")
	put(t, s, "a/b/empty", "")
	want(t, s, "a/b/c", "content")
	want(t, s, "a/b/empty", "")
	if n, err := s.Size(t.Context(), "a/b/c"); err != nil || n != 7 {
		t.Fatalf("size %d, %v", n, err)
	}
	if err := s.Delete(t.Context(), "a/b/c"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Size(t.Context(), "a/b/c")
	wantErr(t, "size after delete", err, blob.ErrNotExist)
	wantErr(t, "read after delete", s.ReadRange(t.Context(), "a/b/c", make([]byte, 1), 0), blob.ErrNotExist)
	put(t, s, "a/b/c", "again")
	want(t, s, "a/b/c", "again")
}

func testCreateOnly(t *testing.T, s blob.Store) {
	put(t, s, "x", "first")
	wantErr(t, "put again", blob.PutBytes(t.Context(), s, "x", []byte("second")), blob.ErrExists)
	want(t, s, "x", "first")
}

func testRanges(t *testing.T, s blob.Store) {
	put(t, s, "x", "0123456789")
	for _, c := range []struct {
		off, n int64
		want   string // empty: beyond the end
	}{{0, 10, "0123456789"}, {0, 1, "0"}, {9, 1, "9"}, {3, 4, "3456"}, {9, 2, ""}, {10, 1, ""}, {11, 1, ""}, {1 << 40, 1, ""}} {
		p := make([]byte, c.n)
		err := s.ReadRange(t.Context(), "x", p, c.off)
		switch {
		case c.want == "":
			wantErr(t, fmt.Sprintf("%d bytes at %d", c.n, c.off), err, io.ErrUnexpectedEOF)
		case err != nil || string(p) != c.want:
			t.Fatalf("%d bytes at %d: %q, %v", c.n, c.off, p, err)
		}
	}
	if err := s.ReadRange(t.Context(), "x", nil, 4); err != nil {
		t.Fatalf("no bytes: %v", err)
	}
}

// testPrefetch says of all ranges that they will be read, of some wrongly: nothing comes of it but what is read.
func testPrefetch(t *testing.T, s blob.Store) {
	p, ok := s.(blob.Prefetcher)
	if !ok {
		t.Skip("the backend cannot prefetch")
	}
	put(t, s, "x", "0123456789")
	for _, off := range []int64{0, 4, 10, 1 << 40} {
		p.Prefetch("x", off, 6)
	}
	p.Prefetch("y", 0, 10)
	p.Prefetch("../x", 0, 10)
	want(t, s, "x", "0123456789")
}

func testMissing(t *testing.T, s blob.Store) {
	put(t, s, "dir/x", "1")
	for _, name := range []string{"nothing", "dir", "dir/y", "dir/x/y"} {
		_, err := s.Size(t.Context(), name)
		if err == nil {
			t.Fatalf("%s has a size", name)
		}
		if name == "dir/x/y" {
			continue // no blob may be a directory of another: any error will do
		}
		wantErr(t, "size of "+name, err, blob.ErrNotExist)
		if name != "dir" {
			wantErr(t, "read "+name, s.ReadRange(t.Context(), name, make([]byte, 1), 0), blob.ErrNotExist)
		}
		wantErr(t, "delete "+name, s.Delete(t.Context(), name), blob.ErrNotExist)
	}
}

func testNames(t *testing.T, s blob.Store) {
	for _, name := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".hidden", "a/.b", "A", "a b", "ä",
		"a\x00", "a\\b", strings.Repeat("a", 200), strings.Repeat("a/", 300) + "a"} {
		wantErr(t, fmt.Sprintf("put %q", name), blob.PutBytes(t.Context(), s, name, nil), blob.ErrName)
		_, err := s.Size(t.Context(), name)
		wantErr(t, fmt.Sprintf("size of %q", name), err, blob.ErrName)
		wantErr(t, fmt.Sprintf("delete %q", name), s.Delete(t.Context(), name), blob.ErrName)
		wantErr(t, fmt.Sprintf("read %q", name), s.ReadRange(t.Context(), name, make([]byte, 1), 0), blob.ErrName)
	}
	for _, name := range []string{"a", "0-9_.x", strings.Repeat("a", 128)} {
		put(t, s, name, name)
		want(t, s, name, name)
	}
}

func testWrongSize(t *testing.T, s blob.Store) {
	for _, size := range []int64{0, 4, 6, 1 << 20} {
		if err := s.Put(t.Context(), "x", strings.NewReader("12345"), size); err == nil {
			t.Fatalf("5 bytes were put as %d", size)
		}
		_, err := s.Size(t.Context(), "x")
		wantErr(t, "size after a failed put", err, blob.ErrNotExist)
	}
	broken := io.MultiReader(strings.NewReader("123"), errReader{})
	wantErr(t, "put of a broken reader", s.Put(t.Context(), "x", broken, 5), errBroken)
	put(t, s, "x", "12345")
}

var errBroken = errors.New("broken reader")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func testList(t *testing.T, s blob.Store) {
	names := []string{"a/1", "a/2/x", "a/2/y", "a/2-", "a/20", "a.b", "b", "c/d/e/f"}
	for _, n := range names {
		put(t, s, n, n)
	}
	slices.Sort(names)
	for _, prefix := range []string{"", "a", "a/", "a/2", "a/2/", "a/2/x", "c/d", "zzz", "b", "b/", "a/1x"} {
		for _, after := range append([]string{"", "a/", "a/2/", "a/2/xx", "a0", "zz"}, names...) {
			var expect []string
			for _, n := range names {
				if strings.HasPrefix(n, prefix) && n > after {
					expect = append(expect, n)
				}
			}
			if got := list(t, s, prefix, after); !slices.Equal(got, expect) {
				t.Fatalf("list %q after %q: %q, want %q", prefix, after, got, expect)
			}
		}
	}
	for range s.List(t.Context(), "", "") {
		break // a listing may be left early
	}
}

func list(t *testing.T, s blob.Store, prefix, after string) (names []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatal(err)
		}
		if info.Size != int64(len(info.Name)) {
			t.Fatalf("%s is listed with %d bytes", info.Name, info.Size)
		}
		names = append(names, info.Name)
	}
	return names
}

func testCancelled(t *testing.T, s blob.Store) {
	put(t, s, "x", "1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, "put", blob.PutBytes(ctx, s, "y", []byte("1")), context.Canceled)
	wantErr(t, "read", s.ReadRange(ctx, "x", make([]byte, 1), 0), context.Canceled)
	for _, err := range s.List(ctx, "", "") {
		wantErr(t, "list", err, context.Canceled)
	}
}

// testConcurrent has many writers of the same names: one of them wins each, and no reader sees a part.
func testConcurrent(t *testing.T, s blob.Store) {
	const writers, blobs, size = 8, 20, 10000
	var wg sync.WaitGroup
	var mu sync.Mutex // guards wins
	wins := make([]int, blobs)
	for w := range writers {
		wg.Go(func() {
			data := bytes.Repeat([]byte{byte(w)}, size)
			for i := range blobs {
				name := fmt.Sprintf("d%d/blob-%d", i%3, i)
				err := blob.PutBytes(t.Context(), s, name, data)
				if err == nil {
					mu.Lock()
					wins[i]++
					mu.Unlock()
				} else if !errors.Is(err, blob.ErrExists) {
					t.Error(err)
				}
				got, err := blob.ReadAll(t.Context(), s, name, size)
				if err != nil || len(got) != size || bytes.Count(got, got[:1]) != size {
					t.Errorf("%s is not whole: %d bytes, %v", name, len(got), err)
				}
			}
		})
	}
	wg.Wait()
	for i, n := range wins {
		if n != 1 {
			t.Errorf("blob %d was put %d times", i, n)
		}
	}
}
