package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"coffer/appliance/catalog"
)

// Level is how much a backup reads; the words are DOMAIN's and part of every format.
type Level string

// Levels.
const (
	Full Level = "FULL"
	Diff Level = "DIFF"
	Incr Level = "INCR"
	Copy Level = "COPY"
)

// ParseLevel reads a level; empty means INCR.
func ParseLevel(s string) (Level, error) {
	switch l := Level(s); l {
	case "":
		return Incr, nil
	case Full, Diff, Incr, Copy:
		return l, nil
	}
	return "", refuse(KindInvalid, "use FULL, DIFF, INCR or COPY", "%q is not a level", s)
}

// Reason says why the effective level is what it is; the words are DOMAIN's and part of every format.
type Reason string

// Reasons that this version knows.
const (
	ReasonRequested     Reason = "requested"
	ReasonNoValidFull   Reason = "no_valid_full"
	ReasonChainBroken   Reason = "chain_broken"   // a saveset that the chain needs is deleted or damaged
	ReasonSourceChanged Reason = "source_changed" // the task's source or the identity of its file systems
	ReasonCBTInvalid    Reason = "cbt_invalid"    // the agent found that what changed is not known
	ReasonTypeNoLevels  Reason = "type_has_no_levels"
)

// longChain is how many INCR since the last FULL are without comment.
const longChain = 100

// Decision is what a backup does.
type Decision struct {
	Level  Level
	Reason Reason
	// Parent is the reference of a DIFF or INCR, nil for FULL and COPY, which read everything again.
	Parent *catalog.Saveset
	// Incrs counts the INCR since the last FULL, this run included.
	Incrs int
}

// LongChain says that the run gets a warning for its chain's length.
func (d Decision) LongChain() bool { return d.Incrs > longChain }

// Decide finds the effective level and the reference. The savesets are those of the task in the pool that the run
// writes to, newest first, not deleted; key is SourceKey of the task as it is now. harmed are those that cannot be read
// whole: a chain with one of them is broken, and the FULL reads everything, which sends again what is missed.
func Decide(taskType string, requested Level, key string, savesets []catalog.Saveset, harmed map[string]bool) Decision {
	switch {
	case taskType == catalog.TaskStream && requested != Full && requested != Copy:
		return Decision{Level: Full, Reason: ReasonTypeNoLevels}
	case requested == Full || requested == Copy:
		return Decision{Level: requested, Reason: ReasonRequested}
	}
	ref := reference(requested, savesets)
	if ref == nil {
		return fullInstead(savesets)
	}
	chain, whole := Chain(*ref, savesets)
	switch {
	case !whole || slices.ContainsFunc(chain, func(s catalog.Saveset) bool { return harmed[s.ID] }):
		return Decision{Level: Full, Reason: ReasonChainBroken}
	case ref.SourceKey != key || movedHouse(chain):
		return Decision{Level: Full, Reason: ReasonSourceChanged}
	}
	return Decision{Level: requested, Reason: ReasonRequested, Parent: ref, Incrs: countIncrs(requested, savesets)}
}

// reference is the last FULL for a DIFF, the last of any level but COPY for an INCR.
func reference(requested Level, savesets []catalog.Saveset) *catalog.Saveset {
	for i := range savesets {
		level := Level(savesets[i].Level)
		if level == Full || requested == Incr && (level == Diff || level == Incr) {
			return &savesets[i]
		}
	}
	return nil
}

// fullInstead tells a task that never had a FULL from one that lost it.
func fullInstead(savesets []catalog.Saveset) Decision {
	for _, s := range savesets {
		if Level(s.Level) == Diff || Level(s.Level) == Incr {
			return Decision{Level: Full, Reason: ReasonChainBroken}
		}
	}
	return Decision{Level: Full, Reason: ReasonNoValidFull}
}

// Chain returns the savesets that s needs, s first and its FULL last, and whether all of them are there.
func Chain(s catalog.Saveset, savesets []catalog.Saveset) (chain []catalog.Saveset, whole bool) {
	byID := make(map[string]catalog.Saveset, len(savesets))
	for _, other := range savesets {
		byID[other.ID] = other
	}
	// A chain is not longer than the list, so that a loop of wrong parents ends.
	for range len(savesets) + 1 {
		chain = append(chain, s)
		if level := Level(s.Level); level == Full || level == Copy {
			return chain, true
		}
		next, ok := byID[s.Parent]
		if !ok {
			return chain, false
		}
		s = next
	}
	return chain, false
}

// movedHouse says that the identity of the file systems changed within the chain: what the later savesets took over
// from the earlier ones by inode numbers says little now.
func movedHouse(chain []catalog.Saveset) bool {
	for _, s := range chain[1:] {
		if s.SourceID != chain[0].SourceID {
			return true
		}
	}
	return false
}

func countIncrs(requested Level, savesets []catalog.Saveset) int {
	n := 0
	if requested == Incr {
		n = 1
	}
	for _, s := range savesets {
		switch Level(s.Level) {
		case Full:
			return n
		case Incr:
			n++
		}
	}
	return n
}

// SourceKey is a digest of what a task reads, and of the key that it seals with: where it differs from the reference's, a DIFF or INCR becomes a FULL. Pre
// and post commands do not count.
func SourceKey(t catalog.Task) (string, error) {
	o := t.Options
	key := catalog.TaskOptions{Sources: o.Sources, Excludes: o.Excludes, Images: o.Images, OneFileSystem: o.OneFileSystem,
		Command: o.Command, StreamName: o.StreamName, Libvirt: machineKey(o.Libvirt)}
	if o.Seal != nil {
		key.Seal = &catalog.TaskSeal{Domain: o.Seal.Domain, KeyID: o.Seal.KeyID}
	}
	raw, err := json.Marshal(key)
	if err != nil {
		return "", fmt.Errorf("source key of task %s: %w", t.Name, err)
	}
	sum := sha256.Sum256(append(raw, t.Type...))
	return hex.EncodeToString(sum[:16]), nil
}
