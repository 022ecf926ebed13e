package uplink

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

func d(n byte) digest.Digest { return digest.Digest{n, 1} }

func nodes(ns ...byte) (cs []recipe.Child) {
	for _, n := range ns {
		cs = append(cs, recipe.Child{Digest: d(n), Node: n < 100})
	}
	return cs
}

func TestTreeKnowsHowToAskAndWhatFollows(t *testing.T) {
	tr := newNodeTree(false, d(1), d(2))
	if _, _, ok := tr.ask(d(3)); ok {
		t.Error("a node that was never shown can be asked for")
	}
	if it, root, ok := tr.ask(d(2)); !ok || root != 1 || it != (sms.NodeItem{First: 1, Count: 1}) {
		t.Errorf("side root: %+v %d %v", it, root, ok)
	}
	tr.add(d(1), recipe.DirLeaf, nodes(3, 100, 4, 5))
	tr.add(d(3), recipe.DirLeaf, nodes(6, 7))
	tr.add(d(6), recipe.DirLeaf, nil)
	if it, root, ok := tr.ask(d(7)); !ok || root != 0 || it != (sms.NodeItem{Parent: d(3), First: 1, Count: 1}) {
		t.Errorf("child: %+v %d %v", it, root, ok)
	}
	if it, _, _ := tr.ask(d(6)); it != (sms.NodeItem{Parent: d(6), First: sms.Self, Count: 1}) {
		t.Errorf("known node: %+v", it)
	}
	want := []sms.NodeItem{{Parent: d(3), First: 1, Count: 1}, {Parent: d(1), First: 1, Count: 3}}
	if got := tr.following(d(6), true); !reflect.DeepEqual(got, want) {
		t.Errorf("after 6: %+v, want %+v", got, want)
	}
	want = []sms.NodeItem{{Parent: d(3), Count: 2}, {Parent: d(1), First: 1, Count: 3}}
	if got := tr.following(d(3), true); !reflect.DeepEqual(got, want) {
		t.Errorf("after 3 with what is below: %+v, want %+v", got, want)
	}
	if got := tr.following(d(5), false); got != nil {
		t.Errorf("after the last: %+v", got)
	}
}

func TestTreeForgetsTheLongestUnused(t *testing.T) {
	tr := newNodeTree(true, d(1))
	tr.add(d(1), recipe.DirLeaf, nodes(2, 3))
	tr.add(d(2), recipe.DirLeaf, nodes(101, 102))
	if _, ok := tr.chunks[chunkKey(d(101))]; !ok {
		t.Fatal("a restore does not know its chunks")
	}
	tr.add(d(3), recipe.DirLeaf, nodes(103))
	tr.touch(tr.nodes[d(3)])
	tr.forget(tr.lru.Back().Value.(*knownNode))
	if tr.nodes[d(2)] != nil || tr.nodes[d(1)] == nil || tr.nodes[d(3)] == nil {
		t.Error("the wrong node was forgotten")
	}
	if _, ok := tr.chunks[chunkKey(d(101))]; ok {
		t.Error("its chunks were not")
	}
	if it, _, ok := tr.ask(d(2)); !ok || it.Parent != d(1) {
		t.Error("a forgotten node cannot be asked for again")
	}
	for tr.lru.Len() > 0 {
		tr.forget(tr.lru.Back().Value.(*knownNode))
	}
	if tr.size != 0 || len(tr.chunks) != 0 || len(tr.nodes) != 0 {
		t.Errorf("left over: size %d, %d chunks, %d nodes", tr.size, len(tr.chunks), len(tr.nodes))
	}
}

func TestInflightClaimsOnce(t *testing.T) {
	over := make(chan struct{})
	f := newInflight(over, func() error { return errors.New("over") })
	if got := f.claim([]digest.Digest{d(1), d(2), d(1)}); !reflect.DeepEqual(got, []int{0, 1}) {
		t.Errorf("claimed %v", got)
	}
	if got := f.claim([]digest.Digest{d(2), d(3)}); !reflect.DeepEqual(got, []int{1}) {
		t.Errorf("claimed %v", got)
	}
	done := make(chan error, 1)
	go func() { done <- f.wait(t.Context(), []digest.Digest{d(9), d(1), d(2)}) }()
	f.remove([]digest.Digest{d(1)})
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	f.remove([]digest.Digest{d(2)})
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.wait(ctx, []digest.Digest{d(3)}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(over)
	if err := f.wait(t.Context(), []digest.Digest{d(3)}); err == nil || err.Error() != "over" {
		t.Errorf("got %v", err)
	}
}

func TestLatestKeepsTheNewest(t *testing.T) {
	l := newLatest[int]()
	for i := range 10 {
		l.set(i)
	}
	if v, err := l.next(t.Context()); err != nil || v != 9 {
		t.Errorf("got %d, %v", v, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.next(ctx); err == nil {
		t.Error("a value that was taken came again")
	}
}

func TestPipeWaitsForItsWindow(t *testing.T) {
	over := make(chan struct{})
	p := newPipe(10, over, func() error { return sms.Errorf(sms.CodeTimeout, "lost") })
	put := func(ctx context.Context) error {
		b := sms.NewBuffer(8)
		b.B = b.B[:8]
		return p.put(ctx, sms.TypeFrame, b, nil)
	}
	for range 2 { // the second one passes the window's edge
		if err := put(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := put(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a full window took more: %v", err)
	}
	p.ack(sms.Ack{Received: 1})
	if err := put(t.Context()); err != nil {
		t.Error(err)
	}
	if p.seq != 3 || len(p.pending) != 2 || p.pending[0].seq != 2 {
		t.Errorf("sequence %d, %d pending", p.seq, len(p.pending))
	}
	p.ack(sms.Ack{Received: 3})
	if err := p.drain(t.Context()); err != nil {
		t.Error(err)
	}
	close(over)
	if err := p.wait(t.Context(), func() bool { return false }); sms.CodeOf(err) != sms.CodeTimeout {
		t.Errorf("got %v", err)
	}
}
