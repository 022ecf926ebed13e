package server

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		for i := range addressBurst {
			if w := l.allow("192.0.2.1", fmt.Sprint("user", i)); w != 0 {
				t.Fatalf("attempt %d must wait %s", i, w)
			}
		}
		if w := l.allow("192.0.2.1", "root"); w != addressRefill {
			t.Errorf("after the burst: wait %s, want %s", w, addressRefill)
		}
		if w := l.allow("192.0.2.2", "root"); w != 0 {
			t.Errorf("another address must wait %s", w)
		}
		time.Sleep(addressRefill)
		if w := l.allow("192.0.2.1", "root"); w != 0 {
			t.Errorf("after the refill: wait %s", w)
		}
	})
}

func TestLimiterPerUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		for i := range userBurst {
			if w := l.allow(fmt.Sprint("address", i), "root"); w != 0 {
				t.Fatalf("attempt %d must wait %s", i, w)
			}
		}
		if w := l.allow("another", "root"); w == 0 {
			t.Error("guesses from many addresses are not limited")
		}
	})
}

func TestLimiterForgives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		for range 100 {
			if w := l.allow("192.0.2.1", "root"); w != 0 {
				t.Fatalf("a success counts as a failure: wait %s", w)
			}
			l.forgive("192.0.2.1", "root")
		}
	})
}

func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter()
	for i := range 2 * maxBuckets {
		l.allow(fmt.Sprint("address", i), "root")
	}
	if n := len(l.buckets); n > maxBuckets+2 {
		t.Errorf("%d buckets are remembered", n)
	}
}
