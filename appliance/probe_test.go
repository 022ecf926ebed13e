package appliance

import (
	"path/filepath"
	"testing"
)

func TestProbe(t *testing.T) {
	var p diskProbe
	good, gone := t.TempDir(), filepath.Join(t.TempDir(), "gone")
	p.look(good)
	if err := p.err(); err != nil {
		t.Errorf("a disk that works: %v", err)
	}
	p.look(good, gone)
	if p.err() == nil {
		t.Error("a directory that is not there is written to")
	}
	p.look(good)
	if err := p.err(); err != nil {
		t.Errorf("a disk that works again: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(good, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
