package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"coffer/appliance/sms"
	"coffer/images/libvirt"
)

// DefaultRunDir is where the sockets of machines lie: QEMU's user must be able to get there.
const DefaultRunDir = "/run/coffer-agent"

// watchEvery is how often a machine on exports is looked at: one that is paused because a disk failed is told to go on.
const watchEvery = 2 * time.Second

// Machines are those that run from exports on hosts of this agent, or are being made from them. After a restart the appliance
// tells it of them again (sms.MachineAttach), and it finds on the host how far its work on them was; see changeover for the one
// exception. Methods may be called from many goroutines.
type Machines struct {
	Dial     dialer // to the appliance's NBD server
	RunDir   string // of sockets
	StateDir string // of changeovers
	Logger   *slog.Logger

	mu   sync.Mutex
	m    map[string]*machine // guarded by mu
	work sync.WaitGroup
}

// machine is one of them.
type machine struct {
	id, uri string
	log     *slog.Logger

	mu     sync.Mutex // held over work on the machine
	relays *relays    // nil: none is open
	uuid   string
	nvram  string             // file that was made for it
	stop   context.CancelFunc // ends the watching; nil: nobody watches

	jobMu  sync.Mutex
	job    *sms.MachineJob // guarded by jobMu
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the job's goroutine has ended; nil: none
}

// Order does what is ordered.
func (ms *Machines) Order(ctx context.Context, o sms.MachineOrder) (*sms.MachineReply, error) {
	if len(o.ID) != 12 || strings.Trim(o.ID, "0123456789abcdef") != "" {
		return nil, sms.Errorf(sms.CodeRefused, "the machine's id %q is none", o.ID)
	}
	uri, err := libvirt.ParseURI(o.URI)
	if err != nil {
		return nil, sms.Errorf(sms.CodeRefused, "%w", err)
	}
	c, err := libvirt.Connect(ctx, uri)
	if err != nil {
		return nil, sms.Errorf(sms.CodeRefused, "%w", err)
	}
	defer func() { _ = c.Close() }() // what was asked of it is done
	m := ms.machine(o)
	m.mu.Lock()
	defer m.mu.Unlock()
	reply := &sms.MachineReply{}
	switch o.Verb {
	case sms.MachineBoot:
		reply.Warnings, err = ms.boot(ctx, c, m, o)
	case sms.MachineAttach:
		err = ms.attach(ctx, c, m, o)
	case sms.MachineMove:
		err = ms.move(ctx, c, m, o)
	case sms.MachineRestore:
		err = ms.restore(ctx, c, m, o)
	case sms.MachineDrop:
		err = ms.drop(ctx, c, m, o)
	case sms.MachineRelease:
		err = ms.release(ctx, c, m)
	case sms.MachineState:
		err = ms.takeUp(ctx, c, m, o)
	default:
		err = fmt.Errorf("this agent does not know how to %q a machine", o.Verb)
	}
	if err != nil {
		ms.forgetIdle(m)
		return nil, sms.Errorf(sms.CodeRefused, "%w", err)
	}
	return reply, m.describe(ctx, c, o, reply)
}

func (ms *Machines) machine(o sms.MachineOrder) *machine {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.m == nil {
		ms.m = map[string]*machine{}
	}
	m := ms.m[o.ID]
	if m == nil {
		m = &machine{id: o.ID, uri: o.URI, log: ms.Logger.With("machine", o.ID)}
		ms.m[o.ID] = m
	}
	return m
}

// forgetIdle drops what nothing is known of.
func (ms *Machines) forgetIdle(m *machine) {
	if m.relays == nil && m.currentJob() == nil {
		ms.mu.Lock()
		defer ms.mu.Unlock()
		delete(ms.m, m.id)
	}
}

