package servertest

import (
	"context"
	"strings"
	"time"

	"coffer/api"
)

// TaskKeyID is the key of the savesets of the one client that has an encrypted task; its file begins with it.
const (
	TaskKeyID    = "5d41402abc4b2a76b9719d911017c592"
	sealedClient = "db1"
)

// UnsealSaveset takes a key that begins with TaskKeyID.
func (b *Backend) UnsealSaveset(_ context.Context, id string, u api.Unseal) (api.Unsealed, error) {
	if err := b.SealSaveset(context.Background(), id); err != nil {
		return api.Unsealed{}, err
	}
	if !strings.HasPrefix(u.Key, TaskKeyID) {
		return api.Unsealed{}, api.Errorf(api.CodeWrongTaskKey, "saveset %s is sealed by %s", id, TaskKeyID)
	}
	return api.Unsealed{KeyID: TaskKeyID, Until: time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)}, b.Fail
}

// SealSaveset knows which savesets are sealed.
func (b *Backend) SealSaveset(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.savesets {
		if s.ID != id {
			continue
		}
		if s.Client != sealedClient {
			return api.Errorf(api.CodeConflict, "saveset %s is not of an encrypted task", id)
		}
		return b.Fail
	}
	return notFound("saveset", id)
}
