//go:build !windows

package command

import (
	"os/exec"
	"syscall"
)

func shell(line string) []string { return []string{"/bin/sh", "-c", line} }

// ownGroup puts the command into a process group of its own, so that a cancel reaches what it started.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
}
