//go:build !windows

package agenttest

import "syscall"

// CPUSeconds is how much processor time this process has used, for measurements on a machine that others use, too.
func CPUSeconds() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
