package uplink

import (
	"context"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// unsealed is a run whose parent's or restored tree is sealed.
type unsealed struct {
	Run
	opener *seal.Opener
	nodes  recipe.Source
}

// Unseal returns the run with its Node opening what the task's key seals. Chunks stay as they are: OpenerOf says how they
// are opened.
func Unseal(run Run, o *seal.Opener) Run { return unsealed{run, o, o.Source(run)} }

// Node implements Run.
func (u unsealed) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	return u.nodes.Node(ctx, d)
}

// OpenerOf returns what opens the chunks of a run; nil where nothing is sealed.
func OpenerOf(run Run) *seal.Opener {
	if u, ok := run.(unsealed); ok {
		return u.opener
	}
	return nil
}
