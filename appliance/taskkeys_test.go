package appliance

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"coffer/dedup/digest"
	"coffer/dedup/seal"
)

// A key is held for its time and no longer, is taken back at once, and what it opened goes with it.
func TestTaskKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, key := newTaskKeys(), seal.NewKey()
		id := key.ID()
		until := keys.give(key, time.Now(), time.Hour)
		if !until.Equal(time.Now().Add(time.Hour)) || keys.get(id) == nil || keys.get(seal.ID{1}) != nil {
			t.Fatal("the key is not held")
		}
		time.Sleep(30 * time.Minute)
		keys.give(key, time.Now(), time.Hour)
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if keys.get(id) == nil {
			t.Error("given again, it is forgotten after the first time")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if keys.get(id) != nil || keys.take(id) {
			t.Error("it is held beyond its time")
		}
		keys.give(key, time.Now(), time.Hour)
		if !keys.take(id) || keys.get(id) != nil {
			t.Error("it is not taken back")
		}
	})
}

// Opened things are kept within bounds, and an error is not kept.
func TestHeldKeyCaches(t *testing.T) {
	keys, key := newTaskKeys(), seal.NewKey()
	keys.give(key, time.Now(), time.Hour)
	defer keys.take(key.ID())
	h := keys.get(key.ID())
	reads := 0
	open := func(i int, err error) error {
		_, got := h.open(digest.Digest{byte(i)}, func() ([]byte, error) { reads++; return make([]byte, openedBytes/4), err },
			func(b []byte) ([]byte, error) { return b, nil })
		return got
	}
	boom := errors.New("boom")
	if err := open(1, boom); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	for i := range 6 {
		if err := errors.Join(open(i, nil), open(i, boom)); err != nil { // the second one comes from the cache
			t.Fatal(err)
		}
	}
	if reads != 7 || h.bytes > openedBytes || len(h.opened) != h.lru.Len() {
		t.Errorf("%d reads, %d bytes in %d things", reads, h.bytes, len(h.opened))
	}
}
