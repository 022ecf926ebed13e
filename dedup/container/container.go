// Package container is the unit in which the store keeps chunks: a file of 16 to 64 MiB, built in a local spool, sealed,
// put whole into a blob store and never written again.
//
// It owns the container's format (FORMAT.md): header, frame records, directory, footer; the Writer that builds one, the
// Directory that finds a chunk in one, and the reading of a frame. It does not know which containers are alive, what a
// chunk means, or how a frame is compressed: frames go in and come out as they are.
package container

import (
	"errors"
	"fmt"
	"strconv"
)

// ID names a container: the writer's epoch in the high 32 bits, a sequence number in the low ones. Ids are never reused.
type ID uint64

// MakeID returns the id of the seq-th container of a writer epoch.
func MakeID(epoch, seq uint32) ID { return ID(uint64(epoch)<<32 | uint64(seq)) }

// Epoch and Sequence are the two halves of an id.
func (id ID) Epoch() uint32    { return uint32(id >> 32) }
func (id ID) Sequence() uint32 { return uint32(id) }

// String is the id in 16 hex digits.
func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Prefix is what the blob names of all containers begin with.
const Prefix = "containers/"

// nameLen is the length of every container's blob name: prefix, 14 digits, slash, 16 digits.
const nameLen = len(Prefix) + 14 + 1 + 16

// Name is the blob name of a container. 256 ids share a directory, and names sort as ids do.
func (id ID) Name() string { return fmt.Sprintf("%s%014x/%016x", Prefix, uint64(id)>>8, uint64(id)) }

// ParseName is the reverse of ID.Name; ok is false for any other name.
func ParseName(name string) (id ID, ok bool) {
	if len(name) != nameLen {
		return 0, false
	}
	n, err := strconv.ParseUint(name[nameLen-16:], 16, 64)
	if err != nil || ID(n).Name() != name {
		return 0, false
	}
	return ID(n), true
}

// Kind says what a container holds: chunks of data, or recipe nodes. Part of the format.
type Kind uint8

const (
	Data Kind = 1
	Node Kind = 2
)

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Node:
		return "node"
	}
	return fmt.Sprintf("kind(%#02x)", uint8(k))
}

// Errors of this package, wrapped with the container and what was wrong in it.
var (
	ErrDamaged     = errors.New("container is damaged")
	ErrNewerFormat = errors.New("container has a newer format")
	ErrNoKeys      = errors.New("container was opened without keys")
	ErrFull        = errors.New("container is full") // beyond MaxSize; whoever seals at the target size never sees it
	ErrEmpty       = errors.New("container is empty")
	ErrBroken      = errors.New("container writer is broken by an earlier error")
	ErrClosed      = errors.New("container writer is closed")
)
