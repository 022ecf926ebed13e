package blob

import (
	"fmt"
	"strings"
)

// MaxName is the longest name of a blob in bytes; maxPart that of one part between slashes.
const (
	MaxName = 512
	maxPart = 128
)

// CheckName returns ErrName for a name that no Store takes.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("%w: %d bytes", ErrName, len(name))
	}
	for part := range strings.SplitSeq(name, "/") {
		if !validPart(part) {
			return fmt.Errorf("%w: %q", ErrName, name)
		}
	}
	return nil
}

// validPart tells whether p may stand between the slashes of a name. Capital letters are left out so that a file system
// that folds case keeps names apart.
func validPart(p string) bool {
	if p == "" || len(p) > maxPart || p[0] == '.' {
		return false
	}
	for i := range len(p) {
		c := p[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
