package ingest_test

import (
	"bytes"
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// raw is an agent that says what a test wants.
type raw struct {
	t    testing.TB
	ctx  context.Context
	conn *sms.Conn
	run  *sms.Stream
	w    sms.RunWelcome
}

// newRaw connects a client.
func newRaw(t testing.TB, s *site, client string) *raw {
	t.Helper()
	ctx := testContext(t)
	nc, err := s.dial(s.addr, client)(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn := sms.NewConn(nc, sms.AgentSide, sms.Options{})
	t.Cleanup(func() { conn.Close(sms.CodeShutdown, "") })
	var w sms.Welcome
	if err := conn.Main().Send(ctx, &sms.Hello{MinVersion: 1, MaxVersion: 1}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Main().RecvMessage(ctx, &w); err != nil {
		t.Fatal(err)
	}
	return &raw{t: t, ctx: ctx, conn: conn}
}

// open opens a run and a lane.
func (r *raw) open(token sms.Token) (lane *sms.Stream) {
	r.t.Helper()
	r.run = r.stream(sms.StreamRun)
	r.send(r.run, &sms.RunOpen{Token: token})
	if err := r.run.RecvMessage(r.ctx, &r.w); err != nil {
		r.t.Fatal(err)
	}
	lane = r.stream(sms.StreamLane)
	r.send(lane, &sms.LaneOpen{Token: token})
	var w sms.LaneWelcome
	if err := lane.RecvMessage(r.ctx, &w); err != nil {
		r.t.Fatal(err)
	}
	return lane
}

func (r *raw) stream(k sms.StreamKind) *sms.Stream {
	r.t.Helper()
	st, err := r.conn.Open(k)
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

func (r *raw) send(st *sms.Stream, m sms.Message) {
	r.t.Helper()
	if err := st.Send(r.ctx, m); err != nil {
		r.t.Fatal(err)
	}
}

// end returns how a run ended, and checks that nothing was stored.
func end(t testing.TB, s *site, res <-chan ingest.Result) error {
	t.Helper()
	select {
	case got := <-res:
		if got.Err == nil {
			t.Fatalf("the run ended well: %+v", got)
		}
		if list, err := s.store.Savesets(t.Context()); err != nil || len(list) != 0 {
			t.Fatalf("%d savesets (%v)", len(list), err)
		}
		return got.Err
	case <-time.After(time.Minute):
		t.Fatal("the run goes on")
	}
	return nil
}

func TestHostileFrames(t *testing.T) {
	tests := []struct {
		name string
		code sms.Code
		make func(k digest.Keys) sms.Message
		run  bool // on the run stream, not on a lane
	}{
		{"wrong bytes under a right digest", sms.CodeWrongBytes, func(k digest.Keys) sms.Message {
			d := digest.NewHasher(k.Data).Sum([]byte("the right bytes"))
			return chunkFrame(d, []byte("the wrong bytes"))
		}, false},
		{"bytes under another domain's digest", sms.CodeWrongBytes, func(digest.Keys) sms.Message {
			other := digest.Derive(digest.DomainKey{9})
			return chunkFrame(digest.NewHasher(other.Data).Sum([]byte("bytes")), []byte("bytes"))
		}, false},
		{"decompression bomb", sms.CodeWrongBytes, func(k digest.Keys) sms.Message {
			zeros := make([]byte, frame.MaxChunk)
			f := frame.NewEncoder().Encode([]frame.Ref{{Digest: digest.NewHasher(k.Data).Sum(zeros), Length: frame.MaxChunk}}, zeros, nil)
			f.Refs[0].Length = 2000 // what it decompresses to is 8 MiB
			return &sms.Frame{Seq: 1, Frame: f}
		}, false},
		{"node with unknown children", sms.CodeBadNode, func(k digest.Keys) sms.Message {
			return dirFrame(k, recipe.Content{Kind: recipe.OneChunk, Digest: digest.Digest{1, 2, 3}})
		}, true},
		{"node with a child of another domain", sms.CodeBadNode, func(k digest.Keys) sms.Message {
			other := digest.Derive(digest.DomainKey{9})
			return dirFrame(k, recipe.Content{Kind: recipe.OneChunk, Digest: digest.NewHasher(other.Data).Sum([]byte("x"))})
		}, true},
		{"not a node", sms.CodeBadNode, func(k digest.Keys) sms.Message {
			rec := []byte("this is not the record of a node")
			return chunkFrame(digest.NewHasher(k.Node).Sum(rec), rec)
		}, true},
		{"gap in the sequence", sms.CodeProtocol, func(k digest.Keys) sms.Message {
			m := chunkFrame(digest.NewHasher(k.Data).Sum([]byte("x")), []byte("x")).(*sms.Frame)
			m.Seq = 5
			return m
		}, false},
		{"a message that does not belong there", sms.CodeProtocol, func(digest.Keys) sms.Message {
			return &sms.Fetched{}
		}, false},
		{"a message that does not belong on a run stream", sms.CodeProtocol, func(digest.Keys) sms.Message {
			return &sms.Fetched{}
		}, true},
		{"commit with an unknown root", sms.CodeBadNode, func(digest.Keys) sms.Message {
			return &sms.Commit{Root: recipe.Ref{Digest: digest.Digest{4}}}
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, nil)
			run, _ := s.backup("web1", nil)
			res := wait(testContext(t), run)
			r := newRaw(t, s, "web1")
			st := r.open(run.Token())
			if tt.run {
				st = r.run
			}
			r.send(st, tt.make(digest.Derive(r.w.Key)))
			if err := end(t, s, res); sms.CodeOf(err) != tt.code {
				t.Errorf("got %v, want code %s", err, tt.code)
			}
		})
	}
}

func chunkFrame(d digest.Digest, data []byte) sms.Message {
	return &sms.Frame{Seq: 1, Frame: frame.Frame{Refs: []frame.Ref{{Digest: d, Length: uint32(len(data))}}, Stored: data}}
}

// nodeSink keeps the last node that a builder made.
type nodeSink struct {
	d   digest.Digest
	rec []byte
}

func (n *nodeSink) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	n.d, n.rec = d, bytes.Clone(rec)
	return nil
}

func dirFrame(k digest.Keys, c recipe.Content) sms.Message {
	var n nodeSink
	b := recipe.NewDirBuilder(&n, digest.NewHasher(k.Node))
	_ = b.Add(context.Background(), recipe.Entry{Name: "f", Mode: recipe.ModeRegular, Size: 5, Content: c}, recipe.Totals{})
	_, _ = b.Finish(context.Background())
	return chunkFrame(n.d, n.rec)
}

func TestHostileTokens(t *testing.T) {
	s := newSite(t, nil)
	run, _ := s.backup("web1", nil)
	res := wait(testContext(t), run)
	for name, token := range map[string]sms.Token{"unknown token": sms.NewToken(), "another client's token": run.Token()} {
		for _, kind := range []sms.StreamKind{sms.StreamRun, sms.StreamLane} {
			r := newRaw(t, s, "intruder")
			st := r.stream(kind)
			if kind == sms.StreamRun {
				r.send(st, &sms.RunOpen{Token: token})
			} else {
				r.send(st, &sms.LaneOpen{Token: token})
			}
			_, err := st.Recv(r.ctx, sms.ClassOrder)
			if sms.CodeOf(err) != sms.CodeUnknownRun {
				t.Errorf("%s on a %v stream: got %v", name, kind, err)
			}
			r.conn.Close(sms.CodeShutdown, "")
		}
	}
	if !strings.Contains(s.logs.String(), "agent shows an unknown run token") ||
		!strings.Contains(s.logs.String(), "agent shows the run token of another client") {
		t.Error("no log line tells of it")
	}
	run.Cancel("test over")
	<-res
}

func TestFetchShowsOnlyWhatHangsOnTheRoot(t *testing.T) {
	s := newSite(t, nil)
	mine := mustBackup(t, s, s.addr, tree{"a": {"mine": []byte("my content"), "shared": []byte("in both")}}, nil)
	other := mustBackup(t, s, s.addr, tree{"b": {"other": []byte("a secret of another client")}}, nil)
	run := s.restore("web1", mine)
	wait(testContext(t), run)
	r := newRaw(t, s, "web1")
	lane := r.open(run.Token())
	refused := func(name string, st *sms.Stream, m sms.Message) {
		t.Helper()
		r.send(st, m)
		got, err := st.Recv(r.ctx, sms.ClassData)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer got.Release()
		var end sms.Fetched
		if err := got.Decode(&end); err != nil || end.Code != sms.CodeNotShown {
			t.Errorf("%s: got %+v, %v", name, end, err)
		}
	}
	refused("a chunk of a node not shown", lane, &sms.Fetch{Items: []sms.ChunkItem{{Node: mine.Root.Digest, Ranges: []sms.Children{{Count: 1}}}}})
	refused("another saveset's root itself", r.run, &sms.FetchNodes{Items: []sms.NodeItem{{Parent: other.Root.Digest, First: sms.Self, Count: 1}}})
	refused("children of another saveset's root", r.run, &sms.FetchNodes{Items: []sms.NodeItem{{Parent: other.Root.Digest, Count: 1}}})
	refused("a root that is not there", r.run, &sms.FetchNodes{Items: []sms.NodeItem{{First: 1, Count: 1}}})
	refused("a root out of range", r.run, &sms.FetchNodes{Items: []sms.NodeItem{{First: 7, Count: 1}}})

	r.send(r.run, &sms.FetchNodes{Items: []sms.NodeItem{{Count: 1}}})
	got, err := r.run.Recv(r.ctx, sms.ClassData)
	if err != nil || got.Type != sms.TypeFetchFrame {
		t.Fatalf("the root did not come: %v", err)
	}
	got.Release()
	if got, _ := r.run.Recv(r.ctx, sms.ClassData); got != nil {
		got.Release()
	}
	refused("children beyond the last", r.run, &sms.FetchNodes{Items: []sms.NodeItem{{Parent: mine.Root.Digest, First: 1, Count: 9}}})
	refused("a count that overflows", r.run, &sms.FetchNodes{Items: []sms.NodeItem{{Parent: mine.Root.Digest, First: 2, Count: 1<<32 - 1}}})
	if !strings.Contains(s.logs.String(), "fetch refused") {
		t.Error("no log line tells of it")
	}

	// Read-ahead may name children among which no node is: that is an empty answer, and no refusal.
	r.send(r.run, &sms.FetchNodes{Items: []sms.NodeItem{{Parent: mine.Root.Digest, Count: 0}}})
	got, err = r.run.Recv(r.ctx, sms.ClassData)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	var end sms.Fetched
	if err := got.Decode(&end); err != nil || end.Code != "" {
		t.Errorf("children without a node: %+v, %v", end, err)
	}
}

// A frame may hold chunks that other savesets stored beside the wanted one: they must not come along.
func TestFetchSendsNoNeighbours(t *testing.T) {
	s := newSite(t, nil)
	shared, secret := []byte(strings.Repeat("in both ", 100)), []byte(strings.Repeat("a secret ", 100))
	both := mustBackup(t, s, s.addr, tree{"a": {"1": shared, "2": secret}}, nil)
	part := mustBackup(t, s, s.addr, tree{"a": {"1": shared}}, &both)
	run := s.restore("web1", part)
	wait(testContext(t), run)
	link, _ := s.agent(s.addr, "web1", nil)
	ctx := testContext(t)
	session, err := link.Open(ctx, run.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	got, err := fetchTree(ctx, spy{session, t, digest.NewHasher(session.Domain().Keys.Data).Sum(secret)}, session.Root().Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := equal(tree{"a": {"1": shared}}, got); err != nil {
		t.Error(err)
	}
}

// TestBackupRunFetchesNoFiles: what is no disk image of its parent is not for a backup, even where its node was shown.
func TestBackupRunFetchesNoFiles(t *testing.T) {
	s := newSite(t, nil)
	m := mustBackup(t, s, s.addr, tree{"a": {"1": []byte("content")}}, nil)
	dir, _, err := recipe.Lookup(t.Context(), s.view(m.ID), m.Root.Digest, "a")
	if err != nil {
		t.Fatal(err)
	}
	run, _ := s.backup("web1", &m)
	wait(testContext(t), run)
	r := newRaw(t, s, "web1")
	lane := r.open(run.Token())
	fetch := func() (end sms.Fetched) {
		t.Helper()
		r.send(lane, &sms.Fetch{Items: []sms.ChunkItem{{Node: dir.Content.Digest, Ranges: []sms.Children{{Count: 1}}}}})
		if err := lane.RecvMessage(r.ctx, &end); err != nil {
			t.Fatal(err)
		}
		return end
	}
	if end := fetch(); end.Code != sms.CodeNotShown || !strings.Contains(end.Message, "never shown") {
		t.Errorf("before its node was shown: %+v", end)
	}
	r.send(r.run, &sms.FetchNodes{Ahead: 1 << 20, Items: []sms.NodeItem{{Count: 1}}})
	for {
		got, err := r.run.Recv(r.ctx, sms.ClassData)
		if err != nil {
			t.Fatal(err)
		}
		over := got.Type == sms.TypeFetched
		got.Release()
		if over {
			break
		}
	}
	if end := fetch(); end.Code != sms.CodeNotShown || !strings.Contains(end.Message, "disk images alone") {
		t.Errorf("after its node was shown: %+v", end)
	}
}

func TestGarbageClosesTheConnectionWithALogLine(t *testing.T) {
	packet := func(change func(b []byte)) []byte {
		b := []byte("cofSMS\x01\x00")
		b = append(b, make([]byte, sms.HeaderLen)...)
		change(b[8:])
		return b
	}
	tests := []struct {
		name  string
		bytes []byte
		cause string
	}{
		{"another protocol", []byte("GET / HTTP/1.1\r\n\r\n"), "does not speak SMS"},
		{"newer packet form", []byte("cofSMS\x02\x00 and more bytes"), "packet form 2"},
		{"unknown type", packet(func(b []byte) { b[8] = 0xee }), "unknown type"},
		{"oversized payload", packet(func(b []byte) { b[8] = 0x10; b[15] = 0x7f }), "limit"},
		{"oversized message", packet(func(b []byte) { b[8] = 0x42; b[14] = 4; b[19] = 0x7f }), "limit"},
		{"wrong checksum", packet(func(b []byte) { b[8] = 0x01; b[12] = 0 }), "checksum"},
		{"stream never opened", packet(func(b []byte) { b[0] = 77; b[8] = 0x42 }), "never opened"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, nil)
			nc, err := s.dial(s.addr, "web1")(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := nc.Write(append(tt.bytes, make([]byte, 64)...)); err != nil {
				t.Fatal(err)
			}
			flush(nc)
			deadline := time.Now().Add(time.Minute)
			for !strings.Contains(s.logs.String(), tt.cause) {
				if time.Now().After(deadline) {
					t.Fatalf("no log line with %q:\n%s", tt.cause, s.logs)
				}
				time.Sleep(5 * time.Millisecond)
			}
			if !strings.Contains(s.logs.String(), nc.LocalAddr().String()) {
				t.Errorf("the log does not name the peer:\n%s", s.logs)
			}
		})
	}
}

func TestMemoryStaysFlatUnderGarbage(t *testing.T) {
	s := newSite(t, nil)
	m := mustBackup(t, s, s.addr, tree{"a": {"1": []byte("content")}}, nil)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 20 {
		r := newRaw(t, s, "web1")
		run := s.restore("web1", m)
		res := wait(r.ctx, run)
		lane := r.open(run.Token())
		for range 30 { // large frames where a restore wants none: taken off the wire, refused
			b := sms.NewBuffer(8 << 20)
			b.B = b.B[:8<<20]
			if lane.SendBuffer(r.ctx, sms.TypeFrame, b) != nil {
				break
			}
		}
		<-res
		r.conn.Close(sms.CodeShutdown, "")
	}
	for range 3 { // pooled buffers survive the first one
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

func TestUsedTokenOpensNothing(t *testing.T) {
	s := newSite(t, nil)
	ctx := testContext(t)
	link, stop := s.agent(s.addr, "web1", nil)
	run, _ := s.backup("web1", nil)
	res := wait(ctx, run)
	session, err := link.Open(ctx, run.Token())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sendTree(ctx, session, tree{"a": {"1": []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	<-res
	_ = session.Close()
	stop()

	r := newRaw(t, s, "web1")
	lane := r.stream(sms.StreamLane)
	r.send(lane, &sms.LaneOpen{Token: run.Token()})
	if _, err := lane.Recv(ctx, sms.ClassOrder); sms.CodeOf(err) != sms.CodeUnknownRun {
		t.Errorf("a lane of a run that is over got %v", err)
	}
	again := r.stream(sms.StreamRun)
	r.send(again, &sms.RunOpen{Token: run.Token(), Resume: true})
	var w sms.RunWelcome
	if err := again.RecvMessage(ctx, &w); err != nil {
		t.Fatal(err)
	}
	r.send(again, &sms.FetchNodes{Items: []sms.NodeItem{{Count: 1}}})
	r.send(again, &sms.Outcome{}) // the run ended with a commit, not with this
	if m, err := again.Recv(ctx, sms.ClassData); sms.CodeOf(err) != sms.CodeUnknownRun {
		t.Errorf("a run that is over answered %v, %v", m, err)
	}
}
