package index

import (
	"encoding/binary"
	"fmt"

	"coffer/dedup/container"
)

// Keys and values: see FORMAT.md. Part of the format.
const (
	keySize   = 16 // of a digest
	valueSize = 12
	markTag   = 'm'
	deadTag   = 'd'
	nodeBit   = 1 << 31 // of the slot: the container holds nodes
)

var le = binary.LittleEndian

func appendLoc(b []byte, l Loc) []byte {
	slot := l.Slot
	if l.Kind == container.Node {
		slot |= nodeBit
	}
	b = le.AppendUint64(b, uint64(l.Container))
	return le.AppendUint32(b, slot)
}

func parseLoc(v []byte) (Loc, error) {
	if len(v) != valueSize {
		return Loc{}, fmt.Errorf("%w: location of %d bytes", errDamage, len(v))
	}
	slot := le.Uint32(v[8:])
	l := Loc{Container: container.ID(le.Uint64(v)), Slot: slot &^ nodeBit, Kind: container.Data}
	if slot&nodeBit != 0 {
		l.Kind = container.Node
	}
	return l, nil
}

// isMetaKey tells whether a digest's key would fall among this package's own keys, which begin with as many zeros.
func isMetaKey(k []byte) bool { return [keySize]byte(k) == [keySize]byte{} }

func markPrefix() []byte { return append(make([]byte, keySize, keySize+1+8), markTag) }

// markKey is big-endian, so that keys sort as ids do.
func markKey(id container.ID) []byte { return binary.BigEndian.AppendUint64(markPrefix(), uint64(id)) }

func parseMark(k []byte) (container.ID, bool) {
	if len(k) != keySize+1+8 || k[keySize] != markTag {
		return 0, false
	}
	return container.ID(binary.BigEndian.Uint64(k[keySize+1:])), true
}

// deadKey is that of the number that NoteDead noted.
func deadKey() []byte { return append(make([]byte, keySize, keySize+1), deadTag) }

// markSize is the length of a mark's value; that of a container which is to be entered again is empty.
const markSize = 9

// markValue holds the kind, the number of rows, and how many of them kept a location in another container.
func markValue(d *container.Directory, elsewhere uint32) []byte {
	v := le.AppendUint32([]byte{byte(d.Kind())}, uint32(d.Rows()))
	return le.AppendUint32(v, elsewhere)
}

// markCanonical tells whether the container was entered and no row kept a location in another container.
func markCanonical(v []byte) (bool, error) {
	switch len(v) {
	case 0:
		return false, nil
	case markSize:
		return le.Uint32(v[5:]) == 0, nil
	}
	return false, fmt.Errorf("%w: mark of %d bytes", errDamage, len(v))
}
