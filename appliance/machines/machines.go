package machines

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"coffer/appliance/exports"
	"coffer/appliance/sms"
	"coffer/dedup"
)

// keepOver is how many machines are remembered that have come to their end.
const keepOver = 64

// Agents order agents about.
type Agents interface {
	// Online tells whether a client's agent is connected.
	Online(client string) bool
	// Order sends an order and returns the answer. What the agent refuses has sms.CodeRefused or sms.CodeUnknownOrder.
	Order(ctx context.Context, client string, o sms.MachineOrder) (*sms.MachineReply, error)
}

// Exports make exports; *exports.Manager does.
type Exports interface {
	Create(ctx context.Context, s exports.Spec) (exports.Info, error)
	List() []exports.Info
	Drop(ctx context.Context, id string, force bool) error
	Settle(ctx context.Context, id string) error
}

// Options of a Manager. All but Logger, Now, Ended and Pace are needed.
type Options struct {
	Dir     string // made when missing
	Exports Exports
	Agents  Agents
	// View opens a saveset that a machine is made of.
	View func(ctx context.Context, id dedup.SavesetID) (exports.Reading, error)
	// Ended is told of each machine that has come to its end.
	Ended  func(Info)
	Logger *slog.Logger
	Now    func() time.Time
	Pace   Pace
}

// Pace says how often a machine is looked at; the zero value is right for use.
type Pace struct {
	Running time.Duration // one that runs; 0 = 15 s
	Job     time.Duration // one that is moved or restored; 0 = 1 s
	Retry   time.Duration // after the first failure, twice as long after each further one up to Running; 0 = 1 s
}

// Spec is a machine to boot or to restore.
type Spec struct {
	Saveset    dedup.SavesetID
	Host, URI  string // client whose agent works, and the libvirtd there; empty URI: its own
	Name       string // empty: the saved one
	Definition Definition
	Pool       string // of a restore: storage pool of the host
	Format     string // of a restore: qcow2, raw; empty: qcow2
	By         string
}

// Job is how far a move or restore is.
type Job struct {
	Disk        string // that is being copied; may be empty
	Done, Total int64  // bytes, of all disks
}

// Info is a machine as it is now.
type Info struct {
	ID, Name, UUID string
	State          State
	Over           bool // nothing of it is left here
	Saveset        dedup.SavesetID
	Client, Task   string // of the saveset
	Host, URI      string
	HostState      string // what the host says of it, as virsh domstate has it; may be empty
	Disks          []Disk
	Pool           string
	Job            *Job // of a move or restore
	Problem        string
	Warnings       []string
	Created        time.Time
	By             string
}

// Manager keeps the machines. It is safe for concurrent use.
type Manager struct {
	o    Options
	log  *slog.Logger
	ctx  context.Context // of the work on all machines
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex // guards all below; never held over I/O
	started bool
	live    map[string]*machine
	over    []Info // the oldest first
}

// New returns a Manager without machines: Load finds them.
func New(o Options) *Manager {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Ended == nil {
		o.Ended = func(Info) {}
	}
	o.Pace = Pace{Running: cmp.Or(o.Pace.Running, 15*time.Second), Job: cmp.Or(o.Pace.Job, time.Second), Retry: cmp.Or(o.Pace.Retry, time.Second)}
	m := &Manager{o: o, log: o.Logger, live: map[string]*machine{}}
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m
}

// Load finds the machines. One that cannot be read is told to the log, and its exports are left alone.
func (m *Manager) Load() error {
	if err := os.MkdirAll(m.o.Dir, 0o700); err != nil {
		return failf(Other, err, "find the machines")
	}
	entries, err := os.ReadDir(m.o.Dir)
	if err != nil {
		return failf(Other, err, "find the machines")
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || !validID(id) {
			continue
		}
		r, err := readRecord(filepath.Join(m.o.Dir, e.Name()))
		if err == nil && r.ID != id {
			err = errors.New("it is another one's")
		}
		if err != nil {
			m.log.Error("a machine's record cannot be read; its exports stay", "file", e.Name(), "error", err)
			continue
		}
		m.live[id] = newMachine(m, r)
	}
	return nil
}

