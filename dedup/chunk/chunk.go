// Package chunk owns how a byte stream is cut into chunks: the cutting parameters of a dedup domain and the
// content-defined cutter (the Rabin fingerprints of restic/chunker). It does not hash, compress or store.
//
// Two parties deduplicate against each other only when they cut with the same Params; the parameters are
// therefore part of the domain and never change.
package chunk

import (
	"errors"
	"fmt"
	"io"

	"github.com/restic/chunker"
)

const (
	// DefaultMin, DefaultMax and DefaultAvgBits are the parameters of every new domain: chunks of 512 KiB to
	// 8 MiB, about 1.5 MiB on average.
	DefaultMin     = 512 << 10
	DefaultMax     = MaxChunk
	DefaultAvgBits = 20

	// MaxChunk is the longest chunk that any domain may have, in bytes. Part of the format.
	MaxChunk = 8 << 20

	// Image is the chunk size of new disk images, in bytes. Images record theirs: it may change.
	Image = 128 << 10

	// SmallFile is the size in bytes below which a file is one chunk and is not cut.
	SmallFile = 512 << 10
)

const (
	polynomialDegree = 53         // the largest whose fingerprint, moved on by a byte, fits in 64 bits
	minMin           = 2 * window // least Params.Min: a chunk may only end where the window lies within it
)

// Params are the cutting parameters of a dedup domain.
type Params struct {
	Polynomial uint64 `json:"polynomial"` // irreducible, of degree 53
	Min        int    `json:"min"`        // shortest chunk but the last, bytes
	Max        int    `json:"max"`        // longest chunk, bytes
	AvgBits    int    `json:"avg_bits"`   // a cut is expected every 2^AvgBits bytes after Min
}

// NewParams returns the default parameters with a random polynomial. rand is crypto/rand.Reader but in tests.
func NewParams(rand io.Reader) (Params, error) {
	pol, err := chunker.DerivePolynomial(rand)
	if err != nil {
		return Params{}, fmt.Errorf("choose a chunking polynomial: %w", err)
	}
	return Params{Polynomial: uint64(pol), Min: DefaultMin, Max: DefaultMax, AvgBits: DefaultAvgBits}, nil
}

// Validate reports every fault of p at once. It takes about a millisecond, for it proves the polynomial
// irreducible.
func (p Params) Validate() error {
	var errs []error
	if pol := chunker.Pol(p.Polynomial); pol.Deg() != polynomialDegree {
		errs = append(errs, fmt.Errorf("polynomial has degree %d, want %d", pol.Deg(), polynomialDegree))
	} else if !pol.Irreducible() {
		errs = append(errs, errors.New("polynomial is not irreducible"))
	}
	if p.Min < minMin || p.Min > MaxChunk {
		errs = append(errs, fmt.Errorf("minimum %d is not between %d and %d bytes", p.Min, minMin, MaxChunk))
	}
	if p.Max < p.Min || p.Max > MaxChunk {
		errs = append(errs, fmt.Errorf("maximum %d is not between the minimum and %d bytes", p.Max, MaxChunk))
	}
	if p.AvgBits < 6 || p.AvgBits > 23 {
		errs = append(errs, fmt.Errorf("average of 2^%d bytes is not between 2^6 and 2^23", p.AvgBits))
	}
	if len(errs) > 0 {
		return fmt.Errorf("chunking parameters: %w", errors.Join(errs...))
	}
	return nil
}
