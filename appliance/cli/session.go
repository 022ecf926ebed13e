package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"coffer/api"
	"coffer/api/client"
)

// session is what a login leaves behind, in a file that only its owner reads.
type session struct {
	Server      string    `json:"server"`
	Fingerprint string    `json:"fingerprint"`
	User        string    `json:"user"`
	Token       string    `json:"token,omitempty"` // empty after a logout: server and pin stay known
	ExpiresAt   time.Time `json:"expires_at"`
}

// maxSession bounds the session file in bytes.
const maxSession = 64 << 10

// sessionFile returns the path of the session file.
func (a *app) sessionFile() (string, error) {
	if dir := a.Env("COFFER_CONFIG_DIR"); dir != "" {
		return filepath.Join(dir, "session.json"), nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration directory: %w", err)
	}
	return filepath.Join(dir, "coffer", "session.json"), nil
}

// loadSession reads the session file; a missing one is an empty session.
func (a *app) loadSession() (s session, err error) {
	file, err := a.sessionFile()
	if err != nil {
		return s, err
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the session: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, fmt.Errorf("read the session: %w", err)
	}
	if info.Size() > maxSession {
		return s, fmt.Errorf("read the session: %s is no session file", file)
	}
	if err := json.NewDecoder(f).Decode(&s); err != nil {
		return s, fmt.Errorf("read the session %s: %w (remove it and log in again)", file, err)
	}
	return s, nil
}

// saveSession replaces the session file: written beside it, then renamed.
func (a *app) saveSession(s session) error {
	file, err := a.sessionFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("save the session: %w", err)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("save the session: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".session-*") // mode 0600
	if err != nil {
		return fmt.Errorf("save the session: %w", err)
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // the error that matters is err
		return fmt.Errorf("save the session: %w", err)
	}
	return nil
}

// known returns the session, with the environment's values in place of the file's.
func (a *app) known() (session, error) {
	s, err := a.loadSession()
	if err != nil {
		return s, err
	}
	if v := a.Env("COFFER_SERVER"); v != "" && v != s.Server {
		s = session{Server: v}
	}
	if v := a.Env("COFFER_FINGERPRINT"); v != "" {
		s.Fingerprint = v
	}
	if v := a.Env("COFFER_TOKEN"); v != "" {
		s.Token, s.ExpiresAt = v, time.Time{}
	}
	return s, nil
}

// connect makes a client of the session.
func (a *app) connect() (*client.Client, error) {
	s, err := a.known()
	if err != nil {
		return nil, err
	}
	if s.Server == "" || s.Token == "" {
		return nil, api.Errorf(api.CodeNotLoggedIn, "you are not logged in").WithHint("log in with 'coffer login %s'", orText(s.Server, "https://HOST:11401"))
	}
	if s.Fingerprint == "" {
		return nil, api.Errorf(api.CodeNotLoggedIn, "the certificate of %s is not known", s.Server).WithHint("log in with 'coffer login', or set COFFER_FINGERPRINT")
	}
	if !s.ExpiresAt.IsZero() && a.Now().After(s.ExpiresAt) {
		return nil, api.Errorf(api.CodeUnauthenticated, "the session of %s at %s has ended", s.User, s.Server).WithHint("log in again with 'coffer login'")
	}
	return a.client(s)
}

func (a *app) client(s session) (*client.Client, error) {
	return client.New(client.Options{Server: s.Server, Fingerprint: s.Fingerprint, Token: s.Token, UserAgent: "coffer/" + api.Version, Lost: a.lost})
}

func orText(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
