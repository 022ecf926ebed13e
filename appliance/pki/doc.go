// Package pki owns the appliance's certificates: its own certificate authority, the server certificate that REST and
// SMS show, the client certificates of agents, fingerprints, enrolment tokens and the TLS configurations of both ends.
//
// It does not own: who is enrolled, which serials are revoked, which tokens are used (the catalog's), nor the exchange
// in which a token becomes a certificate (ingest's and agent's).
//
// # Trust
//
// One authority per appliance signs two kinds of certificate, kept apart by their extended key usage: the server's
// (serverAuth) and agents' (clientAuth, common name = client name). An agent trusts exactly that authority, which it
// learns by the fingerprint inside its enrolment token. It checks no host name: the authority signs no server but this
// appliance, and appliances are reached by aliases, addresses and tunnels that no certificate can foresee.
//
// The server always sends the authority's certificate behind its own, so that a client that knows nothing but the
// authority's fingerprint can verify it; the leaf may be issued anew at any time. Pin the authority, not the leaf.
//
// The agent links this package: it imports the standard library only.
package pki
