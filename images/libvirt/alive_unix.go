//go:build !windows

package libvirt

import (
	"errors"
	"syscall"
)

// alive tells whether a process exists.
func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
