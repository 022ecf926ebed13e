package sms

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// Layout of the connection; see PROTOCOL.md. Part of the protocol.
const (
	preamble = "cofSMS\x01\x00" // name, version of the packet form (u16)

	// HeaderLen is the length of a packet's header in bytes.
	HeaderLen = 24
	// MaxPayload is the most payload bytes in a packet.
	MaxPayload = 256 << 10

	crcOffset = 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is a packet's header.
type header struct {
	Stream uint32
	Seq    uint32 // of the packet on its stream and direction, from 0
	Type   Type
	Length uint32 // of the payload in bytes
	Rest   uint32 // bytes of the message that follow in later packets; 0 = the message is complete
}

// appendHeader appends the header of a packet with this payload, checksum included.
func appendHeader(b []byte, h header, payload []byte) []byte {
	n := len(b)
	b = binary.LittleEndian.AppendUint32(b, h.Stream)
	b = binary.LittleEndian.AppendUint32(b, h.Seq)
	b = append(b, byte(h.Type), 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, h.Length)
	b = binary.LittleEndian.AppendUint32(b, h.Rest)
	sum := crc32.Update(crc32.Checksum(b[n:], castagnoli), castagnoli, payload)
	return binary.LittleEndian.AppendUint32(b, sum)
}

// parseHeader reads a header and checks what can be checked without the payload.
func parseHeader(b *[HeaderLen]byte) (header, error) {
	h := header{
		Stream: binary.LittleEndian.Uint32(b[0:]),
		Seq:    binary.LittleEndian.Uint32(b[4:]),
		Type:   Type(b[8]),
		Length: binary.LittleEndian.Uint32(b[12:]),
		Rest:   binary.LittleEndian.Uint32(b[16:]),
	}
	spec, ok := specs[h.Type]
	switch {
	case b[9]|b[10]|b[11] != 0:
		return h, Errorf(CodeProtocol, "packet with unknown flags %x", b[9:12])
	case !ok:
		return h, Errorf(CodeProtocol, "packet of unknown type %v", h.Type)
	case h.Length > MaxPayload:
		return h, Errorf(CodeProtocol, "packet with %d payload bytes, limit %d", h.Length, MaxPayload)
	case h.Rest > 0 && h.Length != MaxPayload:
		return h, Errorf(CodeProtocol, "packet with %d payload bytes in the middle of a message of type %v", h.Length, h.Type)
	case uint64(h.Length)+uint64(h.Rest) > uint64(spec.max):
		return h, Errorf(CodeProtocol, "message of type %v with %d bytes, limit %d", h.Type, uint64(h.Length)+uint64(h.Rest), spec.max)
	}
	return h, nil
}

// checkCRC compares the checksum of a whole packet with the one in its header.
func checkCRC(b *[HeaderLen]byte, payload []byte) error {
	sum := crc32.Update(crc32.Checksum(b[:crcOffset], castagnoli), castagnoli, payload)
	if sum != binary.LittleEndian.Uint32(b[crcOffset:]) {
		return Errorf(CodeProtocol, "packet with a wrong checksum")
	}
	return nil
}

// readPreamble checks that the peer speaks this protocol.
func readPreamble(r io.Reader) error {
	var b [len(preamble)]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	if string(b[:6]) != preamble[:6] {
		return Errorf(CodeProtocol, "the peer does not speak SMS: it began with %x", b)
	}
	if string(b[:]) != preamble {
		return Errorf(CodeVersion, "the peer uses packet form %d, this program knows 1", binary.LittleEndian.Uint16(b[6:]))
	}
	return nil
}
