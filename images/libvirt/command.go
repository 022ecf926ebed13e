package libvirt

import (
	"context"
	"os/exec"
	"strings"
)

// Commands makes commands that run where libvirtd does, and end with their context. Standard output and error are the caller's
// to take; standard input is not. A host that ssh reaches runs them in its user's shell: one that is not there ends with 127.
func (c *Conn) Commands() func(ctx context.Context, name string, args ...string) *exec.Cmd {
	if !c.uri.SSH {
		return exec.CommandContext
	}
	return func(ctx context.Context, name string, args ...string) *exec.Cmd {
		return c.uri.command(ctx, append([]string{name}, args...))
	}
}

// leashed runs a command until it ends, or until standard input does: whatever becomes of ssh, of this program and of the
// connection, the command does not go on alone. A shell gives background commands an empty input (POSIX, 2.9.3.1), so that the
// leash is another descriptor.
const leashed = `exec 3<&0; "$@" </dev/null 3<&- & p=$!; { cat <&3; kill $p; } >/dev/null 2>&1 & exec 3<&-; wait $p`

// command runs a command on the host. The user's shell there may be any that knows single quotes.
func (u URI) command(ctx context.Context, argv []string) *exec.Cmd {
	words := []string{"sh", "-c", shellQuote(leashed), "sh"}
	for _, a := range argv {
		words = append(words, shellQuote(a))
	}
	cmd := exec.CommandContext(ctx, "ssh", append(sshOptions(u), "--", u.Host, strings.Join(words, " "))...)
	if _, err := cmd.StdinPipe(); err != nil { // held until Wait; nothing is written
		cmd.Err = err
	}
	return cmd
}

// shellQuote makes one word of any text.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
