package dedup

import (
	"testing"
	"unsafe"
)

// TestHugePages: the memory is new and as long as asked for, and each span of the heap is asked for once.
func TestHugePages(t *testing.T) {
	var h hugePages
	for _, n := range []int{0, 1, 256 << 10, heapStep - 1, 3*heapStep + 1} {
		p := h.make(n)
		if len(p) != 0 || cap(p) < n {
			t.Fatalf("%d of %d bytes for %d", len(p), cap(p), n)
		}
		p = p[:n]
		for i := range p {
			if p[i] != 0 {
				t.Fatalf("byte %d is not zero", i)
			}
			p[i] = 1
		}
		if n == 0 {
			continue
		}
		last := uintptr(unsafe.Pointer(&p[n-1])) / heapStep
		if first := uintptr(unsafe.Pointer(&p[0])) / heapStep; h.first(first) || h.first(last) {
			t.Fatalf("%d bytes: not asked for", n)
		}
	}
}
