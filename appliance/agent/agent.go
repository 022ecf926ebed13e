package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/agent/vm"
	"coffer/appliance/pki"
	"coffer/appliance/sms"
)

const (
	// DefaultStateDir is where an installed agent keeps its identity.
	DefaultStateDir = "/var/lib/coffer-agent"
	// DefaultPort is the appliance's port for agents.
	DefaultPort = "11301"

	// stopGrace is how long runs may take to end, and to tell the appliance so, when the agent stops. The appliance
	// and systemd wait for 30 s and more.
	stopGrace = 15 * time.Second
	// maxRuns is how many runs an agent works on at once; each may take some 60 MiB.
	maxRuns = 4
	// memoryLimit makes the collector work harder before the process grows beyond what a client can spare.
	memoryLimit = 200 << 20
)

// Config of a running agent.
type Config struct {
	StateDir string // empty: DefaultStateDir
	// RunDir is where the sockets of machines on exports lie; empty: vm.DefaultRunDir.
	RunDir string
	// Server overrides the address saved at enrolment when it is not empty.
	Server  string
	Version string       // of the program, shown by the appliance
	Logger  *slog.Logger // nil: silent
	Now     func() time.Time
}

// Agent is a running agent.
type Agent struct {
	cfg      Config
	server   string
	identity atomic.Pointer[pki.Identity]
	link     *uplink.Link
	machines vm.Locks
	guests   vm.Machines // on exports of the appliance

	mu      sync.Mutex // guards all below
	runs    map[string]context.CancelCauseFunc
	working sync.WaitGroup
	stopped bool
}

// errStopped is why runs end when the agent does.
var errStopped = errors.New("the agent was stopped")

// Run connects to the appliance, again and again, and serves its orders until ctx ends; then runs in work end cancelled
// and it returns nil. An agent that is not enrolled, or whose certificate was revoked, is an error.
func Run(ctx context.Context, cfg Config) error {
	a, err := load(cfg)
	if err != nil {
		return err
	}
	limitMemory()
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx))
	defer unlink()
	ended := make(chan error, 1)
	go func() { ended <- a.link.Run(linked) }()
	renewed := make(chan struct{})
	renewing, stopRenewing := context.WithCancel(ctx)
	go func() {
		defer close(renewed)
		a.keepCertificate(renewing)
	}()
	select {
	case err = <-ended: // for good: the appliance does not want this agent
	case <-ctx.Done():
		err = nil
	}
	stopRenewing()
	<-renewed
	a.stop()
	if ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", a.server, refusal(err))
	}
	unlink()
	<-ended
	return nil
}

// refusal says what to do about an appliance that refuses this agent.
func refusal(err error) error {
	if sms.CodeOf(err) == sms.CodeAuth {
		return fmt.Errorf("%w: the certificate is revoked, expired or of another appliance; enrol again with a new token", err)
	}
	return err
}

func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(memoryLimit)
	}
}

func load(cfg Config) (*Agent, error) {
	if cfg.StateDir == "" {
		cfg.StateDir = DefaultStateDir
	}
	if cfg.RunDir == "" {
		cfg.RunDir = vm.DefaultRunDir
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	st, err := loadState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if cfg.Server != "" {
		st.server = withPort(cfg.Server)
	}
	a := &Agent{cfg: cfg, server: st.server, runs: map[string]context.CancelCauseFunc{}}
	a.identity.Store(st.identity)
	a.guests = vm.Machines{Dial: a.dialNBD, RunDir: cfg.RunDir, StateDir: filepath.Join(cfg.StateDir, "machines"), Logger: cfg.Logger}
	host, _ := os.Hostname()
	a.link = uplink.NewLink(uplink.Options{
		Dial: a.dial,
		Hello: sms.Hello{OS: runtime.GOOS, Arch: runtime.GOARCH, Hostname: host, Agent: cfg.Version,
			Capabilities: []string{sms.TaskPath, sms.TaskStream, sms.TaskLibvirt}},
		Orders: a,
		Logger: cfg.Logger,
		Now:    cfg.Now,
	})
	return a, nil
}

func (a *Agent) dial(ctx context.Context) (net.Conn, error) {
	return dial(ctx, a.server, pki.ClientTLS(a.identity.Load()))
}

// dialNBD reaches the appliance's NBD server through the port of SMS.
func (a *Agent) dialNBD(ctx context.Context) (net.Conn, error) {
	conf := pki.ClientTLS(a.identity.Load())
	conf.NextProtos = []string{pki.ALPNNBD}
	conn, err := dial(ctx, a.server, conf)
	if err != nil {
		return nil, err
	}
	if err := sms.WriteThrough(conn.NetConn()); err != nil { // an NBD client does not flush
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// stop ends all runs and waits until the appliance knows, or the grace is over.
func (a *Agent) stop() {
	a.mu.Lock()
	a.stopped = true
	for _, cancel := range a.runs {
		cancel(errStopped)
	}
	a.mu.Unlock()
	done := make(chan struct{})
	go func() {
		a.working.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopGrace):
		a.cfg.Logger.Warn("runs did not end in time", "waited", stopGrace)
	}
	if err := a.guests.Close(); err != nil {
		a.cfg.Logger.Warn("give up machines on exports", "error", err)
	}
}
