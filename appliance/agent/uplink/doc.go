// Package uplink owns the agent's end of SMS: the connection that is kept up (Link), and runs over it (Session) that
// survive lost connections. It keeps what was sent until the appliance has acknowledged it, asks again what was not
// answered, batches and deduplicates nodes, and reads nodes ahead.
//
// It does not read or write files, and it does not decide what a run does: that is the package agent.
package uplink
