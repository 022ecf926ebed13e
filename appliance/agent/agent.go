package agent

import (
	"context"
	"log/slog"
)

// DefaultStateDir is where an installed agent keeps its identity.
const DefaultStateDir = "/var/lib/coffer-agent"

// EnrolOptions say with whom to enrol.
type EnrolOptions struct {
	// Server is the appliance's SMS address, host:port; the port may be left out.
	Server string
	// Token is the enrolment token that the appliance printed for this client.
	Token string
	// StateDir is made when missing.
	StateDir string
	// Force replaces an identity that is there already.
	Force  bool
	Logger *slog.Logger
}

// Enrol exchanges the token for a certificate and saves it, with the server's address, in the state directory. It
// returns the client's name.
func Enrol(ctx context.Context, opts EnrolOptions) (client string, err error) { panic("todo") }

// Config of a running agent.
type Config struct {
	StateDir string
	// Server overrides the address saved at enrolment when it is not empty.
	Server string
	Logger *slog.Logger // nil: silent
}

// Run connects to the appliance, again and again, and serves its orders until ctx ends; then runs in work end cancelled
// and it returns nil. An agent that is not enrolled, or whose certificate was revoked, is an error.
func Run(ctx context.Context, cfg Config) error { panic("todo") }
