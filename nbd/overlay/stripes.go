package overlay

import (
	"math/bits"
	"sync"
)

const (
	stripes      = 256
	stripeBlocks = 64 // 256 KiB: neighbours share a stripe, far apart ones rarely do
)

// stripeLocks keep those apart who change the same blocks. A range is locked by the stripes that it touches, taken in the
// order of their numbers, so that two ranges never wait for each other.
type stripeLocks [stripes]sync.Mutex

// lock takes the stripes of n blocks from first on and returns what gives them back.
func (l *stripeLocks) lock(first, n int64) (unlock func()) {
	var set [stripes / 64]uint64
	from, to := first/stripeBlocks, (first+n-1)/stripeBlocks
	for i := from; i <= to && i < from+stripes; i++ {
		set[i%stripes/64] |= 1 << (i % 64)
	}
	l.each(set, (*sync.Mutex).Lock)
	return func() { l.each(set, (*sync.Mutex).Unlock) }
}

func (l *stripeLocks) each(set [stripes / 64]uint64, do func(*sync.Mutex)) {
	for w, word := range set {
		for ; word != 0; word &= word - 1 {
			do(&l[w*64+bits.TrailingZeros64(word)])
		}
	}
}
