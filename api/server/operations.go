package server

import (
	"net/http"
	"slices"
	"strings"

	"coffer/api"
)

// operation is one route: what it is called, who may use it, and how it is recorded. The table of [operations] is the one
// place where permissions are written down.
type operation struct {
	id      string // operationId of the OpenAPI document
	method  string
	path    string     // below api.Prefix; {name} marks a parameter
	root    bool       // path is a whole one
	roles   []api.Role // who may; nil: no login needed
	audit   string     // action in the audit log; "" for calls that change and reveal nothing worth it
	early   bool       // allowed while the password must be changed
	streams bool       // long-lived: no overall timeout
	status  int        // of a success; 0 lets huma choose 200 or 204
	tag     string
	summary string
}

// Sets of roles for the table. Roles backup and restore reach only the clients that they were given: handlers of the
// objects check that with [reach].
var (
	nobody    = []api.Role(nil)
	everyone  = api.Roles()
	superuser = []api.Role{api.RoleSuperuser}
	admins    = []api.Role{api.RoleSuperuser, api.RoleAdmin}
	operators = []api.Role{api.RoleSuperuser, api.RoleAdmin, api.RoleOperator}
	backers   = []api.Role{api.RoleSuperuser, api.RoleAdmin, api.RoleOperator, api.RoleBackup}
	restorers = []api.Role{api.RoleSuperuser, api.RoleAdmin, api.RoleOperator, api.RoleRestore}
)

