package ingest

import (
	"time"

	"coffer/appliance/sms"
)

// DefaultReturnGrace is for how long an agent that is back may leave its runs unclaimed. An agent that still has a run
// opens it again in its first message after the Welcome; one that was restarted never does.
const DefaultReturnGrace = 5 * time.Second

// expectBack ends the runs that the agent had before this connection and does not claim on it in time: a process that was
// killed and started again knows nothing of them, and its tasks must not wait for the resume window. The caller must call
// stop when the connection is over.
func (a *agentConn) expectBack() (stop func()) {
	var had []*Run
	a.srv.mu.Lock()
	for _, r := range a.srv.runs {
		if r.opts.Client == a.client {
			had = append(had, r)
		}
	}
	a.srv.mu.Unlock()
	if len(had) == 0 {
		return func() {}
	}
	timer := time.AfterFunc(a.srv.opts.ReturnGrace, func() {
		for _, r := range had {
			r.unclaimed(a)
		}
	})
	return func() { timer.Stop() }
}

// unclaimed ends the run where it still waits for its agent, which is there on a connection that lives.
func (r *Run) unclaimed(a *agentConn) {
	r.mu.Lock()
	waits := !r.isOver && r.attached == nil
	r.mu.Unlock()
	if !waits || a.conn.Err() != nil {
		return
	}
	a.log.Warn("run given up: the agent is back and does not know it", "run", r.opts.ID)
	r.stop(sms.Errorf(sms.CodeTimeout, "the agent was restarted in the middle of the run"))
}
