package overlay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// crashModel knows what a crash may leave of a disk.
type crashModel struct {
	versions [][]byte // contents since the last flush, in order; the first is what was flushed
	inPlace  []bool   // blocks that were in data at the last flush: they may be torn
}

func (m *crashModel) now() []byte { return m.versions[len(m.versions)-1] }

func (m *crashModel) begin(step op) {
	next := bytes.Clone(m.now())
	step.apply(next)
	m.versions = append(m.versions, next)
}

// flushed forgets what a crash cannot leave any more.
func (m *crashModel) flushed(o *Overlay) {
	m.versions = [][]byte{m.now()}
	for i := range m.inPlace {
		m.inPlace[i] = o.states.get(int64(i)) == inData
	}
}

// check holds the contents after a crash against what may be.
func (m *crashModel) check(got []byte) error {
	for i := range m.inPlace {
		from, to := i*blockSize, min((i+1)*blockSize, len(got))
		if slices.ContainsFunc(m.versions, func(v []byte) bool { return bytes.Equal(v[from:to], got[from:to]) }) {
			continue
		}
		if !m.inPlace[i] {
			return fmt.Errorf("block %d is none of the %d that it may be", i, len(m.versions))
		}
		for at := from; at < to; at++ {
			if !slices.ContainsFunc(m.versions, func(v []byte) bool { return v[at] == got[at] }) {
				return fmt.Errorf("byte %d of block %d was never written there", at-from, i)
			}
		}
	}
	return nil
}

// TestCrashAtEachPoint loses power before every operation that changes the disk below, in each way that the file system
// knows, and holds what is found then against what was flushed and what was not.
func TestCrashAtEachPoint(t *testing.T) {
	rnd := random(t)
	const size = 12*blockSize + 100
	base := testDisk(size)
	mem := vfs.NewMem()
	var model *crashModel
	crashes, unclean := 0, 0
	fsys := errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, name string) error {
		if model == nil || !op.Changes() && op != errorfs.OpSync {
			return nil
		}
		for _, fate := range fates(rnd) {
			c := mem.Crash(fate)
			got, o := afterCrash(t, c, base, rnd)
			if o.Unclean() {
				unclean++
			}
			if err := model.check(got); err != nil {
				t.Fatalf("crash before %v of %s, fate %v/%v: %v", op, name, fate.Data, fate.Entries, err)
			}
			crashes++
		}
		return nil
	}))
	o, err := Create(t.Context(), fsys, "/o", base, Options{BootID: bootA})
	must(t, err)
	model = &crashModel{versions: [][]byte{base}, inPlace: make([]bool, blocksOf(size))}
	for range 150 {
		o.slack = 600
		step := randomOp(rnd, size)
		model.begin(step)
		must(t, step.do(t.Context(), o))
		if step.kind == "flush" {
			model.flushed(o)
		}
	}
	must(t, o.Close())
	model.flushed(o)
	got, o := afterCrash(t, mem.Crash(vfs.CrashOptions{}), base, rnd)
	if !bytes.Equal(got, model.now()) || o.Unclean() {
		t.Fatal("a closed overlay lost something")
	}
	if crashes < 1000 || unclean < crashes/2 {
		t.Fatalf("%d crashes, %d unclean", crashes, unclean)
	}
}

// fates are the ways to lose power.
func fates(rnd *rand.Rand) []vfs.CrashOptions {
	torn := vfs.CrashOptions{Data: vfs.Torn, Entries: vfs.Torn, Rand: rnd}
	return []vfs.CrashOptions{{}, {Data: vfs.Kept, Entries: vfs.Kept}, {Data: vfs.Torn, Entries: vfs.Kept}, torn, torn, torn}
}

// afterCrash opens an overlay after a loss of power and returns its contents. What it found stays so: the overlay is used,
// loses power again, and is opened by another boot.
func afterCrash(t *testing.T, c *vfs.Mem, base ramDisk, rnd *rand.Rand) ([]byte, *Overlay) {
	t.Helper()
	o, err := Open(t.Context(), c, "/o", base, Options{BootID: bootB})
	if err != nil {
		t.Fatalf("open after a crash: %v", err)
	}
	got := contentOf(t, o)
	if rnd.IntN(4) != 0 {
		return got, o
	}
	after := bytes.Clone(got)
	step := op{kind: "write", off: rnd.Int64N(o.Size() - 10), n: 10, fill: 5}
	must(t, step.do(t.Context(), o))
	step.apply(after)
	must(t, o.Flush(t.Context()))
	again, err := Open(t.Context(), c.Crash(vfs.CrashOptions{}), "/o", base, Options{BootID: BootID{3}})
	if err != nil {
		t.Fatalf("open after a second crash: %v", err)
	}
	wantContent(t, again, after)
	return got, o
}

// TestDeathAtEachPoint kills the process before every operation: all that was acknowledged is there, and of the change in
// progress each block is old or new, or in part new where it was written in place.
func TestDeathAtEachPoint(t *testing.T) {
	rnd := random(t)
	const size = 12*blockSize + 100
	base := testDisk(size)
	mem := vfs.NewMem()
	var before, during []byte
	fsys := errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, name string) error {
		if during == nil {
			return nil
		}
		c := mem.Crash(vfs.CrashOptions{Data: vfs.Kept, Entries: vfs.Kept})
		o, err := Open(t.Context(), c, "/o", base, Options{BootID: bootA})
		must(t, err)
		got := contentOf(t, o)
		for i := range got {
			if got[i] != before[i] && got[i] != during[i] {
				t.Fatalf("death before %v of %s: byte %d of block %d", op, name, i%blockSize, i/blockSize)
			}
		}
		if o.Unclean() {
			t.Fatal("unclean in the same boot")
		}
		return nil
	}))
	o, err := Create(t.Context(), fsys, "/o", base, Options{BootID: bootA})
	must(t, err)
	before = bytes.Clone(base)
	for range 300 {
		o.slack = 600
		step := randomOp(rnd, size)
		during = bytes.Clone(before)
		step.apply(during)
		must(t, step.do(t.Context(), o))
		before = during
	}
	during = nil
	must(t, o.Close())
}
