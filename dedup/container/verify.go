package container

import (
	"context"
	"fmt"

	"github.com/zeebo/blake3"

	"coffer/dedup/blob"
)

// verifyRead is how much Verify reads at once.
const verifyRead = 1 << 20

// Verify reads a whole container and compares it with the BLAKE3 in its footer. It needs no key. ErrDamaged,
// ErrNewerFormat, blob.ErrNotExist.
func Verify(ctx context.Context, b blob.Store, id ID) error {
	if err := verify(ctx, b, id); err != nil {
		return fmt.Errorf("verify container %v: %w", id, err)
	}
	return nil
}

func verify(ctx context.Context, b blob.Store, id ID) error {
	ft, _, err := readFooter(ctx, b, id, 0)
	if err != nil {
		return err
	}
	h := blake3.New()
	end := ft.size - footerSize + footerHashed
	buf := make([]byte, min(end, verifyRead))
	for off := int64(0); off < end; {
		p := buf[:min(end-off, verifyRead)]
		if err := readRange(ctx, b, id, p, off); err != nil {
			return err
		}
		if off == 0 {
			hd, err := parseHeader(p)
			if err != nil {
				return err
			}
			if hd.id != id {
				return damaged("header: it is container %v", hd.id)
			}
		}
		_, _ = h.Write(p) // a hash never fails
		off += int64(len(p))
	}
	if string(h.Sum(nil)) != string(ft.hash[:]) {
		return damaged("hash of the whole does not match")
	}
	return nil
}
