package sms

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func seqDigest(first byte) (d digest.Digest) {
	for i := range d {
		d[i] = first + byte(i)
	}
	return d
}

func seqToken(first byte) Token { return Token(seqDigest(first)) }

func seqRef(first byte) recipe.Ref {
	return recipe.Ref{Digest: seqDigest(first), Totals: recipe.Totals{Entries: 3, Bytes: 4096}}
}

// samples has one message of every type, in the order of the types.
func samples() []Message {
	at := time.Date(2026, 11, 22, 2, 15, 0, 5, time.UTC)
	f := frame.Frame{Refs: []frame.Ref{{Digest: seqDigest(1), Length: 3}, {Digest: seqDigest(2), Length: 2}}, Stored: []byte("hello")}
	return []Message{
		&ping{0x0102030405060708}, &pong{0x0102030405060708}, &open{StreamLane}, &closing{CodeRefused, "no"},
		&credit{ClassData, 65536}, &goAway{CodeShutdown, "bye"},
		&Hello{MinVersion: 1, MaxVersion: 2, OS: "linux", Arch: "amd64", Hostname: "web1", Agent: "0.1", Capabilities: []string{"stream"}, Clock: at},
		&Welcome{Version: 1, Client: "web1", Appliance: "0.1", Clock: at},
		&Enrol{Secret: []byte{1, 2, 3}, CSR: []byte{4, 5}, Hostname: "web1"},
		&EnrolResult{Client: "web1", Certificate: []byte{1}, CA: []byte{2}},
		&Renew{CSR: []byte{9}},
		&Order{ID: "o1", Kind: OrderBackup, Backup: &BackupOrder{RunID: "r1", Token: seqToken(7), Task: "web1-etc", TaskType: TaskPath,
			Level: "INCR", Sources: []Path{"/etc", "/srv/\xff"}, Excludes: []string{"*.tmp"}}},
		&Reply{Stat: &StatReply{Files: []FileInfo{{Path: "/etc", Exists: true, Mode: 0o40755, MTime: at}}}},
		&RunOpen{Token: seqToken(7), Resume: true},
		&RunWelcome{RunID: "r1", Restore: true, MaxLanes: 8, Received: 7, ResumeWindow: 15 * time.Minute, Domain: digest.DomainID{1},
			Key: digest.DomainKey{2}, Chunking: chunk.Params{Polynomial: 0x3DA3358B4DC173, Min: 1, Max: 2, AvgBits: 3},
			Root: seqRef(1), Side: seqRef(2), ParentStarted: at},
		&LaneOpen{Token: seqToken(7), Lane: 3}, &LaneWelcome{Received: 5, Durable: 4},
		&Query{ID: 9, Digests: []digest.Digest{seqDigest(1), seqDigest(2)}},
		&Answer{ID: 9, Have: []bool{true, false, true, true, false, false, false, false, true}},
		&Frame{Seq: 6, Frame: f}, &Ack{Received: 6, Durable: 5}, &Flush{Seq: 6},
		&Fetch{ID: 4, Items: []ChunkItem{{Node: seqDigest(1), Ranges: []Children{{0, 2}, {5, 1}}}, {Node: seqDigest(2), Ranges: []Children{{7, 1}}}}},
		&FetchNodes{ID: 4, Ahead: 65536, Items: []NodeItem{{Count: 1}, {Parent: seqDigest(1), First: 2, Count: 3}, {Parent: seqDigest(3), First: Self, Count: 1}}},
		&FetchFrame{ID: 4, Frame: f}, &Fetched{ID: 4, Code: CodeNotShown, Message: "no"},
		&Progress{Phase: PhaseWorking, Counters: Counters{Entries: 5, Source: time.Second}, Current: "/etc/\xffx"},
		&SentNotice{Seq: 8, Notice: Notice{Severity: SeverityWarning, Code: "unreadable", Path: "/a", Message: "permission denied"}},
		&Commit{Root: seqRef(1), Side: seqRef(2), SourceID: "fs1", Started: at, Finished: at.Add(time.Second)},
		&CommitResult{SavesetID: "s1", Warning: true, Stored: 12},
		&Outcome{Code: "command_failed", Message: "exit status 1"}, &Finished{},
	}
}

