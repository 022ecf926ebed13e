package sms

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A data window that is full, because nobody reads data, never holds up queries, answers or orders.
func TestFullDataWindowBlocksNoAnswer(t *testing.T) {
	a, b := pair(t, Options{})
	ctx := testContext(t)
	x, y := streams(t, a, b, StreamLane)
	full, stop := context.WithCancel(ctx)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for x.SendBuffer(full, TypeFrame, pattern(MaxPayload, 1)) == nil { // until it blocks for good
		}
	}()
	waitFor(t, "the data window to fill", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return x.out[ClassData].bytes >= sendQueue && x.out[ClassData].credit < MaxPayload
	})
	for i := range uint32(50) {
		if err := x.Send(ctx, &Query{ID: i}); err != nil {
			t.Fatal(err)
		}
		var q Query
		if err := y.RecvMessage(ctx, &q); err != nil || q.ID != i {
			t.Fatalf("query %d: %v", i, err)
		}
		if err := y.Send(ctx, &Answer{ID: i}); err != nil {
			t.Fatal(err)
		}
		var answer Answer
		if err := x.RecvMessage(ctx, &answer); err != nil || answer.ID != i {
			t.Fatalf("answer %d: %v", i, err)
		}
		if err := x.Send(ctx, &Progress{}); err != nil {
			t.Fatal(err)
		}
		if err := y.RecvMessage(ctx, &Progress{}); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	<-sent
}

// A consumer that reads nothing stops its own stream; the others flow.
func TestSlowStreamStarvesNone(t *testing.T) {
	a, b := pair(t, Options{})
	ctx := testContext(t)
	slow, _ := streams(t, a, b, StreamLane)
	go func() {
		for slow.SendBuffer(ctx, TypeFrame, pattern(MaxPayload, 1)) == nil {
		}
	}()
	var wg sync.WaitGroup
	for range 4 {
		x, y := streams(t, a, b, StreamLane)
		const n = 40
		wg.Go(func() {
			for range n {
				if err := x.SendBuffer(ctx, TypeFrame, pattern(300_000, 2)); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range n {
				r, err := y.Recv(ctx, ClassData)
				if err != nil {
					t.Error(err)
					return
				}
				r.Release()
			}
		})
	}
	wg.Wait()
	slow.Close(CodeCancelled, "test over")
}

// Streams of a class take turns: one that has much to send does not hold up one that has little.
func TestStreamsTakeTurns(t *testing.T) {
	c := &Conn{streams: map[uint32]*Stream{}, wake: newSignal()}
	much, little := newStream(c, 1, StreamLane), newStream(c, 3, StreamLane)
	for _, s := range []*Stream{much, little} {
		s.out[ClassData].credit = 1 << 30
	}
	for range 4 {
		if err := much.SendBuffer(t.Context(), TypeFrame, pattern(MaxPayload/4, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := little.SendBuffer(t.Context(), TypeFrame, pattern(100, 1)); err != nil {
		t.Fatal(err)
	}
	if err := little.Send(t.Context(), &Query{}); err != nil {
		t.Fatal(err)
	}
	var order []uint32
	for _, o := range c.collectLocked(nil) {
		order = append(order, o.h.Stream)
	}
	// The query first, for its class goes first; then turn by turn.
	want := []uint32{3, 1, 3, 1, 1, 1}
	if len(order) != len(want) {
		t.Fatalf("streams %v, want %v", order, want)
	}
	for i := range want {
		if order[i] != want[i] {
			t.Fatalf("streams %v, want %v", order, want)
		}
	}
}

// Large messages come through, however many streams share a small budget, and all of it is given back.
func TestBudgetIsShared(t *testing.T) {
	budget := NewBudget(MinBudget)
	ctx := testContext(t)
	var wg sync.WaitGroup
	var conns []*Conn
	for range 2 {
		a, b := pair(t, Options{Budget: budget})
		conns = append(conns, a, b)
		for range 4 {
			x, y := streams(t, a, b, StreamLane)
			wg.Go(func() {
				for i := range 4 {
					if err := x.SendBuffer(ctx, TypeFrame, zeros(maxFrame-i)); err != nil {
						t.Error(err)
						return
					}
				}
			})
			wg.Go(func() {
				for i := range 4 {
					r, err := y.Recv(ctx, ClassData)
					if err != nil {
						t.Error(err)
						return
					}
					if len(r.Payload) != maxFrame-i {
						t.Errorf("message of %d bytes, want %d", len(r.Payload), maxFrame-i)
					}
					time.Sleep(time.Millisecond)
					r.Release()
				}
			})
		}
	}
	most := int64(0)
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-time.After(time.Millisecond):
			most = max(most, budget.InUse())
		}
	}
	if most == 0 || most > MinBudget {
		t.Errorf("at most %d of %d bytes were in use", most, MinBudget)
	}
	for _, c := range conns {
		c.Close(CodeShutdown, "test over")
	}
	waitFor(t, "the budget to come back", func() bool { return budget.InUse() == 0 })
}

func zeros(n int) *Buffer {
	b := NewBuffer(n)
	b.B = b.B[:n]
	return b
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("no sign of %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestLoansWaitInLine(t *testing.T) {
	b := NewBudget(MinBudget)
	if !b.tryGrow(MinBudget/2) || b.tryGrow(MinBudget/2) {
		t.Fatal("growth took the quarter that is kept for loans")
	}
	var order []int
	b.borrow(MinBudget/4, func() { order = append(order, 1) })
	giveUp := b.borrow(MinBudget/2, func() { order = append(order, 2) })
	b.borrow(MinBudget/4, func() { order = append(order, 3) })
	if len(order) != 1 || !b.pressed() || b.tryGrow(1) {
		t.Fatalf("granted %v; pressed %v", order, b.pressed())
	}
	if !giveUp() || len(order) != 2 || order[1] != 3 {
		t.Fatalf("granted %v after the second gave up", order)
	}
	if giveUp() {
		t.Error("gave up twice")
	}
	b.giveBack(MinBudget)
	if b.InUse() != 0 {
		t.Errorf("%d bytes are in use", b.InUse())
	}
}

func TestOverdrawnCreditEndsTheConnection(t *testing.T) {
	a, b := pair(t, Options{Budget: NewBudget(MinBudget)})
	ctx := testContext(t)
	x, _ := streams(t, a, b, StreamLane)
	a.mu.Lock()
	x.out[ClassQuery].credit = 1 << 31 // what the peer never gave
	a.mu.Unlock()
	for x.SendBuffer(ctx, TypeQuery, pattern(4+32*1000, 0)) == nil {
	}
	<-b.Done()
	if err := b.Err(); CodeOf(err) != CodeProtocol {
		t.Errorf("the connection ended with %v", err)
	}
}

func TestTooManyStreams(t *testing.T) {
	a, b := pair(t, Options{MaxStreams: 3})
	ctx := testContext(t)
	var last *Stream
	for range 4 {
		last, _ = a.Open(StreamLane)
	}
	if _, err := last.Recv(ctx, ClassOrder); CodeOf(err) != CodeBusy {
		t.Errorf("the fourth stream got %v", err)
	}
	s, err := b.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.Close("", "")
	waitFor(t, "room for one more", func() bool {
		st, _ := a.Open(StreamLane)
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		_, err := st.Recv(short, ClassOrder)
		return errors.Is(err, context.DeadlineExceeded)
	})
}

func TestDeadPeerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		defer y.Close()
		go func() { // takes what comes, says nothing
			b := make([]byte, 1<<10)
			for {
				if _, err := y.Read(b); err != nil {
					return
				}
			}
		}()
		c := NewConn(x, AgentSide, Options{})
		start := time.Now()
		<-c.Done()
		if d := time.Since(start); CodeOf(c.Err()) != CodeTimeout || d < DefaultDeadAfter || d > DefaultDeadAfter+DefaultKeepAlive {
			t.Errorf("after %v: %v", d, c.Err())
		}
		c.Close("", "")
	})
}

func TestPeerThatReadsNothingIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		defer y.Close()
		c := NewConn(x, AgentSide, Options{})
		<-c.Done()
		if c.Err() == nil {
			t.Error("no cause")
		}
		c.Close("", "")
	})
}

func TestIdleConnectionsLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		a, b := NewConn(x, AgentSide, Options{}), NewConn(y, ApplianceSide, Options{})
		time.Sleep(time.Hour)
		if a.Err() != nil || b.Err() != nil {
			t.Errorf("%v, %v", a.Err(), b.Err())
		}
		a.Close(CodeShutdown, "test over")
		b.Close(CodeShutdown, "test over")
	})
}

// A message that needs its whole window comes through although a part of the window is owed when it begins: the rest of
// the window is no use to a sender who waits for the last packet's credit.
func TestLargeMessageComesThroughAnOwedWindow(t *testing.T) {
	for _, owed := range []int{1, 1000, DataWindow/4 - 2*PacketCost} {
		budget := NewBudget(MinBudget)
		budget.free = budget.total/4 + 1 // no growth for speed: only loans, which are exact
		a, b := pair(t, Options{Budget: budget})
		ctx := testContext(t)
		x, y := streams(t, a, b, StreamLane)
		for i, size := range []int{owed, DataWindow + 1, 3*MaxPayload + 7, MaxWindow / 2} {
			if err := x.SendBuffer(ctx, TypeFrame, pattern(size, byte(i))); err != nil {
				t.Fatal(err)
			}
			m, err := y.Recv(ctx, ClassData)
			if err != nil {
				t.Fatalf("owed %d: message of %d bytes: %v", owed, size, err)
			}
			m.Release()
		}
	}
}