// operations is the table of all routes.
func operations() []operation {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	return []operation{
		{id: "openapi", method: get, path: "/openapi.json", roles: nobody, tag: "system", summary: "This document"},
		{id: "system", method: get, path: "/system", roles: everyone, early: true, tag: "system", summary: "What runs, and since when"},
		{id: "metrics", method: get, path: "/metrics", root: true, roles: operators, tag: "system", summary: "Metrics for Prometheus, which sends the API token of a user as bearer token"},

		{id: "login", method: post, path: "/login", roles: nobody, audit: "login", tag: "accounts", summary: "Log in with a password"},
		{id: "logout", method: post, path: "/logout", roles: everyone, early: true, audit: "logout", tag: "accounts", summary: "End the session"},
		{id: "whoami", method: get, path: "/whoami", roles: everyone, early: true, tag: "accounts", summary: "Whose token it is"},
		{id: "password-change", method: put, path: "/password", roles: everyone, early: true, audit: "password.change", tag: "accounts", summary: "Change one's own password"},
		{id: "user-list", method: get, path: "/users", roles: operators, tag: "accounts", summary: "List users"},
		{id: "user-add", method: post, path: "/users", roles: superuser, audit: "user.add", status: 201, tag: "accounts", summary: "Add a user"},
		{id: "user-role", method: put, path: "/users/{name}/role", roles: superuser, audit: "user.role", tag: "accounts", summary: "Change what a user may do"},
		{id: "user-remove", method: del, path: "/users/{name}", roles: superuser, audit: "user.remove", tag: "accounts", summary: "Remove a user"},
		{id: "token-list", method: get, path: "/tokens", roles: everyone, tag: "accounts", summary: "List API tokens: one's own, the superuser's view all"},
		{id: "token-add", method: post, path: "/tokens", roles: everyone, audit: "token.add", status: 201, tag: "accounts", summary: "Make an API token for oneself"},
		{id: "token-remove", method: del, path: "/tokens/{id}", roles: everyone, audit: "token.remove", tag: "accounts", summary: "Remove an API token: one's own, the superuser any"},

		{id: "client-list", method: get, path: "/clients", roles: everyone, tag: "clients", summary: "List clients"},
		{id: "client-add", method: post, path: "/clients", roles: admins, audit: "client.add", status: 201, tag: "clients", summary: "Add a client and make its enrolment token"},
		{id: "client-show", method: get, path: "/clients/{name}", roles: everyone, tag: "clients", summary: "Show a client"},
		{id: "client-token", method: post, path: "/clients/{name}/token", roles: admins, audit: "client.token", status: 201, tag: "clients", summary: "Make a new enrolment token"},
		{id: "client-revoke", method: post, path: "/clients/{name}/revoke", roles: admins, audit: "client.revoke", tag: "clients", summary: "Refuse the client's certificates from now on"},

		{id: "vm-list", method: get, path: "/clients/{name}/vms", roles: operators, tag: "machines", summary: "List the virtual machines of a libvirtd that the client's agent reaches"},
		{id: "vm-sync", method: post, path: "/clients/{name}/vms/tasks", roles: admins, audit: "vm.sync", status: 200, tag: "machines", summary: "Make tasks for all virtual machines of a host, and keep them in step"},

		{id: "task-list", method: get, path: "/tasks", roles: everyone, tag: "tasks", summary: "List tasks"},
		{id: "task-add", method: post, path: "/tasks", roles: admins, audit: "task.add", status: 201, tag: "tasks", summary: "Make a task"},
		{id: "task-show", method: get, path: "/tasks/{name}", roles: everyone, tag: "tasks", summary: "Show a task"},
		{id: "task-remove", method: del, path: "/tasks/{name}", roles: admins, audit: "task.remove", tag: "tasks", summary: "Remove a task; its savesets stay"},
		{id: "pool-list", method: get, path: "/pools", roles: everyone, tag: "tasks", summary: "List media pools"},
		{id: "pool-show", method: get, path: "/pools/{name}", roles: everyone, tag: "tasks", summary: "Show a media pool"},

		{id: "backup", method: post, path: "/backups", roles: backers, audit: "backup", status: 202, tag: "runs", summary: "Start a backup"},
		{id: "restore", method: post, path: "/restores", roles: restorers, audit: "restore", status: 202, tag: "runs", summary: "Start a restore"},
		{id: "run-list", method: get, path: "/runs", roles: everyone, tag: "runs", summary: "List runs, newest first"},
		{id: "run-show", method: get, path: "/runs/{id}", roles: everyone, tag: "runs", summary: "Show a run"},
		{id: "run-cancel", method: post, path: "/runs/{id}/cancel", roles: everyone, audit: "run.cancel", status: 202, tag: "runs", summary: "Ask a run to stop"},
		{id: "run-log", method: get, path: "/runs/{id}/notices", roles: everyone, tag: "runs", summary: "A run's log"},
		{id: "run-watch", method: get, path: "/runs/{id}/events", roles: everyone, streams: true, tag: "runs", summary: "Follow a run until it ends"},
		{id: "events", method: get, path: "/events", roles: everyone, streams: true, tag: "runs", summary: "Follow all runs and clients"},

		{id: "saveset-list", method: get, path: "/savesets", roles: everyone, tag: "savesets", summary: "List savesets, newest first"},
		{id: "saveset-show", method: get, path: "/savesets/{id}", roles: everyone, tag: "savesets", summary: "Show a saveset"},
		{id: "saveset-ls", method: get, path: "/savesets/{id}/entries", roles: restorers, tag: "savesets", summary: "List a directory of a saveset"},
		{id: "saveset-get", method: get, path: "/savesets/{id}/content", roles: restorers, audit: "saveset.get", streams: true, tag: "savesets", summary: "Download a file, or a tree as tar"},
		{id: "saveset-unseal", method: post, path: "/savesets/{id}/unseal", roles: restorers, audit: "saveset.unseal", status: 200, tag: "savesets", summary: "Give the key of an encrypted task, so that its savesets can be read here for a time"},
		{id: "saveset-seal", method: post, path: "/savesets/{id}/seal", roles: restorers, audit: "saveset.seal", tag: "savesets", summary: "Forget the key of an encrypted task"},

		{id: "saveset-delete", method: del, path: "/savesets/{id}", roles: admins, audit: "saveset.delete", tag: "savesets", summary: "Delete a saveset; its space comes back with the next garbage collection"},
		{id: "saveset-lock", method: post, path: "/savesets/{id}/lock", roles: admins, audit: "saveset.lock", tag: "savesets", summary: "Keep a saveset, and those it needs, whatever their end of life"},
		{id: "saveset-unlock", method: post, path: "/savesets/{id}/unlock", roles: admins, audit: "saveset.unlock", tag: "savesets", summary: "Take a lock away"},
		{id: "saveset-immutable", method: put, path: "/savesets/{id}/immutable", roles: admins, audit: "saveset.immutable", tag: "savesets", summary: "Keep everybody from deleting a saveset until a time"},

		{id: "export-list", method: get, path: "/exports", roles: restorers, tag: "exports", summary: "List exports: disks of savesets that are served over NBD"},
		{id: "export-add", method: post, path: "/exports", roles: restorers, audit: "export.add", status: 201, tag: "exports", summary: "Serve a disk of a saveset over NBD, read only or with an overlay that takes writes"},
		{id: "export-show", method: get, path: "/exports/{id}", roles: restorers, tag: "exports", summary: "Show an export"},
		{id: "export-drop", method: del, path: "/exports/{id}", roles: restorers, audit: "export.drop", tag: "exports", summary: "End an export, and remove what was written to it"},
		{id: "export-commit", method: post, path: "/exports/{id}/commit", roles: restorers, audit: "export.commit", status: 202, tag: "exports", summary: "Make a saveset of what was written to an export; the export stays"},

		{id: "guest-list", method: get, path: "/machines", roles: restorers, tag: "machines", summary: "List virtual machines that run from savesets, or are being restored from them"},
		{id: "guest-boot", method: post, path: "/machines/boot", roles: restorers, audit: "vm.boot", status: 202, tag: "machines", summary: "Have a host start a virtual machine on the disks of a saveset"},
		{id: "guest-restore", method: post, path: "/machines/restore", roles: restorers, audit: "vm.restore", status: 202, tag: "machines", summary: "Have a host make a virtual machine of a saveset in a storage pool"},
		{id: "guest-show", method: get, path: "/machines/{id}", roles: restorers, tag: "machines", summary: "Show such a machine"},
		{id: "guest-move", method: post, path: "/machines/{id}/move", roles: restorers, audit: "vm.move", status: 202, tag: "machines", summary: "Copy the disks of a machine that runs from a saveset to a storage pool of its host, while it runs"},
		{id: "guest-reset", method: post, path: "/machines/{id}/reset", roles: restorers, audit: "vm.reset", status: 202, tag: "machines", summary: "End a machine that runs from a saveset, and boot it again on what it wrote"},
		{id: "guest-drop", method: del, path: "/machines/{id}", roles: restorers, audit: "vm.drop", tag: "machines", summary: "End a machine that runs from a saveset, and remove what it wrote; or undo a restore"},

		{id: "store", method: get, path: "/store", roles: operators, tag: "store", summary: "State of the store"},
		{id: "store-damage-dismiss", method: post, path: "/store/damage/dismiss", roles: superuser, audit: "store.dismiss", tag: "store", summary: "Give up a damaged record of a saveset that nothing heals"},
		{id: "store-damage", method: get, path: "/store/damage", roles: operators, tag: "store", summary: "The damage list: what is damaged, which savesets and files it harms"},
		{id: "store-maintenance-start", method: post, path: "/store/maintenance", roles: operators, audit: "store.maintenance", status: 202, tag: "store", summary: "Start maintenance of the store"},
		{id: "store-maintenance-list", method: get, path: "/store/maintenance", roles: operators, tag: "store", summary: "List maintenance jobs, newest first"},
		{id: "store-maintenance-show", method: get, path: "/store/maintenance/{id}", roles: operators, tag: "store", summary: "Show a maintenance job"},
		{id: "store-maintenance-watch", method: get, path: "/store/maintenance/{id}/events", roles: operators, streams: true, tag: "store", summary: "Follow a maintenance job until it ends"},
		{id: "store-maintenance-cancel", method: post, path: "/store/maintenance/{id}/cancel", roles: operators, audit: "store.maintenance.cancel", status: 202, tag: "store", summary: "Ask a maintenance job to stop"},
		{id: "store-unlock", method: post, path: "/store/unlock", roles: operators, audit: "store.unlock", tag: "store", summary: "Open the store"},
		{id: "store-lock", method: post, path: "/store/lock", roles: superuser, audit: "store.lock", tag: "store", summary: "Close the store"},
		{id: "store-keys", method: get, path: "/store/keys", roles: superuser, tag: "store", summary: "What opens the store, and what is under which store key"},
		{id: "store-key-rotate", method: post, path: "/store/keys", roles: superuser, audit: "store.key.rotate", tag: "store", summary: "Make a new store key, which all that is new is under"},
		{id: "store-key-destroy", method: del, path: "/store/keys/{number}", roles: superuser, audit: "store.key.destroy", status: 200, tag: "store", summary: "Destroy an old store key that nothing is under"},
		{id: "store-openers", method: put, path: "/store/openers", roles: superuser, audit: "store.openers", tag: "store", summary: "Change what opens the store"},
		{id: "store-recovery", method: post, path: "/store/recovery-key", roles: superuser, audit: "store.recovery_key", status: 201, tag: "store", summary: "Make a recovery key, which opens the store"},
		{id: "store-encrypt", method: post, path: "/store/encryption", roles: superuser, audit: "store.encrypt", tag: "store", summary: "Switch encryption on"},
		{id: "mount-status", method: get, path: "/mount", roles: operators, tag: "machine", summary: "State of the mount of all savesets"},
		{id: "mount-set", method: put, path: "/mount", roles: operators, audit: "mount", tag: "machine", summary: "Turn the mount of all savesets on or off"},
		{id: "audit-list", method: get, path: "/audit", roles: operators, tag: "machine", summary: "The audit log, newest first"},
	}
}

// route is the whole path.
func (o operation) route() string {
	if o.root {
		return o.path
	}
	return api.Prefix + o.path
}

// allows reports whether the role may use the operation.
func (o operation) allows(r api.Role) bool { return slices.Contains(o.roles, r) }

// describe is the operation's description in the OpenAPI document.
func (o operation) describe() string {
	if o.roles == nil {
		return o.summary + ". Needs no login."
	}
	names := make([]string, len(o.roles))
	for i, r := range o.roles {
		names[i] = string(r)
	}
	return o.summary + ". Roles: " + strings.Join(names, ", ") + "."
}
