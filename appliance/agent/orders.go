package agent

import (
	"context"
	"errors"
	"time"

	"coffer/appliance/agent/backup"
	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/report"
	"coffer/appliance/agent/restore"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/agent/vm"
	"coffer/appliance/sms"
	"coffer/dedup/seal"
)

const (
	// openTimeout bounds the opening of a run that the appliance has just ordered.
	openTimeout = time.Minute
	// finishTimeout bounds telling the appliance how a run ended.
	finishTimeout = 10 * time.Second

	codeCancelled = "cancelled"
)

var _ uplink.Orders = (*Agent)(nil)

// Order implements uplink.Orders.
func (a *Agent) Order(ctx context.Context, o sms.Order) (sms.Reply, error) {
	switch o.Kind {
	case sms.OrderBackup, sms.OrderSealedBackup:
		return sms.Reply{}, a.accept(o.Backup.RunID, o.Backup.Token, func(ctx context.Context, run uplink.Run) (sms.Outcome, error) {
			return a.backUp(ctx, *o.Backup, run)
		})
	case sms.OrderRestore:
		return sms.Reply{}, a.accept(o.Restore.RunID, o.Restore.Token, func(ctx context.Context, run uplink.Run) (sms.Outcome, error) {
			return a.restore(ctx, *o.Restore, run)
		})
	case sms.OrderCancel:
		a.cancel(*o.Cancel)
		return sms.Reply{}, nil
	case sms.OrderStat:
		return sms.Reply{Stat: stat(ctx, *o.Stat)}, nil
	case sms.OrderBrowse:
		reply, err := browse(*o.Browse)
		return sms.Reply{Browse: reply}, err
	case sms.OrderVMList:
		reply, err := vm.List(ctx, *o.VMList)
		return sms.Reply{VMList: reply}, err
	case sms.OrderMachine:
		reply, err := a.guests.Order(ctx, *o.Machine)
		return sms.Reply{Machine: reply}, err
	}
	return sms.Reply{}, sms.Errorf(sms.CodeUnknownOrder, "this agent does not know orders of kind %q", o.Kind)
}

// work is what a run does. A nil error with a committed saveset needs no outcome any more.
type work func(ctx context.Context, run uplink.Run) (sms.Outcome, error)

// accept starts a run in a goroutine of its own.
func (a *Agent) accept(id string, token sms.Token, do work) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.stopped:
		return sms.Errorf(sms.CodeShutdown, "the agent stops")
	case a.runs[id] != nil:
		return sms.Errorf(sms.CodeRefused, "run %s is in work already", id)
	case len(a.runs) >= maxRuns:
		return sms.Errorf(sms.CodeBusy, "the agent works on %d runs already", len(a.runs))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	a.runs[id] = cancel
	a.working.Go(func() {
		defer a.forget(id)
		if err := a.work(ctx, cancel, token, do); err != nil {
			a.cfg.Logger.Error("run failed", "run", id, "error", err)
			return
		}
		a.cfg.Logger.Info("run done", "run", id)
	})
	return nil
}

func (a *Agent) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runs[id](nil)
	delete(a.runs, id)
}

// errCancelled is why a run ends that the appliance does not want any more.
var errCancelled = errors.New("cancelled by the appliance")

func (a *Agent) cancel(o sms.CancelOrder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cancel := a.runs[o.RunID]; cancel != nil {
		cancel(&report.Error{Code: codeCancelled, Err: errCancelled})
	}
}

// work opens a run, does what is ordered and tells how it ended.
func (a *Agent) work(ctx context.Context, cancel context.CancelCauseFunc, token sms.Token, do work) error {
	// A run that is cancelled while it opens is opened all the same: only then can the appliance be told.
	opening, stop := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
	run, err := a.link.Open(opening, token)
	stop()
	if err != nil {
		return err
	}
	defer run.Close()
	watched := make(chan struct{})
	defer func() { <-watched }()
	defer cancel(nil)
	go func() {
		defer close(watched)
		select {
		case <-run.Done():
			if err := run.Err(); err != nil {
				cancel(err)
			}
		case <-ctx.Done():
		}
	}()
	outcome, err := do(ctx, run)
	return a.finish(ctx, run, outcome, err)
}

// finish tells the appliance how the run ended, if it does not know.
func (a *Agent) finish(ctx context.Context, run uplink.Run, o sms.Outcome, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	select {
	case <-run.Done():
		return err
	default:
	}
	switch {
	case err == nil:
	case errors.Is(err, errStopped), sms.CodeOf(err) == sms.CodeCancelled:
		o.Code, o.Message = codeCancelled, err.Error()
	default:
		o.Code, o.Message = report.CodeOf(err), err.Error()
	}
	telling, stop := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer stop()
	return errors.Join(err, run.Finish(telling, o))
}

func (a *Agent) backUp(ctx context.Context, o sms.BackupOrder, run uplink.Run) (sms.Outcome, error) {
	a.cfg.Logger.Info("backup", "run", o.RunID, "task", o.Task, "level", o.Level, "encrypted", o.Seal != nil)
	key, err := a.taskKey(o.Task, o.Seal)
	if err != nil {
		return sms.Outcome{}, err
	}
	if o.TaskType == sms.TaskLibvirt {
		return vm.Backup(ctx, vm.BackupOptions{Order: o, Run: run, Connect: vm.Connect, Locks: &a.machines, Key: key, Logger: a.cfg.Logger, Now: a.cfg.Now})
	}
	for i := range o.Sources {
		o.Sources[i] = sms.Path(fsmeta.SavesetPath(string(o.Sources[i])))
	}
	return backup.Run(ctx, backup.Options{Order: o, Run: run, Key: key, Logger: a.cfg.Logger, Now: a.cfg.Now})
}

func (a *Agent) restore(ctx context.Context, o sms.RestoreOrder, run uplink.Run) (sms.Outcome, error) {
	a.cfg.Logger.Info("restore", "run", o.RunID, "saveset", o.SavesetID, "target", string(o.Target), "verify", o.Verify)
	if o.Seal != nil {
		key, err := a.taskKey(o.Seal.Task, o.Seal)
		if err != nil {
			return sms.Outcome{}, err
		}
		run = uplink.Unseal(run, seal.NewOpener(*key))
	}
	o.Target = sms.Path(fsmeta.SavesetPath(string(o.Target)))
	return restore.Run(ctx, restore.Options{Order: o, Run: run, Logger: a.cfg.Logger})
}
