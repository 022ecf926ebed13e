package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrNewer: the record is of a version that only a newer program knows.
var ErrNewer = errors.New("written by a newer version of Coffer")

// DecodeRecord decodes a small JSON object whose field "version" must be the given one: strictly, for a field that is not known
// may matter. The caller bounds its length.
func DecodeRecord(b []byte, version int, into any) error {
	var head struct {
		Version int `json:"version"`
	}
	switch err := json.Unmarshal(b, &head); {
	case err != nil:
		return err
	case head.Version > version:
		return fmt.Errorf("version %d: %w", head.Version, ErrNewer)
	case head.Version != version:
		return fmt.Errorf("version %d", head.Version)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}
