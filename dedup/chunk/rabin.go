package chunk

import "github.com/restic/chunker"

// window is how many bytes the fingerprint covers. Part of the format, like all of the fingerprint: it is that of
// restic/chunker, and a test holds the cuts against that library.
const window = 64

// topShift brings a fingerprint's top byte down: polynomialDegree - 8.
const topShift = polynomialDegree - 8

// rabin is the Rabin fingerprint under one polynomial. It is a pure function of the last 64 bytes, which is what
// lets scan compute it at several places at once.
type rabin struct {
	mod  [256]uint64 // reduces the byte that is shifted out at the top
	out  [256]uint64 // takes out the byte that leaves the window, as it stands after the shift
	mask uint64      // of the bits that are 0 at a cut
}

func newRabin(p Params) *rabin {
	r := &rabin{mask: 1<<p.AvgBits - 1}
	pol := chunker.Pol(p.Polynomial)
	for b := range 256 {
		top := chunker.Pol(b) << polynomialDegree
		r.mod[b] = uint64(top ^ top.Mod(pol))
	}
	for b := range 256 {
		h := chunker.Pol(b).Mod(pol)
		for range window {
			h = (h << 8).Mod(pol)
		}
		r.out[b] = uint64(h)
	}
	return r
}

// step moves the window one byte on: in comes, old goes.
func (r *rabin) step(h uint64, in, old byte) uint64 {
	return (h<<8 | uint64(in)) ^ r.mod[byte(h>>topShift)] ^ r.out[old]
}

// at returns the fingerprint of the 64 bytes before data[i].
func (r *rabin) at(data []byte, i int) (h uint64) {
	for _, b := range data[i-window : i] {
		h = r.step(h, b, 0)
	}
	return h
}

// lane is how many bytes scan takes with each of its four fingerprints at a time. Long enough that the 64 bytes of
// warming up are little, short enough that looking again after a hit is cheap.
const lane = 4 << 10

// scan returns the first i in from <= i < len(data) at which a chunk ends that begins at data[0], or -1. from is 64
// or more.
//
// A single fingerprint runs at the speed of its chain of dependencies, a shift, a load and an XOR for each byte. Four
// of them, a lane apart, share the processor and take hardly longer than one.
func (r *rabin) scan(data []byte, from int) int {
	for ; len(data)-from >= 4*lane; from += 4 * lane {
		if r.hitInLanes((*[4*lane + window]byte)(data[from-window:])) {
			return r.scanPlain(data, from)
		}
	}
	return r.scanPlain(data, from)
}

// hitInLanes reports whether a chunk may end anywhere after the first 64 bytes of data.
func (r *rabin) hitInLanes(data *[4*lane + window]byte) bool {
	w0 := (*[lane + window]byte)(data[0*lane:])
	w1 := (*[lane + window]byte)(data[1*lane:])
	w2 := (*[lane + window]byte)(data[2*lane:])
	w3 := (*[lane + window]byte)(data[3*lane:])
	h0, h1, h2, h3 := r.at(w0[:], window), r.at(w1[:], window), r.at(w2[:], window), r.at(w3[:], window)
	mod, out, mask := &r.mod, &r.out, r.mask
	for i := range lane {
		h0 = (h0<<8 | uint64(w0[i+window])) ^ mod[byte(h0>>topShift)] ^ out[w0[i]]
		h1 = (h1<<8 | uint64(w1[i+window])) ^ mod[byte(h1>>topShift)] ^ out[w1[i]]
		h2 = (h2<<8 | uint64(w2[i+window])) ^ mod[byte(h2>>topShift)] ^ out[w2[i]]
		h3 = (h3<<8 | uint64(w3[i+window])) ^ mod[byte(h3>>topShift)] ^ out[w3[i]]
		if h0&mask == 0 || h1&mask == 0 || h2&mask == 0 || h3&mask == 0 {
			return true
		}
	}
	return false
}

// scanPlain is scan with one fingerprint.
func (r *rabin) scanPlain(data []byte, from int) int {
	if from >= len(data) {
		return -1
	}
	h := r.at(data, from)
	for i := from; i < len(data); i++ {
		if h = r.step(h, data[i], data[i-window]); h&r.mask == 0 {
			return i
		}
	}
	return -1
}
