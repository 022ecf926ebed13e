package recipe

// NodeSealer is an ability of a Sink: the builders have every record sealed before they take its digest and put it.
// SealNode appends the sealed form of rec to dst; it is called from the goroutine that calls the builder.
type NodeSealer interface {
	SealNode(dst, rec []byte) ([]byte, error)
}

// Seal appends the sealed form of an open record to dst. box is given the sealed record's clear part, which it
// authenticates, and what it hides: the open record's lengths and body. It appends the box to its dst. The memory of dst
// and rec must not overlap.
func Seal(dst, rec []byte, by [16]byte, box func(dst, clear, hidden []byte) ([]byte, error)) ([]byte, error) {
	p, err := takeApart(rec)
	if err == nil {
		err = p.open()
	}
	if err != nil {
		return dst, err
	}
	if by == ([16]byte{}) {
		return dst, fail(BadEntry, "seal a %v by no key", p.kind)
	}
	start, hidden := len(dst), p.children.lengths.off
	dst = append(dst, rec[:hidden]...)
	copy(dst[start+4:], by[:])
	for c, list := (Child{}), p.children; list.next(&c); {
		if !c.Node {
			c.Length = 0
		}
		dst = appendUvarint(dst, childWord(&c))
	}
	if dst, err = box(dst, dst[start:len(dst):len(dst)], rec[hidden:]); err != nil {
		return dst[:start], err
	}
	if len(dst)-start > MaxRecord {
		return dst[:start], fail(TooLong, "%v of %d bytes, sealed", p.kind, len(dst)-start)
	}
	return dst, nil
}

// Open appends the open form of a sealed record to dst and checks it as Parse does. open is given what Seal's box was
// given and made, and appends what was hidden. A record that is not sealed is refused: nobody may slip one in.
func Open(dst, rec []byte, open func(dst, clear, box []byte) ([]byte, error)) ([]byte, error) {
	p, err := takeApart(rec)
	if err != nil {
		return dst, err
	}
	if !p.sealed() {
		return dst, fail(Mismatch, "an open %v among sealed nodes", p.kind)
	}
	start := len(dst)
	dst = append(dst, rec[:p.children.lengths.off]...)
	clear(dst[start+4 : start+headLen])
	if dst, err = open(dst, rec[:len(p.children.lengths.b)], p.body); err != nil {
		return dst[:start], err
	}
	if _, err := Parse(dst[start:]); err != nil {
		return dst[:start], err
	}
	return dst, nil
}
