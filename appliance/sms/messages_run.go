package sms

import (
	"encoding/binary"
	"time"

	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

func (*Order) Type() Type               { return TypeOrder }
func (m *Order) append(b []byte) []byte { return jsonAppend(b, m) }
func (m *Order) decode(c *cursor)       { jsonDecode(c, m) }

func (*Reply) Type() Type               { return TypeReply }
func (m *Reply) append(b []byte) []byte { return jsonAppend(b, m) }
func (m *Reply) decode(c *cursor)       { jsonDecode(c, m) }

func (*Progress) Type() Type               { return TypeProgress }
func (m *Progress) append(b []byte) []byte { return jsonAppend(b, m) }
func (m *Progress) decode(c *cursor)       { jsonDecode(c, m) }

func (*Commit) Type() Type               { return TypeCommit }
func (m *Commit) append(b []byte) []byte { return jsonAppend(b, m) }
func (m *Commit) decode(c *cursor)       { jsonDecode(c, m) }

func (*CommitResult) Type() Type               { return TypeCommitResult }
func (m *CommitResult) append(b []byte) []byte { return jsonAppend(b, m) }
func (m *CommitResult) decode(c *cursor)       { jsonDecode(c, m) }

func (*Outcome) Type() Type               { return TypeFinish }
func (m *Outcome) append(b []byte) []byte { return jsonAppend(b, m) }
func (m *Outcome) decode(c *cursor)       { jsonDecode(c, m) }

// Finished answers an Outcome: the appliance has taken note of it.
type Finished struct{}

func (*Finished) Type() Type             { return TypeFinished }
func (*Finished) append(b []byte) []byte { return b }
func (*Finished) decode(*cursor)         {}

// SentNotice is a Notice on the wire. Seq is counted together with the run's frames of nodes.
type SentNotice struct {
	Seq    uint64
	Notice Notice
}

func (*SentNotice) Type() Type { return TypeNotice }
func (m *SentNotice) append(b []byte) []byte {
	return jsonAppend(binary.LittleEndian.AppendUint64(b, m.Seq), &m.Notice)
}
func (m *SentNotice) decode(c *cursor) {
	m.Seq = c.u64()
	jsonDecode(c, &m.Notice)
}

// RunOpen opens a run, or comes back to it.
type RunOpen struct {
	Token  Token
	Resume bool
}

func (*RunOpen) Type() Type { return TypeRunOpen }
func (m *RunOpen) append(b []byte) []byte {
	return appendBool(append(b, m.Token[:]...), m.Resume)
}
func (m *RunOpen) decode(c *cursor) {
	copy(m.Token[:], c.take(len(m.Token)))
	m.Resume = c.bool()
}

// RunWelcome answers RunOpen with all that the agent needs to know.
type RunWelcome struct {
	RunID        string
	Restore      bool
	MaxLanes     uint8
	Received     uint64        // highest Seq of the run stream that has been taken
	ResumeWindow time.Duration // whole seconds

	Domain   digest.DomainID
	Key      digest.DomainKey
	Chunking chunk.Params

	// Root and Side are the parent's in a backup, the saveset's in a restore; zero where there is none.
	Root, Side    recipe.Ref
	ParentStarted time.Time
}

func (*RunWelcome) Type() Type { return TypeRunWelcome }

func (m *RunWelcome) append(b []byte) []byte {
	b = appendBool(appendBytes(b, m.RunID), m.Restore)
	b = binary.LittleEndian.AppendUint64(append(b, m.MaxLanes), m.Received)
	b = binary.LittleEndian.AppendUint32(b, uint32(m.ResumeWindow/time.Second))
	b = append(append(b, m.Domain[:]...), m.Key[:]...)
	b = binary.LittleEndian.AppendUint64(b, m.Chunking.Polynomial)
	for _, v := range []int{m.Chunking.Min, m.Chunking.Max, m.Chunking.AvgBits} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return appendTime(appendRef(appendRef(b, m.Root), m.Side), m.ParentStarted)
}

func (m *RunWelcome) decode(c *cursor) {
	m.RunID, m.Restore, m.MaxLanes, m.Received = c.str(), c.bool(), c.u8(), c.u64()
	m.ResumeWindow = time.Duration(c.u32()) * time.Second
	copy(m.Domain[:], c.take(len(m.Domain)))
	copy(m.Key[:], c.take(len(m.Key)))
	m.Chunking = chunk.Params{Polynomial: c.u64(), Min: int(c.u32()), Max: int(c.u32()), AvgBits: int(c.u32())}
	m.Root, m.Side, m.ParentStarted = c.ref(), c.ref(), c.time()
}

// LaneOpen opens a lane of a run that is open, or comes back to it.
type LaneOpen struct {
	Token Token
	Lane  uint8
}

func (*LaneOpen) Type() Type               { return TypeLaneOpen }
func (m *LaneOpen) append(b []byte) []byte { return append(append(b, m.Token[:]...), m.Lane) }
func (m *LaneOpen) decode(c *cursor) {
	copy(m.Token[:], c.take(len(m.Token)))
	m.Lane = c.u8()
}

// LaneWelcome answers LaneOpen.
type LaneWelcome struct {
	Received, Durable uint64
}

func (*LaneWelcome) Type() Type               { return TypeLaneWelcome }
func (m *LaneWelcome) append(b []byte) []byte { return appendU64s(b, m.Received, m.Durable) }
func (m *LaneWelcome) decode(c *cursor)       { m.Received, m.Durable = c.u64(), c.u64() }

// Query asks which digests the store has.
type Query struct {
	ID      uint32
	Digests []digest.Digest
}

func (*Query) Type() Type { return TypeQuery }

func (m *Query) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	for i := range m.Digests {
		b = append(b, m.Digests[i][:]...)
	}
	return b
}

