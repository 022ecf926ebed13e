//go:build !linux

package dedup

import "time"

// threadTime is the time of day where the system does not tell what a thread used.
func threadTime() time.Duration { return time.Duration(time.Now().UnixNano()) }
