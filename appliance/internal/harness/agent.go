package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"coffer/api"
)

// Agent is an enrolled coffer-agent.
type Agent struct {
	Client string
	Dir    string // its state directory
	// Enter begins the command line of its next start: a program that puts it into a namespace. It must not fork.
	Enter []string
	a     *Appliance
	p     *process
}

// Agent adds a client, enrols an agent for it with a fresh token, starts it and
// waits until the appliance sees it online.
func (a *Appliance) Agent(ctx context.Context, client string) (*Agent, error) {
	token, err := a.enrolmentToken(ctx, client)
	if err != nil {
		return nil, err
	}
	g := &Agent{Client: client, Dir: filepath.Join(a.Dir, "agent-"+client), a: a}
	if out, err := g.Enrol(ctx, token).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("coffer-agent enrol: %w: %s", err, out)
	}
	if err := g.Launch(ctx); err != nil {
		return nil, err
	}
	return g, g.WaitOnline(ctx)
}

func (a *Appliance) enrolmentToken(ctx context.Context, client string) (string, error) {
	var answer api.Enrolment
	err := a.JSON(ctx, &answer, "client", "add", client)
	return answer.Token, err
}

// Enrol prepares the enrolment with a token.
func (g *Agent) Enrol(ctx context.Context, token string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, g.a.program("coffer-agent"), "enrol", "--server", g.a.SMS, "--state", g.Dir)
	cmd.Env = append(os.Environ(), "COFFER_TOKEN="+token)
	return cmd
}

// Launch starts the agent's process, for the first time or again.
func (g *Agent) Launch(context.Context) error {
	line := append(slices.Clone(g.Enter), g.a.program("coffer-agent"), "run", "--state", g.Dir)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = os.Environ()
	p, err := startProcess("coffer-agent "+g.Client, g.Log(), cmd, g.a.Detach)
	g.p = p
	return err
}

// WaitOnline waits until the appliance sees the agent.
func (g *Agent) WaitOnline(ctx context.Context) error {
	for {
		var c api.Client
		err := g.a.JSON(ctx, &c, "client", "show", g.Client)
		if err == nil && c.State == api.ClientOnline {
			return nil
		}
		select {
		case <-g.p.gone:
			return fmt.Errorf("coffer-agent ended: %w; its log ends: %s", g.p.waitErr, tail(g.p.log))
		case <-ctx.Done():
			return fmt.Errorf("agent %s does not come online: %w (last: %v); its log ends: %s", g.Client, ctx.Err(), err, tail(g.p.log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PID is the agent's process id.
func (g *Agent) PID() int { return g.p.pid() }

// Log is the path of the agent's log.
func (g *Agent) Log() string { return filepath.Join(g.a.Dir, "agent-"+g.Client+".log") }

// Stop ends the agent by SIGTERM.
func (g *Agent) Stop() error { return g.p.terminate(stopPatience) }

// Kill ends the agent by SIGKILL.
func (g *Agent) Kill() { g.p.kill() }
