package main

import (
	"encoding/binary"
	"math/rand/v2"
)

// content makes bytes that are told by a seed: noise, or text that Zstandard's fastest level takes to about a third.
type content struct {
	rnd   *rand.ChaCha8
	text  []byte
	noise bool
}

const (
	textSize  = 8 << 20
	sentences = 192 // bytes of text that are taken at a time
)

// newContent makes the text of words of a vocabulary, frequent ones and rare ones.
func newContent(noise bool) *content {
	c := &content{rnd: rand.NewChaCha8([32]byte{1}), noise: noise}
	if noise {
		return c
	}
	r := rand.New(c.rnd)
	words := make([][]byte, 5000)
	for i := range words {
		w := make([]byte, 2+r.IntN(10))
		for j := range w {
			w[j] = byte('a' + r.IntN(26))
		}
		words[i] = append(w, ' ')
	}
	for len(c.text) < textSize {
		c.text = append(c.text, words[min(int(r.ExpFloat64()*500), len(words)-1)]...)
	}
	return c
}

// fill writes the bytes of a seed.
func (c *content) fill(p []byte, seed uint64) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	c.rnd.Seed(key)
	if c.noise {
		_, _ = c.rnd.Read(p) // never fails
		return
	}
	for len(p) > 0 {
		at := int(c.rnd.Uint64() % (textSize - sentences))
		p = p[copy(p, c.text[at:at+sentences]):]
	}
}