func TestEveryTypeHasASample(t *testing.T) {
	have := map[Type]bool{}
	for _, m := range samples() {
		have[m.Type()] = true
	}
	for typ, s := range specs {
		if !have[typ] {
			t.Errorf("no sample of %v", typ)
		}
		if got := s.make().Type(); got != typ {
			t.Errorf("the entry of %v makes %v", typ, got)
		}
		if s.class == ClassOrder && messageCost(int64(s.max)) > OrderWindow || s.class == ClassQuery && messageCost(int64(s.max)) > QueryWindow ||
			messageCost(int64(s.max)) > MaxWindow {
			t.Errorf("the longest %v does not fit into its window", typ)
		}
	}
}

// TestGoldenMessages holds the bytes of every message, and that they decode to what they were.
func TestGoldenMessages(t *testing.T) {
	const file = "testdata/messages.hex"
	var out strings.Builder
	for _, m := range samples() {
		b := Append(nil, m)
		fmt.Fprintf(&out, "%v (0x%02x)\n", m.Type(), uint8(m.Type()))
		for line := range slices.Chunk(b, 32) {
			fmt.Fprintf(&out, "  %x\n", line)
		}
		back, err := Decode(m.Type(), b)
		if err != nil {
			t.Errorf("%v: %v", m.Type(), err)
		} else if !reflect.DeepEqual(back, m) {
			t.Errorf("%v came back as %+v, was %+v", m.Type(), back, m)
		}
	}
	// One whole packet, with its header.
	payload := Append(nil, &ping{1})
	packet := append(appendHeader(nil, header{Stream: 0, Seq: 2, Type: TypePing, Length: 8}, payload), payload...)
	fmt.Fprintf(&out, "preamble\n  %x\npacket\n  %x\n", preamble, packet)
	if *update {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("the bytes changed: an incompatible protocol. Now:\n%s", out.String())
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct {
		name string
		typ  Type
		hex  string
	}{
		{"bytes left over", TypePing, "010203040506070809"},
		{"too short", TypePong, "0102"},
		{"bool of 2", TypeRunOpen, strings.Repeat("00", 32) + "02"},
		{"half a digest", TypeQuery, "0100000001020304"},
		{"answer longer than its bits", TypeAnswer, "01000000ffff0000"},
		{"answer with bits beyond the last", TypeAnswer, "010000000100000003"},
		{"time with too many nanoseconds", TypeWelcome, "01000000000000000000ffffffff00000000"},
		{"ranges that are not there", TypeFetch, "01000000" + strings.Repeat("11", 32) + "ffffffff"},
		{"no JSON", TypeCommit, "7b"},
		{"unknown codec", TypeFrame, "0100000000000000" + "0900" + "0100" + strings.Repeat("11", 32) + "01000000" + "61"},
		{"frame of nothing", TypeFrame, "010000000000000000000000"},
		{"unknown type", Type(0xee), ""},
	}
	for _, tt := range tests {
		b, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := Decode(tt.typ, b); CodeOf(err) != CodeProtocol {
			t.Errorf("%s: got %+v, %v", tt.name, m, err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	token := seqToken(1)
	w := RunWelcome{Key: digest.DomainKey{0xab, 0xcd}}
	for _, s := range []string{fmt.Sprint(token), fmt.Sprintf("%v %+v %#v %s", token, token, token, token), fmt.Sprintf("%v %+v", w, w)} {
		if strings.Contains(s, "0102") || strings.Contains(s, "171 205") || strings.Contains(s, "abcd") || strings.Contains(s, "1 2 3 4") {
			t.Errorf("a secret shows in %q", s)
		}
	}
	b, err := token.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back Token
	if err := back.UnmarshalText(b); err != nil || back != token {
		t.Errorf("the token came back as %x (%v)", back[:], err)
	}
	if back.UnmarshalText([]byte("zz")) == nil || back.UnmarshalText(bytes.Repeat([]byte("z"), 64)) == nil {
		t.Error("a broken token was parsed")
	}
}
