package api

import "time"

// ClientState says whether a client can work.
type ClientState string

// States of a client.
const (
	ClientPending ClientState = "pending" // added, its agent has not enrolled
	ClientOnline  ClientState = "online"  // its agent is connected
	ClientOffline ClientState = "offline" // enrolled, not connected
	ClientRevoked ClientState = "revoked" // its certificates are no longer accepted
	// ClientAgentless has no agent: that of another client, a data mover, works for its tasks.
	ClientAgentless ClientState = "agentless"
)

// Client is a machine that owns data.
type Client struct {
	Name       string      `json:"name"`
	State      ClientState `json:"state" enum:"pending,online,offline,revoked,agentless"`
	Hostname   string      `json:"hostname,omitempty" doc:"what the agent's machine calls itself"`
	OS         string      `json:"os,omitempty" doc:"linux, windows, darwin, freebsd"`
	Arch       string      `json:"arch,omitempty"`
	Agent      string      `json:"agent_version,omitempty"`
	Address    string      `json:"address,omitempty" doc:"IP address the agent last connected from"`
	CreatedAt  time.Time   `json:"created_at"`
	EnrolledAt *time.Time  `json:"enrolled_at,omitempty"`
	LastSeen   *time.Time  `json:"last_seen,omitempty"`
	CertSHA256 string      `json:"certificate_sha256,omitempty" doc:"SHA-256 of the agent's present certificate"`
	CertUntil  *time.Time  `json:"certificate_expires_at,omitempty"`
}

// ClientSpec adds a client.
type ClientSpec struct {
	Name string `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"the client's name on this appliance"`
}

// Enrolment is a one-time token with which an agent enrols as the client.
type Enrolment struct {
	Client    string    `json:"client"`
	Token     string    `json:"token" doc:"one use; carries the fingerprint of the appliance's CA; shown once"`
	ExpiresAt time.Time `json:"expires_at"`
	Server    string    `json:"server,omitempty" doc:"host:port agents connect to, as the appliance knows it"`
}
