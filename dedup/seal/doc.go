// Package seal owns task encryption: the key of a task, its file, and the boxes in which a task's chunks and the bodies of
// its nodes lie. It is pure: an agent seals with it, and whoever was given the key opens; the store between them does not
// need it. FORMAT.md has the bytes.
//
// # Sealing
//
// A chunk is compressed alone and sealed; the box is the chunk that the store knows: its digest, its length and its
// frames are the box's. Sealing is deterministic: the same bytes under the same key give the same box, so that a task
// deduplicates against itself. Under another key they give another box.
//
//	INVARIANT: the key and nonce of a box follow, by keyed BLAKE3, from all that it authenticates and encrypts, the
//	compressed form included. So one nonce is never used for two messages, whatever an encoder of another version makes
//	of the same bytes.
//
// # What it protects
//
// Who has the store and all its keys, but not the task's, reads neither names nor contents and cannot make any; he can
// withhold chunks, and offer an older saveset in a newer one's place. He sees sizes and structure (dedup/recipe,
// "Sealed nodes"), the size of every chunk when compressed, and which chunks come again.
package seal

import "errors"

// Errors of this package are one of these, wrapped with what was wrong, or those of package recipe.
var (
	// ErrMalformed: what should be a box, or a key file, is none.
	ErrMalformed = errors.New("malformed")
	// ErrKey: the box was made with another key, or was changed.
	ErrKey = errors.New("does not open with this task key")
)
