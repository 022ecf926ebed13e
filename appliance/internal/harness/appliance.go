package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"coffer/api"
)

// Password is the superuser's password after the first login.
const Password = "a password for tests only"

// stopPatience is how long a program may take to end: what the product
// promises, and a little for a busy machine.
const stopPatience = 40 * time.Second

// Options say where an appliance runs. Bin and Dir are required.
type Options struct {
	Bin    string   // directory of the three programs
	Dir    string   // everything of this appliance lies below it
	Data   string   // data directory; empty: Dir/data
	Flags  []string // further flags for cofferd
	Env    []string // further environment for cofferd
	Detach bool     // the programs outlive the harness
}

// Appliance is a running cofferd and a command line that is logged in to it.
type Appliance struct {
	Options
	REST, SMS, NBD string // host:port
	daemon         *process
}

// Start starts cofferd, waits until it answers, and logs in, changing the
// first password.
func Start(ctx context.Context, opts Options) (*Appliance, error) {
	if opts.Data == "" {
		opts.Data = filepath.Join(opts.Dir, "data")
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	a := &Appliance{Options: opts, REST: ports[0], SMS: ports[1], NBD: ports[2]}
	if err := a.Launch(ctx); err != nil {
		return nil, err
	}
	if err := a.login(ctx); err != nil {
		return nil, errors.Join(err, a.Stop())
	}
	return a, nil
}

// Launch starts the daemon on the data directory, for the first time or after
// Stop or Kill, and waits until the API answers.
func (a *Appliance) Launch(ctx context.Context) error {
	args := append([]string{"--data", a.Data, "--listen-rest", a.REST, "--listen-sms", a.SMS, "--listen-nbd", a.NBD}, a.Flags...)
	cmd := exec.Command(a.program("cofferd"), args...)
	cmd.Env = append(os.Environ(), a.Env...)
	p, err := startProcess("cofferd", a.Log(), cmd, a.Detach)
	if err != nil {
		return err
	}
	a.daemon = p
	for {
		if a.answers() {
			return nil
		}
		select {
		case <-p.gone:
			return fmt.Errorf("cofferd ended at its start: %w; its log ends: %s", p.waitErr, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("cofferd does not answer on %s: %w; its log ends: %s", a.REST, ctx.Err(), tail(p.log))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// answers reports whether the API takes TLS connections: the daemon holds its
// ports before it serves them.
func (a *Appliance) answers() bool {
	dialer := &net.Dialer{Timeout: time.Second}
	conn, err := tls.DialWithDialer(dialer, "tcp", a.REST, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// PID is the daemon's process id.
func (a *Appliance) PID() int { return a.daemon.pid() }

// Log is the path of the daemon's log.
func (a *Appliance) Log() string { return filepath.Join(a.Dir, "cofferd.log") }

// Alive reports whether the daemon runs.
func (a *Appliance) Alive() bool { return a.daemon.running() }

// Stop ends the daemon by SIGTERM.
func (a *Appliance) Stop() error { return a.daemon.terminate(stopPatience) }

// Kill ends the daemon by SIGKILL.
func (a *Appliance) Kill() { a.daemon.kill() }

func (a *Appliance) program(name string) string { return filepath.Join(a.Bin, name) }

// Fingerprint returns the SHA-256 of the appliance's certificate authority.
func (a *Appliance) Fingerprint() (string, error) {
	raw, err := os.ReadFile(filepath.Join(a.Data, "pki", "ca.crt"))
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return "", errors.New("ca.crt holds no certificate")
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}

func (a *Appliance) login(ctx context.Context) error {
	fp, err := a.Fingerprint()
	if err != nil {
		return err
	}
	changed := filepath.Join(a.Dir, "password")
	if err := os.WriteFile(changed, []byte(Password+"\n"), 0o600); err != nil {
		return err
	}
	_, err = a.Coffer(ctx, "login", "https://"+a.REST, "--fingerprint", fp, "--user", "admin",
		"--password-file", filepath.Join(a.Data, "first-password"), "--new-password-file", changed)
	return err
}

// Command prepares a call of the command line.
func (a *Appliance) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, a.program("coffer"), args...)
	cmd.Env = append(os.Environ(), "COFFER_CONFIG_DIR="+filepath.Join(a.Dir, "cli"))
	return cmd
}

// Coffer runs the command line and returns what it prints. An error holds what
// it said on standard error and wraps *exec.ExitError.
func (a *Appliance) Coffer(ctx context.Context, args ...string) ([]byte, error) {
	cmd := a.Command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("coffer %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.Bytes(), nil
}

// JSON runs the command line with --json and decodes what it prints into out.
func (a *Appliance) JSON(ctx context.Context, out any, args ...string) error {
	raw, err := a.Coffer(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("coffer %s --json printed %q: %w", strings.Join(args, " "), raw, err)
	}
	return nil
}

// ExitWarning is the exit status of a run that ended with warnings.
const ExitWarning = 3

// Run runs a command that starts a run and waits for it (backup, restore), and
// returns the run. A run that ended error or cancelled is returned as well,
// beside the error.
func (a *Appliance) Run(ctx context.Context, args ...string) (api.Run, error) {
	raw, err := a.Coffer(ctx, append(args, "--json")...)
	var run api.Run
	if jsonErr := json.Unmarshal(raw, &run); jsonErr != nil {
		return run, errors.Join(err, fmt.Errorf("coffer %s printed %q: %w", strings.Join(args, " "), raw, jsonErr))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == ExitWarning {
		err = nil
	}
	return run, err
}

// freePorts returns addresses on loopback that were free a moment ago.
func freePorts(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