func (m *Query) decode(c *cursor) {
	m.ID = c.u32()
	if len(c.p)%digest.Size != 0 {
		c.fail("it ends within a digest")
	}
	m.Digests = m.Digests[:0]
	for len(c.p) > 0 {
		m.Digests = append(m.Digests, c.digest())
	}
}

// Answer answers a Query: one bool per digest.
type Answer struct {
	ID   uint32
	Have []bool
}

func (*Answer) Type() Type { return TypeAnswer }

func (m *Answer) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Have)))
	var bits byte
	for i, h := range m.Have {
		if h {
			bits |= 1 << (i % 8)
		}
		if i%8 == 7 || i == len(m.Have)-1 {
			b, bits = append(b, bits), 0
		}
	}
	return b
}

func (m *Answer) decode(c *cursor) {
	m.ID = c.u32()
	n := int(c.u32())
	if n > MaxDigests {
		c.fail("it answers too much")
		return
	}
	bits := c.take((n + 7) / 8)
	m.Have = m.Have[:0]
	for i := 0; i < n && bits != nil; i++ {
		m.Have = append(m.Have, bits[i/8]&(1<<(i%8)) != 0)
	}
	if n%8 != 0 && len(bits) > 0 && bits[len(bits)-1]>>(n%8) != 0 {
		c.fail("bits beyond the last answer are set")
	}
}

// Frame is a frame of chunks on a lane, or of nodes on a run stream. Decoded, its Stored bytes are part of the message.
type Frame struct {
	Seq   uint64 // from 1, without gaps
	Frame frame.Frame
}

func (*Frame) Type() Type { return TypeFrame }
func (m *Frame) append(b []byte) []byte {
	return m.Frame.Append(binary.LittleEndian.AppendUint64(b, m.Seq))
}
func (m *Frame) decode(c *cursor) {
	m.Seq = c.u64()
	m.Frame = c.frame()
}

// Ack tells how far frames (and notices) have been taken, and how far they are durable.
type Ack struct {
	Received, Durable uint64
}

func (*Ack) Type() Type               { return TypeAck }
func (m *Ack) append(b []byte) []byte { return appendU64s(b, m.Received, m.Durable) }
func (m *Ack) decode(c *cursor)       { m.Received, m.Durable = c.u64(), c.u64() }

// Flush asks to make everything durable that was sent on the lane before; an Ack with Durable ≥ Seq answers it.
type Flush struct{ Seq uint64 }

func (*Flush) Type() Type               { return TypeFlush }
func (m *Flush) append(b []byte) []byte { return binary.LittleEndian.AppendUint64(b, m.Seq) }
func (m *Flush) decode(c *cursor)       { m.Seq = c.u64() }

func appendU64s(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func (c *cursor) bool() bool {
	v := c.u8()
	if v > 1 {
		c.fail("a bool is neither 0 nor 1")
	}
	return v == 1
}

func (c *cursor) frame() frame.Frame {
	f, err := frame.Parse(c.rest())
	if err != nil {
		c.fail(err.Error())
		return frame.Frame{}
	}
	return f
}
