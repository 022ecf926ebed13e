package config

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
)

// Size is a number of bytes; in the file a number, or a string like "256 MiB".
type Size int64

var units = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// String prints the size in its largest whole unit.
func (s Size) String() string {
	for _, u := range units {
		if s != 0 && int64(s)%u.size == 0 {
			return fmt.Sprintf("%d %s", int64(s)/u.size, u.name)
		}
	}
	return "0 B"
}

// UnmarshalTOML takes an integer of bytes or a string with a unit.
func (s *Size) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		if v < 0 {
			return fmt.Errorf("size %d is negative", v)
		}
		*s = Size(v)
		return nil
	case string:
		return s.Set(v)
	}
	return fmt.Errorf("size %v is neither a number of bytes nor a string such as \"256 MiB\"", v)
}

// Set parses the text form.
func (s *Size) Set(text string) error {
	number, unit := strings.TrimSpace(text), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("size %q is not a number with B, KiB, MiB, GiB or TiB", text)
	}
	*s = Size(n * unit)
	return nil
}

func sortErrors(errs []error) {
	sort.Slice(errs, func(i, j int) bool { return errs[i].Error() < errs[j].Error() })
}
