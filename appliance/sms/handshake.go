package sms

import (
	"encoding/binary"
	"time"
)

// Version is the protocol's version that this program speaks. Part of the protocol.
const Version = 1

// Hello is the agent's first message on an authenticated connection.
type Hello struct {
	MinVersion, MaxVersion uint16 // of the protocol
	OS, Arch               string
	Hostname               string
	Agent                  string // the agent's version
	Capabilities           []string
	Clock                  time.Time // the agent's
}

func (*Hello) Type() Type { return TypeHello }

func (m *Hello) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, m.MinVersion)
	b = binary.LittleEndian.AppendUint16(b, m.MaxVersion)
	b = appendTime(b, m.Clock)
	for _, s := range []string{m.OS, m.Arch, m.Hostname, m.Agent} {
		b = appendBytes(b, s)
	}
	b = append(b, byte(len(m.Capabilities)))
	for _, s := range m.Capabilities[:byte(len(m.Capabilities))] {
		b = appendBytes(b, s)
	}
	return b
}

func (m *Hello) decode(c *cursor) {
	m.MinVersion, m.MaxVersion, m.Clock = c.u16(), c.u16(), c.time()
	m.OS, m.Arch, m.Hostname, m.Agent = c.str(), c.str(), c.str(), c.str()
	m.Capabilities = nil
	for range c.u8() {
		m.Capabilities = append(m.Capabilities, c.str())
	}
}

// Welcome answers Hello.
type Welcome struct {
	Version   uint16 // of the protocol, the one that both use
	Client    string // the name by which the appliance knows the agent
	Appliance string // the appliance's version
	Clock     time.Time
}

func (*Welcome) Type() Type { return TypeWelcome }

func (m *Welcome) append(b []byte) []byte {
	b = appendTime(binary.LittleEndian.AppendUint16(b, m.Version), m.Clock)
	return appendBytes(appendBytes(b, m.Client), m.Appliance)
}

func (m *Welcome) decode(c *cursor) {
	m.Version, m.Clock, m.Client, m.Appliance = c.u16(), c.time(), c.str(), c.str()
}

// Enrol asks for a first certificate, on a connection that has none: the only thing such a connection can do.
type Enrol struct {
	Secret   []byte // the enrolment token's secret
	CSR      []byte // PKCS #10, DER
	Hostname string
}

func (*Enrol) Type() Type { return TypeEnrol }
func (m *Enrol) append(b []byte) []byte {
	return appendBytes(appendBytes(appendBytes(b, m.Secret), m.CSR), m.Hostname)
}
func (m *Enrol) decode(c *cursor) { m.Secret, m.CSR, m.Hostname = c.bytes(), c.bytes(), c.str() }

// EnrolResult answers Enrol and Renew.
type EnrolResult struct {
	Client      string // the client's name
	Certificate []byte // DER
	CA          []byte // DER
}

func (*EnrolResult) Type() Type { return TypeEnrolResult }
func (m *EnrolResult) append(b []byte) []byte {
	return appendBytes(appendBytes(appendBytes(b, m.Client), m.Certificate), m.CA)
}
func (m *EnrolResult) decode(c *cursor) {
	m.Client, m.Certificate, m.CA = c.str(), c.bytes(), c.bytes()
}

// Renew asks for a new certificate over a connection that still has a valid one.
type Renew struct {
	CSR []byte // PKCS #10, DER
}

func (*Renew) Type() Type               { return TypeRenew }
func (m *Renew) append(b []byte) []byte { return appendBytes(b, m.CSR) }
func (m *Renew) decode(c *cursor)       { m.CSR = c.bytes() }