// Start begins the work on the machines.
func (m *Manager) Start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = true
	for _, x := range m.live {
		m.work.Go(x.keep)
	}
}

// Close ends the work and leaves the machines as they are.
func (m *Manager) Close() {
	m.stop()
	m.work.Wait()
}

// Connected has the machines of a host looked after at once: its agent has just connected, and knows nothing of them.
func (m *Manager) Connected(client string) {
	for _, x := range m.all() {
		if x.host() == client {
			x.forgetAttached()
			x.wake()
		}
	}
}

// all returns the machines that are not over, in the order of their making.
func (m *Manager) all() []*machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*machine, 0, len(m.live))
	for _, x := range m.live {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *machine) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id)) })
	return out
}

// List tells of the machines that are not over, the oldest first.
func (m *Manager) List() []Info {
	all := m.all()
	out := make([]Info, len(all))
	for i, x := range all {
		out[i] = x.info()
	}
	return out
}

// Get finds a machine by its id, or by the name that it alone has. One that is over is found by its id for a while. Kinds
// NotFound, Conflict.
func (m *Manager) Get(key string) (Info, error) {
	x, err := m.find(key)
	if err == nil {
		return x.info(), nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.over {
		if i.ID == key {
			return i, nil
		}
	}
	return Info{}, err
}

func (m *Manager) find(key string) (*machine, error) {
	var found []*machine
	for _, x := range m.all() {
		if x.id == key {
			return x, nil
		}
		if x.info().Name == key {
			found = append(found, x)
		}
	}
	switch len(found) {
	case 0:
		return nil, failf(NotFound, nil, "there is no machine %q", key)
	case 1:
		return found[0], nil
	}
	return nil, failf(Conflict, nil, "%d machines have the name %s: give the id of one", len(found), key)
}

// Holder returns the machine that an export belongs to.
func (m *Manager) Holder(e exports.Info) (Info, bool) {
	if e.Machine == "" {
		return Info{}, false
	}
	m.mu.Lock()
	x := m.live[e.Machine]
	m.mu.Unlock()
	if x == nil {
		return Info{}, false
	}
	return x.info(), true
}

// Boot makes an export with an overlay of each disk, and has the host start a machine on them; Get tells when it runs. Kinds
// Invalid, Conflict, and those of package exports.
func (m *Manager) Boot(ctx context.Context, s Spec) (Info, error) { return m.begin(ctx, s, Booting) }

// Restore makes a read-only export of each disk, and has the host make a machine of them in a storage pool; Get tells how far
// it is. Kinds like Boot's.
func (m *Manager) Restore(ctx context.Context, s Spec) (Info, error) {
	if s.Pool == "" {
		return Info{}, failf(Invalid, nil, "a restore needs a storage pool of the host")
	}
	return m.begin(ctx, s, Restoring)
}

// begin makes what a new machine needs here.
func (m *Manager) begin(ctx context.Context, s Spec, state State) (Info, error) {
	if err := checkFormat(s.Format); err != nil {
		return Info{}, err
	}
	what, err := m.read(ctx, s.Saveset)
	if err != nil {
		return Info{}, err
	}
	name := cmp.Or(s.Name, what.name)
	if err := m.free(s, name, what.uuid); err != nil {
		return Info{}, err
	}
	x := newMachine(m, record{Version: recordVersion, ID: newID(), State: state, Saveset: s.Saveset, Client: what.client, Task: what.task, Host: s.Host,
		URI: s.URI, Name: name, Definition: s.Definition, Pool: s.Pool, Format: s.Format, Created: m.o.Now().UTC().Truncate(time.Second), By: s.By})
	if err := x.rec.write(m.o.Dir); err != nil {
		return Info{}, failf(Other, err, "keep machine %s", x.id)
	}
	if err := x.export(ctx, what, state == Booting); err != nil {
		undo := context.WithoutCancel(ctx)
		return Info{}, errors.Join(err, x.dropExports(undo), x.rec.remove(m.o.Dir))
	}
	if err := m.enter(x); err != nil {
		return Info{}, errors.Join(err, x.dropExports(context.WithoutCancel(ctx)), x.rec.remove(m.o.Dir))
	}
	m.log.Info("machine begins", "machine", x.id, "name", name, "what", state, "saveset", s.Saveset, "host", s.Host)
	return x.info(), nil
}

func (m *Manager) enter(x *machine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil || !m.started {
		return failf(Stopping, nil, "the appliance stops")
	}
	m.live[x.id] = x
	m.work.Go(x.keep)
	return nil
}

// free refuses what would be taken for another machine on the host. The host itself refuses what it knows.
func (m *Manager) free(s Spec, name, uuid string) error {
	for _, i := range m.List() {
		if i.Host != s.Host || i.URI != s.URI {
			continue
		}
		switch {
		case i.Name == name:
			return failf(Conflict, nil, "machine %s (%s) has the name %s on this host: give the new one another name", i.ID, i.State, name)
		case i.UUID != "" && i.UUID == uuid && !s.Definition.NewIdentity:
			return failf(Conflict, nil, "machine %s (%s) has the same identity on this host: give the new one another", i.ID, i.Name)
		}
	}
	return nil
}

func checkFormat(format string) error {
	if format != "" && format != "qcow2" && format != "raw" {
		return failf(Invalid, nil, "images of format %q are not made: qcow2 and raw are", format)
	}
	return nil
}

// Move has the host copy the disks of a machine that runs into a storage pool; Get tells how far it is. Then the machine is
// the host's. Kinds NotFound, Conflict, Invalid, Refused.
func (m *Manager) Move(ctx context.Context, key, pool, format string) (Info, error) {
	if pool == "" {
		return Info{}, failf(Invalid, nil, "a move needs a storage pool of the host")
	}
	if err := checkFormat(format); err != nil {
		return Info{}, err
	}
	return m.with(ctx, key, func(x *machine) error { return x.move(ctx, pool, format) })
}

// Reset ends a machine and boots it again on the overlays as they are, also where a loss of power cost them what was not
// flushed. Kinds NotFound, Conflict, Refused.
func (m *Manager) Reset(ctx context.Context, key string) (Info, error) {
	return m.with(ctx, key, func(x *machine) error { return x.reset(ctx) })
}

// Drop ends a machine, and removes what it wrote; a restore is undone. With force, the host need not be there, or agree: what
// was made for the machine there stays. Kinds NotFound, Refused.
func (m *Manager) Drop(ctx context.Context, key string, force bool) error {
	_, err := m.with(ctx, key, func(x *machine) error { return x.drop(ctx, force) })
	return err
}

// with works on a machine while nobody else does.
func (m *Manager) with(ctx context.Context, key string, do func(*machine) error) (Info, error) {
	x, err := m.find(key)
	if err != nil {
		return Info{}, err
	}
	if !x.lock(ctx) {
		return Info{}, failf(Conflict, ctx.Err(), "machine %s is being worked on", x.id)
	}
	defer x.unlock()
	if x.info().Over {
		return Info{}, failf(NotFound, nil, "there is no machine %q", key)
	}
	err = do(x)
	x.wake()
	return x.info(), err
}

// forget takes a machine off the list; its end is remembered for a while.
func (m *Manager) forget(x *machine) {
	i := x.info()
	i.Over = true
	m.log.Info("machine is over", "machine", i.ID, "name", i.Name, "state", i.State, "problem", i.Problem)
	m.o.Ended(i)
	x.mu.Lock()
	x.gone = true
	x.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, x.id)
	m.over = append(m.over, i)
	if len(m.over) > keepOver {
		m.over = m.over[len(m.over)-keepOver:]
	}
}
