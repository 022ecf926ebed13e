package blob

import (
	"bytes"
	"context"
	"fmt"
)

// PutBytes is Put of a slice.
func PutBytes(ctx context.Context, s Store, name string, p []byte) error {
	return s.Put(ctx, name, bytes.NewReader(p), int64(len(p)))
}

// ReadAll returns a whole blob of at most limit bytes; a longer one is an error.
func ReadAll(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	n, err := s.Size(ctx, name)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("read %s: %d bytes, at most %d are allowed", name, n, limit)
	}
	p := make([]byte, n)
	if n == 0 {
		return p, nil
	}
	return p, s.ReadRange(ctx, name, p, 0)
}
