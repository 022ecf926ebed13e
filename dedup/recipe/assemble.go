package recipe

import (
	"context"
	"encoding/binary"
	"fmt"

	"coffer/dedup/digest"
)

// Where nodes end. Part of the format in this sense: two agents that cut differently read each other's trees, but
// share no nodes.
const (
	minNode = 4 << 10  // bytes of children and body before which no node ends
	maxNode = 64 << 10 // bytes at which a node ends whatever its hash says
)

// cutMask has the bits that must be 0 in an item's cut hash for a node to end after it; the nodes come out at 12 to
// 20 KiB on average.
func cutMask(k Kind) uint64 {
	switch k {
	case DirLeaf:
		return 1<<7 - 1
	case SideLeaf:
		return 1<<10 - 1
	default:
		return 1<<8 - 1
	}
}

// cutHash mixes the key of an item with the level of its node.
func cutHash(key uint64, level uint8) uint64 {
	return mix(key + (uint64(level)+1)*0x9e3779b97f4a7c15)
}

// mix is the finalizer of MurmurHash3's 128-bit variant.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}

// nameKey is the 64-bit FNV-1a of a name.
func nameKey(name string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(name) {
		h ^= uint64(name[i])
		h *= 0x100000001b3
	}
	return h
}

// digestKey is the first eight bytes of a digest.
func digestKey(d digest.Digest) uint64 { return binary.LittleEndian.Uint64(d[:]) }

// pending is the node of one level that is being filled.
type pending struct {
	digests []byte
	lengths []byte
	body    []byte
	totals  Totals
	first   string // name of its first entry; directories only
	key     uint64 // cut key of its first item
	items   int
	emitted bool // the level has finished a node before
}

func (p *pending) addChild(c *Child) {
	p.digests = append(p.digests, c.Digest[:]...)
	p.lengths = appendUvarint(p.lengths, childWord(c))
}

func (p *pending) size() int { return len(p.digests) + len(p.lengths) + len(p.body) }

// clear empties p for the next node of its level.
func (p *pending) clear() {
	*p = pending{digests: p.digests[:0], lengths: p.lengths[:0], body: p.body[:0], emitted: p.emitted}
}

// finished is a node that was put.
type finished struct {
	digest digest.Digest
	totals Totals
	first  string
	key    uint64
}

// assembler makes a tree of nodes out of a leaf that a builder fills item by item. It keeps one open node per
// level.
type assembler struct {
	sink   Sink
	sealer NodeSealer // nil: nodes stay open
	hasher *digest.Hasher
	kind   Kind // of the leaves
	levels []pending
	rec    []byte
	sealed []byte
	err    error // of the sink; the tree is lost
}

func newAssembler(sink Sink, h *digest.Hasher, leaf Kind) assembler {
	sealer, _ := sink.(NodeSealer)
	return assembler{sink: sink, sealer: sealer, hasher: h, kind: leaf, levels: make([]pending, 1, 4)}
}

func (a *assembler) leaf() *pending { return &a.levels[0] }

// added is called after an item with this cut key was added to the open node of a level, which has minNode bytes or
// more. It ends the node if the key says so.
func (a *assembler) added(ctx context.Context, level int, key uint64) error {
	p := &a.levels[level]
	if p.size() < maxNode && cutHash(key, uint8(level))&cutMask(a.kindAt(level)) != 0 {
		return nil
	}
	if level > 0 && p.items < 2 {
		return nil // INVARIANT: every level has at most half the nodes of the one below
	}
	return a.cut(ctx, level)
}

func (a *assembler) kindAt(level int) Kind {
	if level > 0 {
		return a.kind + 1
	}
	return a.kind
}

// cut ends the open node of a level and adds it to the level above.
func (a *assembler) cut(ctx context.Context, level int) error {
	n, err := a.put(ctx, level)
	if err != nil {
		return err
	}
	a.levels[level].emitted = true
	if level+1 == len(a.levels) {
		a.levels = append(a.levels, pending{})
	}
	up := &a.levels[level+1]
	if up.items == 0 {
		up.first, up.key = n.first, n.key
	}
	up.appendBranch(&n, a.kind == DirLeaf)
	if up.size() < minNode {
		return nil
	}
	return a.added(ctx, level+1, n.key)
}

// put hands the open node of a level to the sink and empties it.
func (a *assembler) put(ctx context.Context, level int) (finished, error) {
	p := &a.levels[level]
	if level > MaxLevel || p.totals.Entries > MaxTotal || p.totals.Bytes > MaxTotal {
		a.err = fail(TooLong, "%v at level %d with totals %d, %d",
			a.kindAt(level), level, p.totals.Entries, p.totals.Bytes)
		return finished{}, a.err
	}
	var open [16]byte
	a.rec = appendRecord(a.rec[:0], a.kindAt(level), uint8(level), &open, p.totals, p.digests, p.lengths, p.body)
	rec, err := a.closed()
	if err != nil {
		return finished{}, err
	}
	n := finished{digest: a.hasher.Sum(rec), totals: p.totals, first: p.first, key: p.key}
	if err := a.sink.PutNode(ctx, n.digest, rec); err != nil {
		a.err = fmt.Errorf("put a %v: %w", a.kindAt(level), err)
		return finished{}, a.err
	}
	p.clear()
	return n, nil
}

// closed returns the record as it is kept: sealed where the sink seals.
func (a *assembler) closed() ([]byte, error) {
	if a.sealer == nil {
		return a.rec, nil
	}
	a.sealed, a.err = a.sealer.SealNode(a.sealed[:0], a.rec)
	return a.sealed, a.err
}

// finish ends the open nodes of all levels and returns the root. Afterwards the assembler is empty.
func (a *assembler) finish(ctx context.Context) (finished, error) {
	defer a.reset()
	for level := 0; ; level++ {
		if a.err != nil {
			return finished{}, a.err
		}
		p := &a.levels[level]
		if !p.emitted {
			return a.put(ctx, level)
		}
		if p.items > 0 {
			if err := a.cut(ctx, level); err != nil {
				return finished{}, err
			}
		}
		if up := &a.levels[level+1]; !up.emitted && up.items == 1 {
			return finished{digest: digest.Digest(up.digests), totals: up.totals}, nil
		}
	}
}

// reset empties all levels and keeps their memory.
func (a *assembler) reset() {
	for i := range a.levels {
		a.levels[i].clear()
		a.levels[i].emitted = false
	}
	a.err = nil
}
