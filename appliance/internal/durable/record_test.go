package durable

import (
	"errors"
	"testing"
)

// A record of another version, with fields that nobody knows, or that is none, is refused; what is newer is told apart.
func TestDecodeRecord(t *testing.T) {
	for text, want := range map[string]struct{ ok, newer bool }{
		`{"version":2,"name":"a"}`:            {true, false},
		`{"version":3,"name":"a","more":[1]}`: {false, true},
		`{"version":1,"name":"a"}`:            {false, false},
		`{"name":"a"}`:                        {false, false},
		`{"version":2,"nmae":"a"}`:            {false, false},
		`{"version":2,"name":`:                {false, false},
		``:                                    {false, false},
	} {
		var r struct {
			Version int    `json:"version"`
			Name    string `json:"name"`
		}
		err := DecodeRecord([]byte(text), 2, &r)
		if err == nil != want.ok || errors.Is(err, ErrNewer) != want.newer || err == nil && r.Name != "a" {
			t.Errorf("%s: %+v, %v", text, r, err)
		}
	}
}
