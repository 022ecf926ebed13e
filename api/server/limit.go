package server

import (
	"context"
	"sync"
	"time"
)

// Limits of password checks. Guessing is bounded per address and per user name; a refused attempt costs no hashing.
const (
	addressBurst  = 10               // failures in a row from one address
	addressRefill = 6 * time.Second  // then one per this
	userBurst     = 20               // failures in a row for one user name, from anywhere
	userRefill    = 3 * time.Second  // then one per this
	maxChecks     = 2                // password hashes computed at once: each takes much memory by design
	maxBuckets    = 10_000           // remembered addresses and names
	bucketMemory  = 10 * time.Minute // after which a bucket is full again and forgotten
)

// limiter bounds the rate of failed password checks and the number of them at once.
type limiter struct {
	checks chan struct{}

	mu      sync.Mutex // guards buckets
	buckets map[string]*bucket
}

// bucket holds the failures that are still allowed; it refills with time.
type bucket struct {
	left float64
	at   time.Time
}

func newLimiter() *limiter {
	return &limiter{checks: make(chan struct{}, maxChecks), buckets: map[string]*bucket{}}
}

// allow takes one attempt of address and user, or says how long to wait. A success gives it back by forgive.
func (l *limiter) allow(address, user string) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.prune(now)
	a := l.bucket("address "+address, now, addressBurst, addressRefill)
	u := l.bucket("user "+user, now, userBurst, userRefill)
	if wait = max(a.wait(addressRefill), u.wait(userRefill)); wait > 0 {
		return wait
	}
	a.left--
	u.left--
	return 0
}

// forgive gives back what allow took: the attempt was no failure.
func (l *limiter) forgive(address, user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range []string{"address " + address, "user " + user} {
		if b := l.buckets[key]; b != nil {
			b.left++
		}
	}
}

// enter waits until a password may be checked; leave must follow a nil error.
func (l *limiter) enter(ctx context.Context) error {
	select {
	case l.checks <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *limiter) leave() { <-l.checks }

func (l *limiter) bucket(key string, now time.Time, burst float64, refill time.Duration) *bucket {
	b := l.buckets[key]
	if b == nil {
		b = &bucket{left: burst, at: now}
		l.buckets[key] = b
	}
	b.left = min(burst, b.left+float64(now.Sub(b.at))/float64(refill))
	b.at = now
	return b
}

func (b *bucket) wait(refill time.Duration) time.Duration {
	if b.left >= 1 {
		return 0
	}
	return time.Duration((1 - b.left) * float64(refill))
}

// prune forgets buckets that are full again; when an attack has made too many, it forgets all of them: the limit of
// checks at once still holds.
func (l *limiter) prune(now time.Time) {
	if len(l.buckets) < maxBuckets {
		return
	}
	for key, b := range l.buckets {
		if now.Sub(b.at) > bucketMemory {
			delete(l.buckets, key)
		}
	}
	if len(l.buckets) >= maxBuckets {
		clear(l.buckets)
	}
}