// describe fills a reply with what is there now.
func (m *machine) describe(ctx context.Context, c *libvirt.Conn, o sms.MachineOrder, r *sms.MachineReply) error {
	r.Job = m.currentJob()
	uuid := m.uuid
	if uuid == "" {
		uuid = o.UUID
	}
	if uuid == "" {
		return nil
	}
	d, err := c.Domain(ctx, uuid, "")
	switch {
	case libvirt.KindOf(err) == libvirt.KindNoDomain:
		return nil
	case err != nil:
		return sms.Errorf(sms.CodeRefused, "%w", err)
	}
	r.UUID, r.Name, r.State = d.UUID, d.Name, string(d.State)
	return nil
}

func (m *machine) currentJob() *sms.MachineJob {
	m.jobMu.Lock()
	defer m.jobMu.Unlock()
	if m.job == nil {
		return nil
	}
	j := *m.job
	return &j
}

// openRelays gives the machine its sockets, where it has none.
func (ms *Machines) openRelays(ctx context.Context, c *libvirt.Conn, m *machine, disks []sms.MachineDisk) error {
	if m.relays != nil {
		return nil
	}
	if len(disks) == 0 {
		return errors.New("the order names no disks")
	}
	owner, err := qemuUser(ctx, c)
	if err != nil {
		return err
	}
	if u := c.URI(); u.SSH {
		m.relays, err = openFar(ctx, u, ms.carryDir(m.id), ms.socketDir(m.id), disks, ms.Dial, m.log, owner)
	} else {
		m.relays, err = openRelays(ctx, ms.socketDir(m.id), disks, ms.Dial, m.log, owner)
	}
	return err
}

// qemuUser is who QEMU's files belong to; nil: whoever makes them.
func qemuUser(ctx context.Context, c *libvirt.Conn) (*libvirt.User, error) {
	user, ok, err := c.QEMUUser(ctx)
	if err != nil || !ok {
		return nil, err
	}
	return &user, nil
}

// boot starts a machine on exports.
func (ms *Machines) boot(ctx context.Context, c *libvirt.Conn, m *machine, o sms.MachineOrder) (lost []string, err error) {
	if o.Definition == nil {
		return nil, errors.New("the order has no definition")
	}
	if m.uuid != "" {
		return nil, fmt.Errorf("machine %s is there already", m.id)
	}
	if err := ms.openRelays(ctx, c, m, o.Disks); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.undo(context.WithoutCancel(ctx), c))
		}
	}()
	def := definition(o.Definition)
	def.NBD = m.relays.disks()
	xml, uuid, lost, err := m.place(ctx, c, o.Definition, def)
	if err != nil {
		return nil, err
	}
	d, err := c.Start(ctx, xml, o.Definition.Paused)
	if err != nil {
		return nil, err
	}
	m.uuid = d.UUID
	ms.watch(m)
	if err := c.TPMs().Settle(ctx, uuid, m.id); err != nil { // libvirt removes it with the machine
		m.log.Warn("a mark is left beside the state of the machine's TPM", "error", err)
	}
	return lost, nil
}

func definition(d *sms.MachineDefinition) libvirt.Machine {
	return libvirt.Machine{XML: d.XML, Name: d.Name, NewIdentity: d.NewIdentity, Network: d.Network, NoNetwork: d.NoNetwork}
}

// undo takes back what was made for a machine that does not run.
func (m *machine) undo(ctx context.Context, c *libvirt.Conn) error {
	err := m.unplace(ctx, c)
	if m.relays != nil {
		err = errors.Join(err, m.relays.close())
		m.relays = nil
	}
	return err
}

// attach reaches the exports of a machine that runs, and has it go on, with its move, too.
func (ms *Machines) attach(ctx context.Context, c *libvirt.Conn, m *machine, o sms.MachineOrder) error {
	d, err := ms.locate(ctx, c, m, o.UUID)
	if err != nil {
		return err
	}
	if over, err := ms.takeUpMove(ctx, c, m, o, d); over || err != nil {
		return err // describe says how it is
	}
	if err := ms.openRelays(ctx, c, m, o.Disks); err != nil {
		return err
	}
	m.uuid, m.nvram = d.UUID, nvramPath(m.id)
	ms.watch(m)
	if o.Expect == sms.MachineMove && m.currentJob() == nil {
		return ms.move(ctx, c, m, o)
	}
	return nil
}

