package dedup

import (
	"sync"
	"unsafe"
)

// hugePages asks the kernel for huge pages below the memory of decoded frames: there is much of it, it is written once from end
// to end, and page by page the first touch costs as much as verifying it does. Go's heap grows in spans of heapStep bytes or
// a multiple, aligned to them, and each is asked for once. It is a hint: nothing depends on it. Some systems give huge pages
// unasked ("always" in /sys/kernel/mm/transparent_hugepage/enabled, as Debian does), others never. The zero value is ready.
// Safe for concurrent use.
type hugePages struct {
	mu    sync.Mutex
	asked map[uintptr]struct{} // guarded by mu: the spans, by number
}

const (
	heapStep = 4 << 20 // the least by which Go's heap grows
	heapPage = 8 << 10 // what Go gives large objects in multiples of
	large    = 32 << 10
)

// make returns room for n bytes. The capacity of a large one is all that it takes of the heap, so that who counts it counts
// right: a frame of 128 KiB and the few bytes behind it take 136 KiB.
func (h *hugePages) make(n int) []byte {
	if n > large {
		n = (n + heapPage - 1) &^ (heapPage - 1)
	}
	p := make([]byte, 0, n)
	if n == 0 {
		return p
	}
	from := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	for span := from / heapStep; span <= (from+uintptr(n)-1)/heapStep; span++ {
		if h.first(span) {
			adviseHugePages(span*heapStep, heapStep)
		}
	}
	return p
}

func (h *hugePages) first(span uintptr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.asked[span]; ok {
		return false
	}
	if h.asked == nil {
		h.asked = make(map[uintptr]struct{})
	}
	h.asked[span] = struct{}{}
	return true
}
