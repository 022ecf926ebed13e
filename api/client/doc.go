// Package client is the Go client of the appliance's REST API: one method per call, types of package api in and out.
//
// It owns the connection: TLS that trusts exactly the certificate authority whose SHA-256 the caller pins, the bearer
// token, the decoding of problem+json into *api.Error, and event streams that reconnect. It keeps no files.
package client
