package jobs

import (
	"errors"
	"fmt"

	"coffer/appliance/catalog"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/seal"
)

// sealing is a task's encryption as the store wants it; zero values for a task that is not encrypted.
type sealing struct {
	domain dedup.Domain
	by     seal.ID
}

// sealingOf finds the domain that a task's runs write into.
func sealingOf(store Store, t catalog.Task) (sealing, error) {
	o := t.Options.Seal
	if o == nil {
		return sealing{domain: store.Domain()}, nil
	}
	id, err := digest.ParseDomainID(o.Domain)
	by, err2 := seal.ParseID(o.KeyID)
	if err = errors.Join(err, err2); err != nil {
		return sealing{}, fmt.Errorf("encryption of task %s: %w", t.Name, err)
	}
	d, err := store.DomainByID(id)
	if err != nil {
		return sealing{}, fmt.Errorf("dedup domain of the encrypted task %s: %w", t.Name, err)
	}
	return sealing{d, by}, nil
}

// orderSealed makes the order one of an encrypted task.
func orderSealed(o *sms.Order, t catalog.Task) {
	if s := t.Options.Seal; s != nil {
		o.Kind = sms.OrderSealedBackup
		o.Backup.Seal = &sms.Sealing{KeyID: s.KeyID, KeyFile: sms.Path(s.KeyFile)}
	}
}

// unsealing tells an agent which key a saveset needs; nil for one that is not sealed. The file that the task names counts
// while the task has that key.
func (m *Manager) unsealing(r *run, manifest dedup.Manifest) *sms.Sealing {
	if manifest.SealedBy.IsZero() {
		return nil
	}
	out := &sms.Sealing{KeyID: manifest.SealedBy.String(), Task: manifest.Task}
	if t, err := m.opts.Catalog.Task(r.ctx, manifest.Task); err == nil && t.Options.Seal != nil && t.Options.Seal.KeyID == out.KeyID {
		out.KeyFile = sms.Path(t.Options.Seal.KeyFile)
	}
	return out
}
