package server

import (
	"context"
	"strconv"
	"strings"

	"coffer/api"
)

// StoreKeys open the store, and are its keys. Secrets come in bodies, and nothing of them is recorded or logged.
type StoreKeys interface {
	// UnlockStore opens a store that is not open. CodeWrongStoreKey for a wrong password or recovery key, and where one is
	// needed and none was given; CodeTooManyLogins after several wrong ones, CodeConflict when it is open, CodeDamaged,
	// CodeStoreLocked when something else is in the way, CodeTimeout when it goes on opening.
	UnlockStore(ctx context.Context, u api.StoreUnlock) (api.Store, error)
	// LockStore closes the store. CodeInUse while runs or maintenance are active; CodeConflict when it is not open.
	LockStore(ctx context.Context) (api.Store, error)
	// StoreKeys counts what is under which key. CodeStoreLocked, as for all below.
	StoreKeys(ctx context.Context) (api.StoreKeys, error)
	// SetStoreOpeners changes what opens the store. CodeWeakPassword, CodeBadRequest when nothing would open it.
	SetStoreOpeners(ctx context.Context, o api.StoreOpeners) (api.StoreKeys, error)
	// NewRecoveryKey makes a recovery key, in the place of the one there was.
	NewRecoveryKey(ctx context.Context) (api.RecoveryKey, error)
	// RotateStoreKey makes a new current key.
	RotateStoreKey(ctx context.Context) (api.StoreKeys, error)
	// EncryptStore switches encryption on. CodeConflict when it is on.
	EncryptStore(ctx context.Context, o api.StoreOpeners) (api.StoreKeys, error)
	// DestroyStoreKey destroys an old key. CodeInUse, with the counts, while anything is under it; CodeNotFound.
	DestroyStoreKey(ctx context.Context, number uint32) (api.StoreKeys, error)
}

type unlockInput struct {
	Body api.StoreUnlock
}

func (in *unlockInput) audit() (object, detail string) {
	switch {
	case in.Body.Create:
		return "default", "made with a password"
	case in.Body.Password != "":
		return "default", "with a password"
	case in.Body.RecoveryKey != "":
		return "default", "with a recovery key"
	}
	return "default", "tried again"
}

func (s *Server) unlockStore(ctx context.Context, in *unlockInput) (*body[api.Store], error) {
	b := in.Body
	if role := callerOf(ctx).User.Role; b.Create && role != api.RoleSuperuser {
		return nil, api.Errorf(api.CodeForbidden, "role %s may not make the store", role)
	}
	if b.Password != "" && b.RecoveryKey != "" || b.Create && b.Password == "" {
		return nil, api.Errorf(api.CodeBadRequest, "give either a password or a recovery key; a store is made with a password")
	}
	return bodyOf(s.backend.UnlockStore(ctx, b))
}

func (s *Server) lockStore(ctx context.Context, _ *noInput) (*body[api.Store], error) {
	return bodyOf(s.backend.LockStore(ctx))
}

func (s *Server) storeKeys(ctx context.Context, _ *noInput) (*body[api.StoreKeys], error) {
	return bodyOf(s.backend.StoreKeys(ctx))
}

type openersInput struct {
	Body api.StoreOpeners
}

func (in *openersInput) audit() (object, detail string) {
	var parts []string
	if in.Body.Password != "" {
		parts = append(parts, "new password")
	}
	if in.Body.KeyFile {
		parts = append(parts, "new key file")
	}
	for _, o := range in.Body.Remove {
		parts = append(parts, "no "+strings.ReplaceAll(string(o), "_", " "))
	}
	return "default", clip(strings.Join(parts, ", "))
}

func (s *Server) setOpeners(ctx context.Context, in *openersInput) (*body[api.StoreKeys], error) {
	if in.Body.Password == "" && !in.Body.KeyFile && len(in.Body.Remove) == 0 {
		return nil, api.Errorf(api.CodeBadRequest, "nothing to change: give a password, key_file or remove")
	}
	return bodyOf(s.backend.SetStoreOpeners(ctx, in.Body))
}

func (s *Server) encryptStore(ctx context.Context, in *openersInput) (*body[api.StoreKeys], error) {
	if in.Body.Password == "" && !in.Body.KeyFile || len(in.Body.Remove) > 0 {
		return nil, api.Errorf(api.CodeBadRequest, "give a password, key_file or both, and nothing to remove")
	}
	return bodyOf(s.backend.EncryptStore(ctx, in.Body))
}

func (s *Server) newRecoveryKey(ctx context.Context, _ *noInput) (*body[api.RecoveryKey], error) {
	return bodyOf(s.backend.NewRecoveryKey(ctx))
}

func (s *Server) rotateStoreKey(ctx context.Context, _ *noInput) (*body[api.StoreKeys], error) {
	return bodyOf(s.backend.RotateStoreKey(ctx))
}

type keyInput struct {
	Number uint32 `path:"number" minimum:"1" doc:"number of the store key"`
}

func (in *keyInput) audit() (object, detail string) {
	return "key " + strconv.FormatUint(uint64(in.Number), 10), ""
}

func (s *Server) destroyStoreKey(ctx context.Context, in *keyInput) (*body[api.StoreKeys], error) {
	return bodyOf(s.backend.DestroyStoreKey(ctx, in.Number))
}
