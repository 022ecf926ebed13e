package jobs

import (
	"errors"
	"fmt"

	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
)

// ending is how a run ended.
type ending struct {
	state        catalog.RunState
	reason, hint string
	outcome      *sms.Outcome // the agent's last word, where there is one
}

// failure is the ending of a run whose error is err.
func failure(err error) ending {
	return ending{state: catalog.RunError, reason: err.Error(), hint: hintOf(err)}
}

// endingOf turns what the agent's end of the run brought into an ending.
func (r *run) endingOf(res ingest.Result) ending {
	if res.Committed != nil {
		return ending{state: successOr(res.Committed.Warning)}
	}
	if reason, ok := r.cancelReason(); ok {
		return ending{state: catalog.RunCancelled, reason: reason, outcome: res.Outcome}
	}
	if res.Outcome != nil && res.Outcome.Code != "" {
		return agentFailure(*res.Outcome)
	}
	if res.Err != nil {
		e := failure(res.Err)
		if sms.CodeOf(res.Err) == sms.CodeCancelled {
			e.state = catalog.RunCancelled
		}
		e.outcome = res.Outcome
		return e
	}
	if res.Outcome == nil {
		return ending{state: catalog.RunError, reason: "the agent ended the run without a result"}
	}
	return ending{state: catalog.RunSuccess, outcome: res.Outcome}
}

func successOr(warning bool) catalog.RunState {
	if warning {
		return catalog.RunWarning
	}
	return catalog.RunSuccess
}

// agentFailure is the ending of a run that the agent gave up.
func agentFailure(o sms.Outcome) ending {
	e := ending{state: catalog.RunError, reason: o.Message, outcome: &o}
	if e.reason == "" {
		e.reason = "the agent gave up: " + o.Code
	}
	switch o.Code {
	case "cancelled", string(sms.CodeShutdown):
		e.state = catalog.RunCancelled
	case "source_missing":
		e.hint = "check the task's sources, and that their file systems are mounted on the client"
	case "command_failed":
		e.hint = "run the command by hand on the client, as the user that the agent runs as"
	case "hypervisor_unreachable":
		e.hint = "check that libvirtd runs on the host; over ssh: that the agent's user has a key, and the host's key in known_hosts"
	case "machine_missing":
		e.hint = "see 'coffer vm list': 'coffer vm tasks sync' removes tasks of machines that are gone"
	case "machine_busy":
		e.hint = "wait for the other backup job of the machine, or end it with 'virsh domjobabort'"
	case "quiesce_failed":
		e.hint = "check that qemu-guest-agent runs in the guest, or let the task take quiesce auto"
	}
	return e
}

// hintOf says what to do about an error.
func hintOf(err error) string {
	if jerr, ok := errors.AsType[*Error](err); ok && jerr.Hint != "" {
		return jerr.Hint
	}
	if catalog.KindOf(err) == catalog.KindNoSpace {
		return "make space on the disk of the catalog, then start the backup again: nothing that was stored before is lost"
	}
	switch dedup.KindOf(err) {
	case dedup.NoSpace:
		return "make space on the disk of the store or enlarge it, then start the backup again: what arrived is reused"
	case dedup.Damaged:
		return "check the store's disk; a FULL stores what is damaged anew"
	}
	switch sms.CodeOf(err) {
	case sms.CodeNoSpace:
		return "make space on the disk of the store or enlarge it, then start the backup again: what arrived is reused"
	case sms.CodeTimeout:
		return "check that the agent runs (systemctl status coffer-agent on the client) and that the network is up, then start again: what arrived is reused"
	case sms.CodeUnknownOrder:
		return "update the agent on the client"
	case ingest.CodeOffline, sms.CodeShutdown:
		return startAgentHint
	}
	return ""
}

const startAgentHint = "start the agent on the client (systemctl start coffer-agent, or coffer-agent run) and check that it reaches this appliance"

// differs words the result of a verifying restore.
func differs(n uint64) string {
	if n == 1 {
		return "1 entry differs from the saveset"
	}
	return fmt.Sprintf("%d entries differ from the saveset", n)
}
