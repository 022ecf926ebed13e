package appliance

import (
	"context"
	"errors"

	"coffer/api"
	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/jobs"
	"coffer/appliance/maintenance"
	"coffer/appliance/sms"
	"coffer/dedup"
)

// apiError turns an error of the domain into what the API's caller is told. It is the one place where that is decided;
// an error that it does not know stays as it is, is answered as internal and logged.
func apiError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	if errors.Is(err, errNeedsKey) {
		return told(api.CodeKeyNeeded, err.Error(), "coffer saveset unseal ID --key-file FILE")
	}
	if j, ok := errors.AsType[*jobs.Error](err); ok {
		return jobError(j)
	}
	if m, ok := errors.AsType[*maintenance.Error](err); ok {
		return maintenanceError(m)
	}
	if c, ok := errors.AsType[*catalog.Error](err); ok {
		return catalogError(c, err)
	}
	if d, ok := errors.AsType[*dedup.Error](err); ok {
		return storeError(d, err)
	}
	if s, ok := errors.AsType[*sms.Error](err); ok {
		return agentError(s, err)
	}
	return err
}

func jobError(e *jobs.Error) error {
	code := api.CodeInternal
	switch e.Kind {
	case jobs.KindNotFound:
		code = api.CodeNotFound
	case jobs.KindInvalid:
		code = api.CodeBadRequest
	case jobs.KindOffline, jobs.KindPending:
		code = api.CodeClientOffline
	case jobs.KindRevoked:
		code = api.CodeClientRevoked
	case jobs.KindEnded:
		code = api.CodeConflict
	case jobs.KindNoStore:
		code = api.CodeStoreLocked
	case jobs.KindStopping:
		code = api.CodeShuttingDown
	case jobs.KindUnwritable:
		code = api.CodeStoreUnwritable
	}
	message := e.Message
	if e.Err != nil {
		message += ": " + e.Err.Error()
	}
	return told(code, message, e.Hint)
}

func maintenanceError(e *maintenance.Error) error {
	code := api.CodeInternal
	switch e.Kind {
	case maintenance.KindNotFound:
		code = api.CodeNotFound
	case maintenance.KindInvalid:
		code = api.CodeBadRequest
	case maintenance.KindWaiting, maintenance.KindEnded:
		code = api.CodeConflict
	case maintenance.KindUnsupported:
		code = api.CodeNotSupported
	case maintenance.KindStopping:
		code = api.CodeShuttingDown
	}
	return told(code, e.Message, e.Hint)
}

func told(code api.Code, message, hint string) error {
	out := api.Errorf(code, "%s", message)
	out.Hint = hint
	return out
}

func catalogError(e *catalog.Error, err error) error {
	switch e.Kind {
	case catalog.KindNotFound:
		return told(api.CodeNotFound, "not found: "+e.Op, "")
	case catalog.KindExists:
		return told(api.CodeExists, "exists already: "+e.Op, "choose another name")
	case catalog.KindInUse:
		return told(api.CodeInUse, "still in use: "+e.Op, "")
	case catalog.KindNoSpace:
		return told(api.CodeStoreUnwritable, err.Error(), "make space on the disk of the appliance's data directory")
	case catalog.KindDamaged:
		return told(api.CodeDamaged, err.Error(), "stop the appliance and put a copy of the catalog in its place")
	}
	return err
}

func storeError(e *dedup.Error, err error) error {
	switch e.Kind {
	case dedup.NotFound:
		return told(api.CodeNotFound, err.Error(), "")
	case dedup.Damaged, dedup.WrongDigest:
		return told(api.CodeDamaged, "stored bytes are damaged: "+err.Error(), "other savesets are not touched by it; a new FULL stores the file anew")
	case dedup.NoSpace:
		return told(api.CodeStoreUnwritable, err.Error(), "make space on the disk of the store")
	case dedup.Closed:
		return told(api.CodeShuttingDown, "the store is closing", "try again when the appliance is up")
	}
	return err
}

func agentError(e *sms.Error, err error) error {
	switch e.Code {
	case ingest.CodeOffline:
		return told(api.CodeClientOffline, err.Error(), "start the agent on the client")
	case sms.CodeTimeout:
		return told(api.CodeTimeout, err.Error(), "")
	case sms.CodeUnknownOrder:
		return told(api.CodeNotSupported, err.Error(), "update the agent on the client")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return told(api.CodeTimeout, err.Error(), "")
	}
	return err
}
