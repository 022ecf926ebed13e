package config

import (
	"strings"
	"testing"
)

// A cache that memory cannot hold is refused, with what to do.
func TestFrameMemoryWithinMemory(t *testing.T) {
	c := Default()
	c.Store.FrameMemory = c.Memory/2 + 1
	err := c.Validate()
	if err == nil || !strings.Contains(err.Error(), "store.frame_memory") || !strings.Contains(err.Error(), "raise that key") {
		t.Errorf("%v", err)
	}
	c.Memory = 2 * c.Store.FrameMemory
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
