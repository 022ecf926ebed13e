package libvirt

import (
	"encoding/binary"
	"fmt"
	"net"
)

// Lengths of a packet of libvirt's RPC (virnetprotocol.x: VIR_NET_MESSAGE_MAX, 32 MiB of payload; a header of 28 bytes).
const (
	minPacket = 28
	maxPacket = 32<<20 + 1<<10
)

// guarded checks the lengths of the packets that arrive before the library allocates by them: a length below that of the
// header would make it panic.
type guarded struct {
	net.Conn
	length [4]byte
	have   int    // bytes of the length that have passed
	left   uint32 // of the packet
}

// Read implements net.Conn.
func (g *guarded) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if g.left > 0 {
			skip := min(g.left, uint32(len(rest)))
			g.left -= skip
			rest = rest[skip:]
			continue
		}
		k := copy(g.length[g.have:], rest)
		g.have += k
		rest = rest[k:]
		if g.have < len(g.length) {
			break
		}
		size := binary.BigEndian.Uint32(g.length[:])
		if size < minPacket || size > maxPacket {
			_ = g.Close()
			return 0, fmt.Errorf("libvirtd sent a packet of %d bytes", size)
		}
		g.have, g.left = 0, size-uint32(len(g.length))
	}
	return n, err
}
