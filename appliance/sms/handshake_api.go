package sms

import "time"

// Hello is the agent's first message on an authenticated connection.
type Hello struct {
	MinVersion, MaxVersion uint16 // of the protocol; filled by Dial
	OS, Arch               string
	Hostname               string
	Agent                  string // the agent's version
	Capabilities           []string
	Clock                  time.Time // the agent's
}

// Welcome answers Hello.
type Welcome struct {
	Version   uint16 // of the protocol, the one that both will use
	Client    string // the name by which the appliance knows the agent
	Appliance string // the appliance's version
	Clock     time.Time
}

// Enrol asks for a first certificate, on a connection that has none: the only thing such a connection can do.
type Enrol struct {
	Secret   []byte // the enrolment token's secret
	CSR      []byte // PKCS #10, DER
	Hostname string
}

// EnrolResult answers Enrol and Renew.
type EnrolResult struct {
	Client      string // the client's name
	Certificate []byte // DER
	CA          []byte // DER
}

// Renew asks for a new certificate over a connection that still has a valid one.
type Renew struct {
	CSR []byte // PKCS #10, DER
}
