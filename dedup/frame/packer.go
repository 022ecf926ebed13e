package frame

import "coffer/dedup/digest"

// Alone is from how many bytes on a Packer gives a chunk a frame of its own. Who reads a few bytes of a disk decodes a frame:
// one of a disk image's chunk (chunk.Image) takes half the time of one of two, and 2.4 % more room. Not part of the format.
const Alone = 128 << 10

// joins says whether a chunk of next bytes may follow others in a frame, the first of which has first bytes, and all size.
func joins(first, size, next int) bool {
	return first < Alone && next < Alone && size+next <= MaxPlain
}

// Missing returns how many chunks at the front of refs make one frame of those that somebody lacks, and their bytes: have
// says of each ref whether it is there already. 0 when the first is.
func Missing(refs []Ref, have []bool) (n, size int) {
	for n < len(refs) && n < MaxRefs && !have[n] {
		next := int(refs[n].Length)
		if n > 0 && !joins(int(refs[0].Length), size, next) {
			break
		}
		size += next
		n++
	}
	return n, size
}

// Packer collects consecutive chunks into the refs and plain bytes of one frame, and keeps the format's limits.
// The zero Packer is ready. Not safe for concurrent use.
type Packer struct {
	refs  []Ref
	plain []byte
}

// Fits reports whether a chunk of n bytes may still go into the frame. An empty Packer takes any chunk of 1 to
// MaxChunk bytes.
func (p *Packer) Fits(n int) bool {
	if len(p.refs) == 0 {
		return n > 0 && n <= MaxChunk
	}
	return n > 0 && len(p.refs) < MaxRefs && joins(int(p.refs[0].Length), len(p.plain), n)
}

// Add copies a chunk into the frame. It panics when the chunk does not fit: ask Fits first.
func (p *Packer) Add(d digest.Digest, chunk []byte) {
	if !p.Fits(len(chunk)) {
		panic("frame: chunk does not fit into the packer")
	}
	p.refs = append(p.refs, Ref{Digest: d, Length: uint32(len(chunk))})
	p.plain = append(p.plain, chunk...)
}

// Empty reports whether no chunk was added since the last Reset.
func (p *Packer) Empty() bool { return len(p.refs) == 0 }

// Len returns the plain bytes collected.
func (p *Packer) Len() int { return len(p.plain) }

// Encode compresses what was collected, as Encoder.Encode does into dst, with refs of its own, so that the Packer
// may be Reset and used again at once. It panics when the Packer is empty.
func (p *Packer) Encode(e *Encoder, dst []byte) Frame {
	return e.Encode(append([]Ref(nil), p.refs...), p.plain, dst)
}

// Reset empties the Packer and keeps its memory.
func (p *Packer) Reset() { p.refs, p.plain = p.refs[:0], p.plain[:0] }
