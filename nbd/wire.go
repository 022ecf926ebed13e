package nbd

import (
	"encoding/binary"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

var be = binary.BigEndian

// Handshake flags of the server and of the client (proto.md, "Handshake flags", "Client flags").
const (
	flagFixedNewstyle  = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	flagNoZeroes       = uint16(1 << 1) // NBD_FLAG_NO_ZEROES
	clientFixed        = uint32(1 << 0) // NBD_FLAG_C_FIXED_NEWSTYLE
	clientNoZeroes     = uint32(1 << 1) // NBD_FLAG_C_NO_ZEROES
	exportNameReserved = 124            // zeroes after the answer to EXPORT_NAME
)

// Transmission flags (proto.md, "Transmission flags").
const (
	txHasFlags    = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	txReadOnly    = uint16(1 << 1)
	txFlush       = uint16(1 << 2)
	txFUA         = uint16(1 << 3)
	txTrim        = uint16(1 << 5)
	txWriteZeroes = uint16(1 << 6)
	txDF          = uint16(1 << 7)
	txMultiConn   = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	txCache       = uint16(1 << 10)
)

// option is an option of the haggling (proto.md, "Option types").
type option uint32

const (
	optExportName      option = 1 // NBD_OPT_EXPORT_NAME
	optAbort                  = option(protocol.NEGOTIATION_ID_OPTION_ABORT)
	optList                   = option(protocol.NEGOTIATION_ID_OPTION_LIST)
	optStartTLS        option = 5 // NBD_OPT_STARTTLS
	optInfo                   = option(protocol.NEGOTIATION_ID_OPTION_INFO)
	optGo                     = option(protocol.NEGOTIATION_ID_OPTION_GO)
	optStructuredReply option = 8  // NBD_OPT_STRUCTURED_REPLY
	optListMetaContext option = 9  // NBD_OPT_LIST_META_CONTEXT
	optSetMetaContext  option = 10 // NBD_OPT_SET_META_CONTEXT
)

var optionNames = map[option]string{optExportName: "EXPORT_NAME", optAbort: "ABORT", optList: "LIST", optStartTLS: "STARTTLS",
	optInfo: "INFO", optGo: "GO", optStructuredReply: "STRUCTURED_REPLY", optListMetaContext: "LIST_META_CONTEXT",
	optSetMetaContext: "SET_META_CONTEXT"}

func (o option) String() string { return nameOf(optionNames, o, "option") }

// optReply is a reply to an option (proto.md, "Option reply types").
type optReply uint32

const (
	repAck                = optReply(protocol.NEGOTIATION_TYPE_REPLY_ACK)
	repServer             = optReply(protocol.NEGOTIATION_TYPE_REPLY_SERVER)
	repInfo               = optReply(protocol.NEGOTIATION_TYPE_REPLY_INFO)
	repMetaContext        = optReply(4)
	repError              = optReply(1 << 31)
	repErrUnsup           = optReply(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED)
	repErrPolicy          = repError | 2
	repErrInvalid         = repError | 3
	repErrPlatform        = repError | 4
	repErrTLSReqd         = repError | 5
	repErrUnknown         = optReply(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN)
	repErrShutdown        = repError | 7
	repErrBlockSizeReqd   = repError | 8
	repErrTooBig          = repError | 9
	replyMagic            = protocol.NEGOTIATION_MAGIC_REPLY
	optionMagic           = protocol.NEGOTIATION_MAGIC_OPTION
	serverMagic           = protocol.NEGOTIATION_MAGIC_OLDSTYLE
	optionHeaderSize      = 16
	optReplyHeaderSize    = 20
	metaAllocationID      = uint32(1) // what the server calls base:allocation
	metaNamespaceBase     = "base:"
	infoExportPayload     = 12
	infoBlockSizePayload  = 14
	maxString             = 4096     // bytes of a name or a message (proto.md, "Conventions")
	maxOption             = 64 << 10 // bytes of an option's data that the server takes
	maxOptions            = 1024     // options in one negotiation
	maxOptionReply        = 64 << 10 // bytes of an option reply that the client takes
	maxListed             = 1 << 16  // exports, and replies to one option, that the client takes
	maxStatusDescriptors  = 2048     // descriptors in one of our block status replies
	maxErrorChunk         = 68 << 10 // bytes of an error chunk that the client takes: a message, and what may follow it
	maxStatusPayload      = 8 << 20  // bytes of a block status chunk that the client takes; qemu sends up to 1 MiB
	requestHeaderSize     = 28
	simpleReplySize       = 16
	chunkHeaderSize       = 20
	offsetSize            = 8 // of OFFSET_DATA
	holePayload           = 12
	errorPayload          = 6
	descriptorSize        = 8
	requestMagic          = protocol.TRANSMISSION_MAGIC_REQUEST
	simpleReplyMagic      = protocol.TRANSMISSION_MAGIC_REPLY
	structuredReplyMagic  = uint32(0x668e33ef)
	defaultPreferredBlock = 4096
	defaultMaxRequest     = 32 << 20
	maxMinimumBlock       = 64 << 10 // proto.md, "Block size constraints"
)

var optReplyNames = map[optReply]string{repAck: "ACK", repServer: "SERVER", repInfo: "INFO", repMetaContext: "META_CONTEXT",
	repErrUnsup: "ERR_UNSUP", repErrPolicy: "ERR_POLICY", repErrInvalid: "ERR_INVALID", repErrPlatform: "ERR_PLATFORM",
	repErrTLSReqd: "ERR_TLS_REQD", repErrUnknown: "ERR_UNKNOWN", repErrShutdown: "ERR_SHUTDOWN",
	repErrBlockSizeReqd: "ERR_BLOCK_SIZE_REQD", repErrTooBig: "ERR_TOO_BIG"}

func (r optReply) String() string { return nameOf(optReplyNames, r, "reply") }

// kind is what an error reply means to a client.
func (r optReply) kind() Kind {
	switch r {
	case repErrUnsup, repErrPlatform:
		return KindUnsupported
	case repErrPolicy:
		return KindPolicy
	case repErrInvalid, repErrBlockSizeReqd, repErrTooBig:
		return KindInvalid
	case repErrTLSReqd:
		return KindTLSRequired
	case repErrUnknown:
		return KindUnknownExport
	case repErrShutdown:
		return KindShutdown
	}
	return KindOther
}

// replyOf is how a failure of Exports is told to a client.
func replyOf(k Kind) optReply {
	switch k {
	case KindPolicy:
		return repErrPolicy
	case KindTLSRequired:
		return repErrTLSReqd
	case KindShutdown:
		return repErrShutdown
	}
	return repErrUnknown
}

// Information types of INFO and GO.
const (
	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// command is a request type (proto.md, "Request types").
type command uint16

const (
	cmdRead        = command(protocol.TRANSMISSION_TYPE_REQUEST_READ)
	cmdWrite       = command(protocol.TRANSMISSION_TYPE_REQUEST_WRITE)
	cmdDisc        = command(protocol.TRANSMISSION_TYPE_REQUEST_DISC)
	cmdFlush       = command(3)
	cmdTrim        = command(4)
	cmdCache       = command(5)
	cmdWriteZeroes = command(6)
	cmdBlockStatus = command(7)
)

var commandNames = map[command]string{cmdRead: "read", cmdWrite: "write", cmdDisc: "disconnect", cmdFlush: "flush",
	cmdTrim: "trim", cmdCache: "cache", cmdWriteZeroes: "write zeroes", cmdBlockStatus: "block status"}

func (c command) String() string { return nameOf(commandNames, c, "command") }

// Command flags (proto.md, "Command flags").
const (
	cmdFlagFUA    = uint16(1 << 0)
	cmdFlagNoHole = uint16(1 << 1)
	cmdFlagDF     = uint16(1 << 2)
	cmdFlagReqOne = uint16(1 << 3)
)

// chunkType is a type of structured reply chunk (proto.md, "Structured reply types").
type chunkType uint16

const (
	chunkNone        chunkType = 0
	chunkOffsetData  chunkType = 1
	chunkOffsetHole  chunkType = 2
	chunkBlockStatus chunkType = 5
	chunkErrorBit    chunkType = 1 << 15
	chunkError                 = chunkErrorBit | 1
	chunkErrorOffset           = chunkErrorBit | 2

	chunkDone = uint16(1 << 0) // NBD_REPLY_FLAG_DONE
)

var chunkNames = map[chunkType]string{chunkNone: "none", chunkOffsetData: "offset data", chunkOffsetHole: "offset hole",
	chunkBlockStatus: "block status", chunkError: "error", chunkErrorOffset: "error offset"}

func (c chunkType) String() string { return nameOf(chunkNames, c, "chunk") }

func nameOf[T ~uint16 | ~uint32](names map[T]string, v T, what string) string {
	if s := names[v]; s != "" {
		return s
	}
	return fmt.Sprintf("%s %#x", what, uint32(v))
}

// request is a decoded request header.
type request = protocol.TransmissionRequestHeader

func decodeRequest(b []byte) request {
	return request{RequestMagic: be.Uint32(b), CommandFlags: be.Uint16(b[4:]), Type: be.Uint16(b[6:]),
		Handle: be.Uint64(b[8:]), Offset: be.Uint64(b[16:]), Length: be.Uint32(b[24:])}
}

func appendRequest(b []byte, r request) []byte {
	b = be.AppendUint32(b, requestMagic)
	b = be.AppendUint16(b, r.CommandFlags)
	b = be.AppendUint16(b, r.Type)
	b = be.AppendUint64(b, r.Handle)
	b = be.AppendUint64(b, r.Offset)
	return be.AppendUint32(b, r.Length)
}

func appendSimpleReply(b []byte, handle uint64, e Errno) []byte {
	b = be.AppendUint32(b, simpleReplyMagic)
	b = be.AppendUint32(b, uint32(e))
	return be.AppendUint64(b, handle)
}

// chunkHeader is the head of a structured reply chunk.
type chunkHeader struct {
	Flags  uint16
	Type   chunkType
	Handle uint64
	Length uint32
}

func appendChunk(b []byte, h chunkHeader) []byte {
	b = be.AppendUint32(b, structuredReplyMagic)
	b = be.AppendUint16(b, h.Flags)
	b = be.AppendUint16(b, uint16(h.Type))
	b = be.AppendUint64(b, h.Handle)
	return be.AppendUint32(b, h.Length)
}

// decodeChunk takes what follows the magic.
func decodeChunk(b []byte) chunkHeader {
	return chunkHeader{Flags: be.Uint16(b), Type: chunkType(be.Uint16(b[2:])), Handle: be.Uint64(b[4:]), Length: be.Uint32(b[12:])}
}

func appendOptionHeader(b []byte, o option, n int) []byte {
	b = be.AppendUint64(b, optionMagic)
	b = be.AppendUint32(b, uint32(o))
	return be.AppendUint32(b, uint32(n))
}

func appendString(b []byte, s string) []byte { return append(be.AppendUint32(b, uint32(len(s))), s...) }

// fields reads an option's or reply's data from its front. The first read past the end makes it bad for good.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n < 0 || n > len(f.b) {
		f.bad = true
		return nil
	}
	r := f.b[:n]
	f.b = f.b[n:]
	return r
}

func (f *fields) u16() uint16 {
	if b := f.take(2); b != nil {
		return be.Uint16(b)
	}
	return 0
}

func (f *fields) u32() uint32 {
	if b := f.take(4); b != nil {
		return be.Uint32(b)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if b := f.take(8); b != nil {
		return be.Uint64(b)
	}
	return 0
}

// str reads a string with its length before it.
func (f *fields) str() string {
	n := f.u32()
	if n > maxString {
		f.bad = true
		return ""
	}
	return string(f.take(int(n)))
}

// done tells whether everything was read and nothing was missing.
func (f *fields) done() bool { return !f.bad && len(f.b) == 0 }
