package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/pki"
	"coffer/appliance/sms"
)

// EnrolOptions say with whom to enrol.
type EnrolOptions struct {
	// Server is the appliance's SMS address, host:port; the port may be left out.
	Server string
	// Token is the enrolment token that the appliance printed for this client.
	Token string
	// StateDir is made when missing; empty means DefaultStateDir.
	StateDir string
	// Force replaces an identity that is there already.
	Force  bool
	Logger *slog.Logger
}

// ErrEnrolled says that the state directory has an identity already.
var ErrEnrolled = errors.New("this client is enrolled already")

// Enrol exchanges the token for a certificate and saves it, with the server's address, in the state directory. It
// returns the client's name. The token is of use once.
func Enrol(ctx context.Context, opts EnrolOptions) (client string, err error) {
	if opts.StateDir == "" {
		opts.StateDir = DefaultStateDir
	}
	if opts.Server == "" {
		return "", errors.New("enrol: no appliance is named")
	}
	token, err := pki.ParseToken(opts.Token)
	if err != nil {
		return "", err
	}
	if st, err := loadState(opts.StateDir); err == nil && !opts.Force {
		return "", fmt.Errorf("%w: as %s with %s", ErrEnrolled, st.identity.Client(), st.server)
	}
	// The token is used up by the exchange: what can fail on this side fails before.
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return "", fmt.Errorf("enrol: %w", err)
	}
	if err := writable(opts.StateDir); err != nil {
		return "", fmt.Errorf("enrol: %w", err)
	}
	st := state{server: withPort(opts.Server)}
	if st.identity, err = exchange(ctx, st.server, token); err != nil {
		return "", fmt.Errorf("enrol with %s: %w", st.server, err)
	}
	return st.identity.Client(), st.save(opts.StateDir)
}

func writable(dir string) error {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// exchange makes a key and lets the appliance sign it.
func exchange(ctx context.Context, server string, token pki.Token) (*pki.Identity, error) {
	host, _ := os.Hostname()
	req, err := pki.NewRequest(host)
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, server, pki.EnrolTLS(token.CA))
	if err != nil {
		return nil, err
	}
	res, err := uplink.Enrol(ctx, conn, sms.Enrol{Secret: token.Secret[:], CSR: req.CSR, Hostname: host})
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity(req.Key, res.Certificate, res.CA)
	if err != nil {
		return nil, err
	}
	if pki.FingerprintOf(id.CA) != token.CA {
		return nil, fmt.Errorf("the answer is of another authority than the token's: %w", pki.ErrUntrusted)
	}
	return id, nil
}

// How often a renewal that failed is tried again, at first and in the end.
const (
	renewRetryMin = time.Minute
	renewRetryMax = 6 * time.Hour
)

// keepCertificate renews the certificate when two thirds of its life are over, until ctx ends.
func (a *Agent) keepCertificate(ctx context.Context) {
	retry := renewRetryMin
	for {
		wait := a.identity.Load().RenewAt().Sub(a.cfg.Now())
		if wait <= 0 {
			if err := a.renew(ctx); err != nil {
				a.cfg.Logger.Warn("certificate not renewed", "error", err, "ends", a.identity.Load().Cert.NotAfter, "retry_in", retry)
				wait, retry = retry, min(2*retry, renewRetryMax)
			} else {
				retry = renewRetryMin
				continue
			}
		}
		// A long wait is cut: a clock that is set must be noticed. Jitter keeps many agents from coming together.
		wait = min(wait, time.Hour)
		select {
		case <-time.After(wait + rand.N(wait/8+1)):
		case <-ctx.Done():
			return
		}
	}
}

// renew gets a new certificate for a new key. The next connection shows it.
func (a *Agent) renew(ctx context.Context) error {
	old := a.identity.Load()
	req, err := pki.NewRequest(old.Client())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := a.link.Renew(ctx, req.CSR)
	if err != nil {
		return err
	}
	id, err := pki.NewIdentity(req.Key, res.Certificate, res.CA)
	if err != nil {
		return err
	}
	if !id.CA.Equal(old.CA) || id.Client() != old.Client() {
		return fmt.Errorf("the new certificate is for %s by another authority: %w", id.Client(), pki.ErrUntrusted)
	}
	if err := id.Save(filepath.Join(a.cfg.StateDir, identityFile)); err != nil {
		return err
	}
	a.identity.Store(id)
	a.cfg.Logger.Info("certificate renewed", "ends", id.Cert.NotAfter)
	return nil
}
