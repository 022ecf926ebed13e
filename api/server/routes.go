package server

import (
	"context"

	"github.com/danielgtaylor/huma/v2"
)

// routes joins every operation of the table with its handler.
func (s *Server) routes() {
	handle(s, "openapi", s.openapi)
	handle(s, "system", s.system)
	handle(s, "metrics", s.metrics)

	handle(s, "login", s.login)
	handle(s, "logout", s.logout)
	handle(s, "whoami", s.whoami)
	handle(s, "password-change", s.changePassword)
	handle(s, "user-list", s.listUsers)
	handle(s, "user-add", s.addUser)
	handle(s, "user-role", s.setUserRole)
	handle(s, "user-remove", s.removeUser)
	handle(s, "token-list", s.listTokens)
	handle(s, "token-add", s.addToken)
	handle(s, "token-remove", s.removeToken)

	handle(s, "client-list", s.listClients)
	handle(s, "client-add", s.addClient)
	handle(s, "client-show", s.showClient)
	handle(s, "client-token", s.enrolClient)
	handle(s, "client-revoke", s.revokeClient)

	handle(s, "vm-list", s.listVMs)
	handle(s, "vm-sync", s.syncVMs)

	handle(s, "task-list", s.listTasks)
	handle(s, "task-add", s.addTask)
	handle(s, "task-show", s.showTask)
	handle(s, "task-remove", s.removeTask)
	handle(s, "pool-list", s.listPools)
	handle(s, "pool-show", s.showPool)

	handle(s, "backup", s.startBackup)
	handle(s, "restore", s.startRestore)
	handle(s, "run-list", s.listRuns)
	handle(s, "run-show", s.showRun)
	handle(s, "run-cancel", s.cancelRun)
	handle(s, "run-log", s.runLog)
	handle(s, "run-watch", s.watchRun)
	handle(s, "events", s.watchAll)

	handle(s, "saveset-list", s.listSavesets)
	handle(s, "saveset-show", s.showSaveset)
	handle(s, "saveset-ls", s.listEntries)
	handle(s, "saveset-get", s.getContent)
	handle(s, "saveset-unseal", s.unsealSaveset)
	handle(s, "saveset-seal", s.sealSaveset)
	handle(s, "saveset-delete", s.deleteSaveset)
	handle(s, "saveset-lock", s.lockSaveset)
	handle(s, "saveset-unlock", s.unlockSaveset)
	handle(s, "saveset-immutable", s.makeImmutable)

	handle(s, "guest-list", s.listGuests)
	handle(s, "guest-boot", s.bootGuest)
	handle(s, "guest-restore", s.restoreGuest)
	handle(s, "guest-show", s.showGuest)
	handle(s, "guest-move", s.moveGuest)
	handle(s, "guest-reset", s.resetGuest)
	handle(s, "guest-drop", s.dropGuest)

	handle(s, "export-list", s.listExports)
	handle(s, "export-add", s.addExport)
	handle(s, "export-show", s.showExport)
	handle(s, "export-drop", s.dropExport)
	handle(s, "export-commit", s.commitExport)

	handle(s, "store", s.store)
	handle(s, "store-damage", s.damage)
	handle(s, "store-damage-dismiss", s.dismiss)
	handle(s, "store-maintenance-start", s.startMaintenance)
	handle(s, "store-maintenance-list", s.listMaintenance)
	handle(s, "store-maintenance-show", s.showMaintenance)
	handle(s, "store-maintenance-watch", s.watchMaintenance)
	handle(s, "store-maintenance-cancel", s.cancelMaintenance)
	handle(s, "store-unlock", s.unlockStore)
	handle(s, "store-lock", s.lockStore)
	handle(s, "store-keys", s.storeKeys)
	handle(s, "store-key-rotate", s.rotateStoreKey)
	handle(s, "store-key-destroy", s.destroyStoreKey)
	handle(s, "store-openers", s.setOpeners)
	handle(s, "store-recovery", s.newRecoveryKey)
	handle(s, "store-encrypt", s.encryptStore)
	handle(s, "mount-status", s.mountStatus)
	handle(s, "mount-set", s.setMount)
	handle(s, "audit-list", s.listAudit)
}

// raw is an output whose handler writes the answer itself.
type raw struct {
	Body func(huma.Context)
}

func (s *Server) openapi(context.Context, *noInput) (*raw, error) {
	return &raw{func(c huma.Context) {
		c.SetHeader("Content-Type", "application/openapi+json")
		_, _ = c.BodyWriter().Write(s.document) // a caller that is gone needs no answer
	}}, nil
}
