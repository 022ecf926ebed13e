package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"coffer/appliance/catalog"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
)

// chainRuns are the runs that made the last FULL and the last saveset that the next DIFF or INCR may refer to; COPY takes no
// part. Empty where there is none.
type chainRuns struct{ full, last string }

// chainOf finds them; the savesets are newest first.
func chainOf(savesets []catalog.Saveset) chainRuns {
	var c chainRuns
	for _, s := range savesets {
		if level := Level(s.Level); level != Full && level != Diff && level != Incr {
			continue
		}
		if c.last == "" {
			c.last = s.Run
		}
		if Level(s.Level) == Full {
			c.full = s.Run
			break
		}
	}
	return c
}

// machine is what the agent is told of a task of type libvirt; nil for other types.
func (b *backup) machine() *sms.LibvirtSource {
	m := b.task.Options.Libvirt
	if m == nil {
		return nil
	}
	out := &sms.LibvirtSource{URI: m.URI, UUID: m.UUID, Domain: m.Domain, ExcludeDisks: m.ExcludeDisks, Quiesce: m.Quiesce,
		ScratchDir: sms.Path(m.ScratchDir), Owner: ownerOf(b.store.Domain().ID, b.task), FullRun: b.chain.full, LastRun: b.chain.last}
	if p := b.decision.Parent; p != nil {
		out.Reference = p.Run
	}
	return out
}

// ownerOf marks what a task makes on a hypervisor: the store's own dedup domain tells appliances apart.
func ownerOf(store digest.DomainID, t catalog.Task) string {
	h := sha256.New()
	for _, part := range []string{store.String(), t.Client, t.Name} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// machineKey is what of a machine counts for the source key: which one it is, and which of its disks are taken; not how it is
// reached.
func machineKey(m *catalog.TaskMachine) *catalog.TaskMachine {
	if m == nil {
		return nil
	}
	out := &catalog.TaskMachine{UUID: m.UUID, ExcludeDisks: slices.Sorted(slices.Values(m.ExcludeDisks))}
	if m.UUID == "" {
		out.Domain = m.Domain
	}
	return out
}

// becomeFull makes the run a FULL where the agent found that it had to read everything. Only a machine's can become one, and
// only from a DIFF or INCR.
func (b *backup) becomeFull(reason string) error {
	if reason == "" || b.decision.Parent == nil {
		return nil
	}
	if reason != sms.FullCBTInvalid || b.task.Type != catalog.TaskLibvirt {
		return sms.Errorf(sms.CodeProtocol, "a task of type %s cannot become a FULL for the reason %q", b.task.Type, reason)
	}
	b.decision = Decision{Level: Full, Reason: ReasonCBTInvalid}
	b.change(func(i *Info) {
		i.Level, i.LevelReason, i.Parent = string(Full), string(ReasonCBTInvalid), ""
	})
	return nil
}
