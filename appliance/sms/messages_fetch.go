package sms

import (
	"encoding/binary"

	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// Children are some children of a node that the run was shown: Count ones from index First on.
type Children struct {
	First, Count uint32
}

// ChunkItem names chunks by the node that refers to them.
type ChunkItem struct {
	Node   digest.Digest
	Ranges []Children
}

// Fetch asks for chunks, on a lane. It is answered with FetchFrames in the order of storage, then with Fetched.
type Fetch struct {
	ID    uint32
	Items []ChunkItem
}

func (*Fetch) Type() Type { return TypeFetch }

func (m *Fetch) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	for _, it := range m.Items {
		b = append(b, it.Node[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(it.Ranges)))
		for _, r := range it.Ranges {
			b = binary.LittleEndian.AppendUint32(b, r.First)
			b = binary.LittleEndian.AppendUint32(b, r.Count)
		}
	}
	return b
}

func (m *Fetch) decode(c *cursor) {
	m.ID, m.Items = c.u32(), nil
	for len(c.p) > 0 {
		it := ChunkItem{Node: c.digest()}
		n := int(c.u32())
		if n > len(c.p)/8 {
			c.fail("it is too short for its ranges")
			return
		}
		it.Ranges = make([]Children, n)
		for i := range it.Ranges {
			it.Ranges[i] = Children{c.u32(), c.u32()}
		}
		m.Items = append(m.Items, it)
	}
}

// NodeItem names nodes: children of a node that the run was shown. The zero Parent has two children: the root and the
// side stream's root that the run's welcome told. First = Self names the Parent itself, once more.
type NodeItem struct {
	Parent digest.Digest
	First  uint32
	Count  uint32
}

// Self as a NodeItem's First names the Parent itself.
const Self = 1<<32 - 1

// FetchNodes asks for nodes, on a run stream. The first one is answered in any case; the others, and what lies below
// all of them, in tree order as far as Ahead bytes reach: FetchFrames, then Fetched.
type FetchNodes struct {
	ID    uint32
	Ahead uint32
	Items []NodeItem
}

func (*FetchNodes) Type() Type { return TypeFetchNodes }

func (m *FetchNodes) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	b = binary.LittleEndian.AppendUint32(b, m.Ahead)
	for _, it := range m.Items {
		b = append(b, it.Parent[:]...)
		b = binary.LittleEndian.AppendUint32(b, it.First)
		b = binary.LittleEndian.AppendUint32(b, it.Count)
	}
	return b
}

func (m *FetchNodes) decode(c *cursor) {
	m.ID, m.Ahead, m.Items = c.u32(), c.u32(), nil
	for len(c.p) > 0 {
		m.Items = append(m.Items, NodeItem{c.digest(), c.u32(), c.u32()})
	}
}

// FetchFrame is one frame of an answer. Decoded, its Stored bytes are part of the message.
type FetchFrame struct {
	ID    uint32
	Frame frame.Frame
}

func (*FetchFrame) Type() Type { return TypeFetchFrame }
func (m *FetchFrame) append(b []byte) []byte {
	return m.Frame.Append(binary.LittleEndian.AppendUint32(b, m.ID))
}
func (m *FetchFrame) decode(c *cursor) {
	m.ID = c.u32()
	m.Frame = c.frame()
}

// Fetched ends an answer; an empty Code means that all is there.
type Fetched struct {
	ID      uint32
	Code    Code
	Message string
}

func (*Fetched) Type() Type { return TypeFetched }
func (m *Fetched) append(b []byte) []byte {
	return appendReason(binary.LittleEndian.AppendUint32(b, m.ID), m.Code, m.Message)
}
func (m *Fetched) decode(c *cursor) { m.ID, m.Code, m.Message = c.u32(), Code(c.str()), c.str() }
