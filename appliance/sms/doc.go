// Package sms owns the Sesam Multiplex Stream between an agent and the appliance: packets, messages, orders, and Conn
// with its Streams (credits, byte budget, keep-alive). PROTOCOL.md has the bytes and the sequence of messages.
//
// It does not own what the messages mean: appliance/ingest is the appliance's end of a run, appliance/agent/uplink the
// agent's. It takes a net.Conn and knows neither TLS nor certificates.
package sms
