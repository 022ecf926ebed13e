package sms

import (
	"fmt"

	"coffer/dedup/frame"
)

// Type is the kind of a message. Part of the protocol.
type Type uint8

// The types. Those below 0x10 belong to the connection itself and never reach a consumer.
const (
	TypePing   Type = 0x01
	TypePong   Type = 0x02
	TypeOpen   Type = 0x03
	TypeClose  Type = 0x04
	TypeCredit Type = 0x05
	TypeGoAway Type = 0x06

	TypeHello       Type = 0x10
	TypeWelcome     Type = 0x11
	TypeEnrol       Type = 0x12
	TypeEnrolResult Type = 0x13
	TypeRenew       Type = 0x14

	TypeOrder Type = 0x20
	TypeReply Type = 0x21

	TypeRunOpen     Type = 0x30
	TypeRunWelcome  Type = 0x31
	TypeLaneOpen    Type = 0x32
	TypeLaneWelcome Type = 0x33

	TypeQuery  Type = 0x40
	TypeAnswer Type = 0x41
	TypeFrame  Type = 0x42
	TypeAck    Type = 0x43
	TypeFlush  Type = 0x44

	TypeFetch      Type = 0x50
	TypeFetchNodes Type = 0x51
	TypeFetchFrame Type = 0x52
	TypeFetched    Type = 0x53

	TypeProgress     Type = 0x60
	TypeNotice       Type = 0x61
	TypeCommit       Type = 0x62
	TypeCommitResult Type = 0x63
	TypeFinish       Type = 0x64
	TypeFinished     Type = 0x65
)

// Class is the priority of a message and the credit that it uses. Lower classes go first.
type Class uint8

// The classes.
const (
	ClassControl Class = 0 // no credit
	ClassOrder   Class = 1
	ClassQuery   Class = 2
	ClassData    Class = 3

	classes = 4
)

func (c Class) String() string {
	switch c {
	case ClassControl:
		return "control"
	case ClassOrder:
		return "order"
	case ClassQuery:
		return "query"
	case ClassData:
		return "data"
	}
	return fmt.Sprintf("class(0x%02x)", uint8(c))
}

// spec is what is fixed for a type of message. Part of the protocol.
type spec struct {
	name  string
	class Class
	max   uint32 // bytes of a message
	make  func() Message
}

// Longest messages in bytes. A message of the order or query class must fit into that class's window.
const (
	maxControl = 4 << 10
	maxSmall   = 64 << 10
	maxNotice  = 256 << 10
	maxJSON    = 768 << 10
	maxFetch   = 768 << 10
	maxQuery   = 4 + 32*MaxDigests
	maxAnswer  = 8 + MaxDigests/8
	maxFrame   = 8 + frame.MaxEncoded

	// MaxDigests is the most digests in a Query.
	MaxDigests = 4096
)

// specs is read only. It is a variable because Go has no constant maps.
var specs = map[Type]spec{
	TypePing:   {"ping", ClassControl, maxControl, func() Message { return new(ping) }},
	TypePong:   {"pong", ClassControl, maxControl, func() Message { return new(pong) }},
	TypeOpen:   {"open", ClassControl, maxControl, func() Message { return new(open) }},
	TypeClose:  {"close", ClassControl, maxControl, func() Message { return new(closing) }},
	TypeCredit: {"credit", ClassControl, maxControl, func() Message { return new(credit) }},
	TypeGoAway: {"go away", ClassControl, maxControl, func() Message { return new(goAway) }},

	TypeHello:       {"hello", ClassOrder, maxSmall, func() Message { return new(Hello) }},
	TypeWelcome:     {"welcome", ClassOrder, maxSmall, func() Message { return new(Welcome) }},
	TypeEnrol:       {"enrol", ClassOrder, maxSmall, func() Message { return new(Enrol) }},
	TypeEnrolResult: {"enrol result", ClassOrder, maxSmall, func() Message { return new(EnrolResult) }},
	TypeRenew:       {"renew", ClassOrder, maxSmall, func() Message { return new(Renew) }},

	TypeOrder: {"order", ClassOrder, maxJSON, func() Message { return new(Order) }},
	TypeReply: {"reply", ClassOrder, maxJSON, func() Message { return new(Reply) }},

	TypeRunOpen:     {"run open", ClassOrder, maxSmall, func() Message { return new(RunOpen) }},
	TypeRunWelcome:  {"run welcome", ClassOrder, maxSmall, func() Message { return new(RunWelcome) }},
	TypeLaneOpen:    {"lane open", ClassOrder, maxSmall, func() Message { return new(LaneOpen) }},
	TypeLaneWelcome: {"lane welcome", ClassOrder, maxSmall, func() Message { return new(LaneWelcome) }},

	TypeQuery:  {"query", ClassQuery, maxQuery, func() Message { return new(Query) }},
	TypeAnswer: {"answer", ClassQuery, maxAnswer, func() Message { return new(Answer) }},
	TypeFrame:  {"frame", ClassData, maxFrame, func() Message { return new(Frame) }},
	TypeAck:    {"ack", ClassQuery, maxSmall, func() Message { return new(Ack) }},
	TypeFlush:  {"flush", ClassData, maxSmall, func() Message { return new(Flush) }},

	TypeFetch:      {"fetch", ClassQuery, maxFetch, func() Message { return new(Fetch) }},
	TypeFetchNodes: {"fetch nodes", ClassQuery, maxFetch, func() Message { return new(FetchNodes) }},
	TypeFetchFrame: {"fetch frame", ClassData, maxFrame, func() Message { return new(FetchFrame) }},
	TypeFetched:    {"fetched", ClassData, maxSmall, func() Message { return new(Fetched) }},

	TypeProgress:     {"progress", ClassOrder, maxSmall, func() Message { return new(Progress) }},
	TypeNotice:       {"notice", ClassData, maxNotice, func() Message { return new(SentNotice) }},
	TypeCommit:       {"commit", ClassData, maxJSON, func() Message { return new(Commit) }},
	TypeCommitResult: {"commit result", ClassOrder, maxJSON, func() Message { return new(CommitResult) }},
	TypeFinish:       {"finish", ClassData, maxJSON, func() Message { return new(Outcome) }},
	TypeFinished:     {"finished", ClassOrder, maxSmall, func() Message { return new(Finished) }},
}

func (t Type) String() string {
	if s, ok := specs[t]; ok {
		return s.name
	}
	return fmt.Sprintf("type(0x%02x)", uint8(t))
}

// Class returns the class that messages of this type belong to.
func (t Type) Class() Class { return specs[t].class }

// StreamKind says what a stream is for. Part of the protocol.
type StreamKind uint8

// The kinds of streams.
const (
	StreamMain  StreamKind = 0 // stream 0: hello or enrol
	StreamOrder StreamKind = 1 // opened by the appliance: one order
	StreamRun   StreamKind = 2 // opened by the agent: one run
	StreamLane  StreamKind = 3 // opened by the agent: one lane of a run
	StreamRenew StreamKind = 4 // opened by the agent: renewal of its certificate
)

func (k StreamKind) String() string {
	switch k {
	case StreamMain:
		return "main"
	case StreamOrder:
		return "order"
	case StreamRun:
		return "run"
	case StreamLane:
		return "lane"
	case StreamRenew:
		return "renew"
	}
	return fmt.Sprintf("stream kind(0x%02x)", uint8(k))
}
