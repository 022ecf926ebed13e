package backup

import (
	"context"
	"time"

	"coffer/appliance/agent/command"
	"coffer/appliance/agent/report"
	"coffer/appliance/sms"
)

// Before runs the task's pre command. One that fails fails the run, unless the task says that it is a warning.
func Before(ctx context.Context, o *sms.BackupOrder, rep *report.Reporter) error {
	if len(o.PreCommand) == 0 {
		return nil
	}
	rep.Phase(sms.PhasePreparing)
	defer rep.Phase(sms.PhaseWorking)
	cmd, err := command.New(ctx, o.PreCommand)
	if err == nil {
		err = cmd.Run()
	}
	if err == nil {
		return nil
	}
	if o.PreFailureWarns {
		rep.Warn("pre_command", "", err)
		return nil
	}
	return report.Errorf(CodeCommand, "pre command: %w", err)
}

// postLimit bounds a post command, which a cancel does not reach.
const postLimit = 10 * time.Minute

// After runs the task's post command, even when the backup failed or was cancelled: it undoes what the pre command did. The
// data was read by then, so one that fails is a warning.
func After(ctx context.Context, o *sms.BackupOrder, rep *report.Reporter) {
	if len(o.PostCommand) == 0 {
		return
	}
	rep.Phase(sms.PhaseFinishing)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postLimit)
	defer cancel()
	cmd, err := command.New(ctx, o.PostCommand)
	if err == nil {
		err = cmd.Run()
	}
	if err != nil {
		rep.Warn("post_command", "", err)
	}
}
