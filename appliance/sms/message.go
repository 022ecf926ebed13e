package sms

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// Message is one message of the protocol.
type Message interface {
	// Type is the message's type.
	Type() Type
	// append appends the message's bytes.
	append(b []byte) []byte
	// decode reads them. What it keeps of the cursor's bytes is documented at the message.
	decode(c *cursor)
}

// Append appends the encoding of m.
func Append(b []byte, m Message) []byte { return m.append(b) }

// Decode reads a message of type t. Frames keep a part of p; all else is copied.
func Decode(t Type, p []byte) (Message, error) {
	s, ok := specs[t]
	if !ok {
		return nil, Errorf(CodeProtocol, "message of unknown type %v", t)
	}
	m := s.make()
	return m, Unmarshal(m, p)
}

// Unmarshal reads a message into m. Frames keep a part of p; all else is copied.
func Unmarshal(m Message, p []byte) error {
	c := cursor{p: p}
	if uint32(len(p)) > specs[m.Type()].max {
		c.fail("it is too long")
	} else {
		m.decode(&c)
	}
	if err := c.end(); err != nil {
		return Errorf(CodeProtocol, "%v: %w", m.Type(), err)
	}
	return nil
}

// jsonAppend is the append of messages that are JSON: rare ones, whose fields grow with the versions.
func jsonAppend(b []byte, v any) []byte {
	p, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("sms: marshal %T: %v", v, err)) // a type that does not marshal is a bug
	}
	return append(b, p...)
}

func jsonDecode(c *cursor, v any) {
	if err := json.Unmarshal(c.rest(), v); err != nil {
		c.fail(err.Error())
	}
}

// Messages of the connection itself.

type ping struct{ Nonce uint64 }

func (*ping) Type() Type               { return TypePing }
func (m *ping) append(b []byte) []byte { return binary.LittleEndian.AppendUint64(b, m.Nonce) }
func (m *ping) decode(c *cursor)       { m.Nonce = c.u64() }

type pong struct{ Nonce uint64 }

func (*pong) Type() Type               { return TypePong }
func (m *pong) append(b []byte) []byte { return binary.LittleEndian.AppendUint64(b, m.Nonce) }
func (m *pong) decode(c *cursor)       { m.Nonce = c.u64() }

type open struct{ Kind StreamKind }

func (*open) Type() Type               { return TypeOpen }
func (m *open) append(b []byte) []byte { return append(b, byte(m.Kind)) }
func (m *open) decode(c *cursor)       { m.Kind = StreamKind(c.u8()) }

// closing ends a stream; an empty Code means that all is well.
type closing struct {
	Code    Code
	Message string
}

func (*closing) Type() Type               { return TypeClose }
func (m *closing) append(b []byte) []byte { return appendReason(b, m.Code, m.Message) }
func (m *closing) decode(c *cursor)       { m.Code, m.Message = Code(c.str()), c.str() }

type goAway struct {
	Code    Code
	Message string
}

func (*goAway) Type() Type               { return TypeGoAway }
func (m *goAway) append(b []byte) []byte { return appendReason(b, m.Code, m.Message) }
func (m *goAway) decode(c *cursor)       { m.Code, m.Message = Code(c.str()), c.str() }

func appendReason(b []byte, code Code, message string) []byte {
	return appendBytes(appendBytes(b, string(code)[:min(len(code), 64)]), message[:min(len(message), 2048)])
}

type credit struct {
	Class Class
	Bytes uint32
}

func (*credit) Type() Type { return TypeCredit }
func (m *credit) append(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(append(b, byte(m.Class)), m.Bytes)
}
func (m *credit) decode(c *cursor) { m.Class, m.Bytes = Class(c.u8()), c.u32() }
