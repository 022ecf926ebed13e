package main

import (
	"math"
	"math/rand/v2"
)

// sizes are those of small files: exponential, below the size from which on files are cut.
type sizes struct{ r *rand.Rand }

func newSizes() *sizes { return &sizes{rand.New(rand.NewPCG(11, 12))} }

func (s *sizes) next() int { return min(1+int(s.r.ExpFloat64()*meanFile), 256<<10) }

// extent is the length of a change in an image in blocks, from 1 to most, the logarithm spread evenly.
func (s *sizes) extent(most int) int {
	return max(1, int(math.Exp(s.r.Float64()*math.Log(float64(most)))))
}
