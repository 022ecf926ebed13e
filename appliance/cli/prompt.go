package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"coffer/api"
)

// maxSecret bounds a password file in bytes.
const maxSecret = 4096

// ask asks a question and returns the answer.
func (a *app) ask(question string) (string, error) {
	fmt.Fprint(a.Err, question)
	return a.line()
}

// line reads one line of standard input, byte by byte: what follows belongs to the next question.
func (a *app) line() (string, error) {
	var b strings.Builder
	for one := make([]byte, 1); b.Len() < maxSecret; {
		n, err := a.In.Read(one)
		if n == 1 && one[0] == '\n' {
			break
		}
		if n == 1 {
			b.WriteByte(one[0])
		}
		if err != nil && (err != io.EOF || b.Len() == 0) {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		if err == io.EOF {
			break
		}
	}
	return strings.TrimSuffix(b.String(), "\r"), nil
}

// askHidden asks for a password without showing it.
func (a *app) askHidden(question string) (string, error) {
	if !a.Terminal {
		return "", api.Errorf(api.CodeBadRequest, "there is no terminal to ask for a password").
			WithHint("give it by --password-file FILE, or in the variable COFFER_PASSWORD")
	}
	f, ok := a.In.(*os.File)
	if !ok {
		return a.ask(question)
	}
	fmt.Fprint(a.Err, question)
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.Err)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return string(b), nil
}

// password finds a password: in a file ("-" is standard input), in an environment variable, or by asking.
func (a *app) password(file, variable, question string) (string, error) {
	if file != "" {
		return a.secretFile(file)
	}
	if v := a.Env(variable); variable != "" && v != "" {
		return v, nil
	}
	return a.askHidden(question)
}

// newPassword finds a new password in a file or by asking twice.
func (a *app) newPassword(file string) (string, error) {
	if file != "" {
		return a.secretFile(file)
	}
	first, err := a.askHidden(fmt.Sprintf("New password (at least %d characters): ", api.MinPassword))
	if err != nil {
		return "", err
	}
	again, err := a.askHidden("New password again: ")
	if err != nil {
		return "", err
	}
	if first != again {
		return "", api.Errorf(api.CodeBadRequest, "the two passwords differ")
	}
	return first, nil
}

// secretFile reads the first line of a file, or of standard input for "-".
func (a *app) secretFile(name string) (string, error) {
	if name == "-" {
		return a.line()
	}
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(io.LimitReader(f, maxSecret))
	if !s.Scan() && s.Err() != nil {
		return "", fmt.Errorf("read the password: %w", s.Err())
	}
	if s.Text() == "" {
		return "", api.Errorf(api.CodeBadRequest, "the password file %s is empty", name)
	}
	return s.Text(), nil
}

// confirm asks a question that is answered yes or no; no is the default.
func (a *app) confirm(question string) (bool, error) {
	answer, err := a.ask(question + " [y/N] ")
	if err != nil {
		return false, err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true, nil
	}
	return false, nil
}
