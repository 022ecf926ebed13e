package sms

import "sync"

// Budget bounds the memory that the data windows of many connections may grow into, beyond each stream's base window.
//
// A window grows in two ways. Growth for speed is granted only while a quarter of the budget stays free, and is given
// back under pressure. A loan, for a message that is larger than its window, waits in line until it fits, and is given
// back with that message: so a large message always comes through while consumers consume.
type Budget struct {
	mu sync.Mutex
	// mu guards all below.
	total, free int64
	waiting     []*loan
}

// MinBudget is the smallest budget: a quarter of it holds the longest message.
const MinBudget = 4 * MaxWindow

type loan struct {
	n       int64
	granted func() // called without the lock
	done    bool   // granted or given up
}

// NewBudget returns a budget of n bytes, at least MinBudget.
func NewBudget(n int64) *Budget {
	n = max(n, MinBudget)
	return &Budget{total: n, free: n}
}

// InUse returns how many bytes are granted.
func (b *Budget) InUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total - b.free
}

// tryGrow takes n bytes for speed, or reports false.
func (b *Budget) tryGrow(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 || b.free-n < b.total/4 {
		return false
	}
	b.free -= n
	return true
}

// pressed reports whether growth should be given back.
func (b *Budget) pressed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting) > 0 || b.free < b.total/4
}

// borrow takes n bytes as soon as they are free and all earlier loans are granted; then it calls granted, maybe before
// it returns, without any lock of its own. Unless giveUp is called before; it returns whether it came in time.
func (b *Budget) borrow(n int64, granted func()) (giveUp func() bool) {
	l := &loan{n: n, granted: granted}
	b.mu.Lock()
	b.waiting = append(b.waiting, l)
	ready := b.grantLocked()
	b.mu.Unlock()
	call(ready)
	return func() bool {
		b.mu.Lock()
		if l.done {
			b.mu.Unlock()
			return false
		}
		l.done = true
		ready := b.grantLocked()
		b.mu.Unlock()
		call(ready)
		return true
	}
}

// giveBack returns n bytes.
func (b *Budget) giveBack(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	b.free += n
	if b.free > b.total {
		b.mu.Unlock()
		panic("sms: more given back to the budget than taken")
	}
	ready := b.grantLocked()
	b.mu.Unlock()
	call(ready)
}

// grantLocked takes loans off the head of the line while they fit.
func (b *Budget) grantLocked() (ready []*loan) {
	for len(b.waiting) > 0 {
		l := b.waiting[0]
		if !l.done && l.n > b.free {
			break
		}
		if !l.done {
			l.done = true
			b.free -= l.n
			ready = append(ready, l)
		}
		b.waiting = b.waiting[1:]
	}
	return ready
}

func call(ls []*loan) {
	for _, l := range ls {
		l.granted()
	}
}
