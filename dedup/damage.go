package dedup

import (
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// WholeContainer is the Frame of a Damage that concerns a container as a whole: its directory cannot be read.
const WholeContainer = -1

// Damage is one row of the damage list: a frame or container whose bytes are not what they should be, a reference that
// leads nowhere, or a small object that does not open.
type Damage struct {
	// Container is zero when the place is not known or the damage is not in a container.
	Container container.ID
	Kind      container.Kind
	// Frame is WholeContainer when the damage is not in one frame.
	Frame int32
	// Digests are the chunks or nodes that have no healthy copy. None while it is not known what a container held: the
	// next check of objects tells.
	Digests []digest.Digest
	// Object is the name of a small object that is damaged: "manifests/…".
	Object string
	// Saveset is whose manifest or state Object is.
	Saveset SavesetID
	Reason  string
	Found   time.Time
}

// Affected is a saveset that damage harms.
type Affected struct {
	Saveset SavesetID
	// Paths of entries that cannot be read whole, in order of the walk; More counts those beyond the limit. The path of a
	// directory means that all below it is out of reach; an empty one is the root.
	Paths []string
	More  int64
	// Side: the side stream is harmed. All files can be read, but the next backup cannot build on this one.
	Side bool
	// Object is set when the saveset's manifest or newest state is damaged.
	Object string
}

// Damage returns the damage list: a copy.
func (s *Store) Damage() []Damage { return s.damage.list() }
