package dedup

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"coffer/dedup/container"
)

// Tombstones are one small object of the store, or one and its parts; FORMAT.md explains the fields.
const (
	tombstonePrefix     = "tombstones/"
	tombstoneKind       = "tombstones"
	tombstonePartPrefix = "tombstone-parts/"
	tombstonePartKind   = "tombstone part"

	// tombstonesInParts is the version of tombstones that have parts, or that name a container as a whole; those without
	// either are of version 1.
	tombstonesInParts = 2
	// maxTombstoneParts is the most parts: for 25 thousand million slots.
	maxTombstoneParts = 1 << 10
)

func tombstoneName(n uint32) string { return fmt.Sprintf("%s%08x", tombstonePrefix, n) }

func tombstonePartName(n, part uint32) string {
	return fmt.Sprintf("%s%08x-%08x", tombstonePartPrefix, n, part)
}

// tombstonesObject names the slots of all dead nodes in containers that still exist. A new object replaces the one before
// it as a whole: dead nodes leave all together.
type tombstonesObject struct {
	Version int       `json:"version"`
	Number  uint32    `json:"number"`
	Time    time.Time `json:"time"`
	// Parts is how many objects have the containers; 0: this one.
	Parts      uint32           `json:"parts,omitzero"`
	Containers []tombstoneEntry `json:"containers"`
}

// tombstonePart is some of the containers. It says nothing without the object of its number, which is put after it.
type tombstonePart struct {
	Version    int              `json:"version"`
	Number     uint32           `json:"number"`
	Part       uint32           `json:"part"`
	Containers []tombstoneEntry `json:"containers"`
}

// tombstoneEntry is the dead slots of one container.
type tombstoneEntry struct {
	Container string `json:"container"`
	// Dead has a bit for each slot, the lowest bit of the first byte for slot 0, without zero bytes at its end.
	Dead []byte `json:"dead,omitempty"`
	// All: none of its nodes counts; it could not be read when nodes died. Then there is no Dead.
	All bool `json:"all,omitzero"`
}

// grave is the dead slots of one container.
type grave struct {
	dead slotBits // never changed
	all  bool     // it could not be read: none of its nodes counts
}

func (g grave) has(slot uint32) bool { return g.all || g.dead.has(slot) }

func (g grave) empty() bool { return !g.all && len(g.dead) == 0 }

// graves are dead slots by container.
type graves map[container.ID]grave

func graveEntries(dead graves) []tombstoneEntry {
	out := []tombstoneEntry{}
	for _, id := range slices.Sorted(maps.Keys(dead)) {
		g := dead[id]
		if g.all {
			out = append(out, tombstoneEntry{Container: id.String(), All: true})
		} else if b := g.dead.bytes(); len(b) > 0 {
			out = append(out, tombstoneEntry{Container: id.String(), Dead: b})
		}
	}
	return out
}

// size is more than the bytes that the entry takes in an object.
func (e *tombstoneEntry) size() int {
	return len(`{"container":"0000000000000000","dead":"","all":true},`) + base64.StdEncoding.EncodedLen(len(e.Dead))
}

// newTombstones makes the object that names graves, and its parts when one object of at most limit bytes does not take
// them.
func newTombstones(number uint32, now time.Time, dead graves, limit int) (tombstonesObject, []tombstonePart) {
	o := tombstonesObject{Version: objectVersion, Number: number, Time: now.UTC().Round(0)}
	groups := splitEntries(graveEntries(dead), limit-len(`{"version":2,"number":4294967295,"time":"2006-01-02T15:04:05.999999999Z","parts":4294967295,"containers":[]}`))
	if len(groups) == 1 {
		o.Containers = groups[0]
		if slices.ContainsFunc(o.Containers, func(e tombstoneEntry) bool { return e.All }) {
			o.Version = tombstonesInParts
		}
		return o, nil
	}
	o.Version, o.Parts, o.Containers = tombstonesInParts, uint32(len(groups)), []tombstoneEntry{}
	parts := make([]tombstonePart, len(groups))
	for i, g := range groups {
		parts[i] = tombstonePart{Version: objectVersion, Number: number, Part: uint32(i), Containers: g}
	}
	return o, parts
}

// splitEntries cuts a list into groups of at most limit bytes, at least one. An entry that is longer is a group of its own.
func splitEntries(all []tombstoneEntry, limit int) [][]tombstoneEntry {
	var out [][]tombstoneEntry
	from, bytes := 0, 0
	for i := range all {
		n := all[i].size()
		if i > from && bytes+n > limit {
			out = append(out, all[from:i])
			from, bytes = i, 0
		}
		bytes += n
	}
	return append(out, all[from:])
}

// check holds what came from outside against the format.
func (o *tombstonesObject) check() error {
	parted := o.Parts > 0
	switch {
	case parted && (o.Version < tombstonesInParts || len(o.Containers) > 0):
		return fmt.Errorf("version %d with %d parts and %d containers", o.Version, o.Parts, len(o.Containers))
	case o.Parts > maxTombstoneParts:
		return fmt.Errorf("%d parts, limit %d", o.Parts, maxTombstoneParts)
	case o.Version < tombstonesInParts && slices.ContainsFunc(o.Containers, func(e tombstoneEntry) bool { return e.All }):
		return fmt.Errorf("version %d with a container as a whole", o.Version)
	}
	return nil
}

// add enters decoded entries: they are behind those that are there.
func (g graves) add(entries []tombstoneEntry, last container.ID) (container.ID, error) {
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Container, 16, 64)
		id := container.ID(n)
		if err != nil || id.String() != e.Container || (len(g) > 0 && id <= last) {
			return 0, fmt.Errorf("container %q", e.Container)
		}
		switch {
		case e.All && e.Dead == nil:
		case e.All || len(e.Dead) == 0 || e.Dead[len(e.Dead)-1] == 0 || len(e.Dead) > container.MaxSize/minRow/8+1:
			return 0, fmt.Errorf("container %v: %d bytes of slots", id, len(e.Dead))
		}
		last, g[id] = id, grave{bitsOf(e.Dead), e.All}
	}
	return last, nil
}

func bitsOf(b []byte) slotBits {
	bits := make(slotBits, (len(b)+7)/8)
	for i, x := range b {
		bits[i/8] |= uint64(x) << (i % 8 * 8)
	}
	return bits
}

// bytes is the stored form of a set.
func (b slotBits) bytes() []byte {
	out := make([]byte, 0, len(b)*8)
	for _, w := range b {
		for i := range 8 {
			out = append(out, byte(w>>(8*i)))
		}
	}
	for len(out) > 0 && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	return out
}