// watch has a machine go on that is paused because a disk failed, until the machine is dropped or released.
func (ms *Machines) watch(m *machine) {
	if m.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	uuid := m.uuid
	ms.work.Go(func() {
		for ctx.Err() == nil {
			if err := watchOver(ctx, m.uri, uuid, m.log); err != nil && ctx.Err() == nil {
				m.log.Warn("look at the machine", "error", err)
			}
			select {
			case <-time.After(watchEvery):
			case <-ctx.Done():
			}
		}
	})
}

// watchOver looks at a machine over one connection until that fails.
func watchOver(ctx context.Context, uri, uuid string, log *slog.Logger) error {
	u, err := libvirt.ParseURI(uri)
	if err != nil {
		return err
	}
	c, err := libvirt.Connect(ctx, u)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for {
		d, err := c.Domain(ctx, uuid, "")
		if libvirt.KindOf(err) == libvirt.KindNoDomain {
			err = nil
		} else if err == nil {
			err = goOn(ctx, c, d, log)
		}
		if err != nil {
			return err
		}
		select {
		case <-time.After(watchEvery):
		case <-ctx.Done():
			return nil
		}
	}
}

// goOn resumes a machine that a failed disk has paused. Where the disk fails again, it pauses again, and loses nothing.
func goOn(ctx context.Context, c *libvirt.Conn, d *libvirt.Domain, log *slog.Logger) error {
	paused, err := c.PausedByError(ctx, d)
	if err != nil || !paused {
		return err
	}
	log.Warn("the machine waits for a disk that failed; telling it to go on", "name", d.Name)
	return c.Resume(ctx, d)
}

// unwatch ends the watching.
func (m *machine) unwatch() {
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
}

// drop ends a machine, with all that was made for it.
func (ms *Machines) drop(ctx context.Context, c *libvirt.Conn, m *machine, o sms.MachineOrder) error {
	m.endJob(errDropped)
	m.unwatch()
	d, err := ms.locate(ctx, c, m, o.UUID)
	switch {
	case err != nil:
		return err
	case d == nil:
	case d.Persistent:
		return fmt.Errorf("machine %s has been made to stay (by a move or restore, or by virsh define): end it by virsh", d.Name)
	default:
		if err := c.Destroy(ctx, d); err != nil {
			return err
		}
	}
	m.uuid, m.nvram = "", nvramPath(m.id)
	if err := errors.Join(putBack(ctx, c, m.id), sweepImages(ctx, c, o.Pool, m.id)); err != nil {
		return err
	}
	if err := errors.Join(ms.dropChangeover(m.id), m.undo(ctx, c), ms.removeSockets(ctx, c, m.id)); err != nil {
		return err
	}
	ms.forget(m)
	return nil
}

var errDropped = errors.New("the machine is dropped")

// release gives exports back.
func (ms *Machines) release(ctx context.Context, c *libvirt.Conn, m *machine) error {
	m.endJob(errors.New("the machine's exports are given back"))
	m.unwatch()
	if m.relays != nil {
		if err := m.relays.close(); err != nil {
			return err
		}
		m.relays = nil
	}
	ms.forget(m)
	return ms.removeSockets(ctx, c, m.id)
}

func (ms *Machines) forget(m *machine) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	delete(ms.m, m.id)
}

// Close ends what this agent does for machines: those that run wait for their disks until an agent attaches them again.
func (ms *Machines) Close() error {
	ms.mu.Lock()
	all := make([]*machine, 0, len(ms.m))
	for _, m := range ms.m {
		all = append(all, m)
	}
	ms.mu.Unlock()
	var err error
	for _, m := range all {
		m.mu.Lock()
		m.endJob(errors.New("the agent was stopped"))
		m.unwatch()
		if m.relays != nil {
			err = errors.Join(err, m.relays.close())
			m.relays = nil
		}
		m.mu.Unlock()
	}
	ms.work.Wait()
	return err
}
