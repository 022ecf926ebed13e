package ingest_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// nullStore is a store that has nothing and keeps nothing: what is left is the wire.
type nullStore struct{}

type nullLane struct{ seq uint64 }

func (nullStore) Have(context.Context, []digest.Digest, []bool) error { return nil }
func (nullStore) Lane(func(uint64)) (ingest.Lane, error)              { return new(nullLane), nil }
func (nullStore) PutNodes(context.Context, frame.Frame) error         { return nil }

func (l *nullLane) PutFrame(context.Context, frame.Frame) (uint64, error) {
	l.seq++
	return l.seq, nil
}
func (l *nullLane) Flush(context.Context) error { return nil }
func (l *nullLane) Durable() uint64             { return l.seq }

// cpu returns the processor time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The numbers of a FULL of the kernel tree: 80,000 files in 230 MB of compressed frames.
const (
	benchDigests = 80_000
	benchBatch   = 64
	benchBytes   = 230 << 20
	benchFrames  = 5200 // of 256 KiB plain
)

// BenchmarkWire moves a FULL's queries and frames from lanes to a store that does nothing. cpu-s is processor time of both
// ends, TLS included; compare BenchmarkBareTLS.
func BenchmarkWire(b *testing.B) {
	s := newSite(b, nil)
	link, _ := s.agent(s.addr, "web1", nil)
	ctx := b.Context()
	for b.Loop() {
		r, err := s.server.StartRun(ingest.RunOptions{ID: "bench", Client: "web1", Sink: &sink{}, Store: nullStore{}})
		if err != nil {
			b.Fatal(err)
		}
		res := wait(ctx, r)
		run, err := link.Open(ctx, r.Token())
		if err != nil {
			b.Fatal(err)
		}
		began := cpu()
		errs := make(chan error, 2)
		for i := range 2 {
			go func() { errs <- benchLane(ctx, run.Lane(i), byte(i)) }()
		}
		for range 2 {
			if err := <-errs; err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((cpu() - began).Seconds(), "cpu-s")
		if err := run.Finish(ctx, sms.Outcome{Code: "done"}); err != nil {
			b.Fatal(err)
		}
		<-res
		_ = run.Close()
	}
	b.SetBytes(benchBytes)
}

func benchLane(ctx context.Context, l uplink.Lane, k byte) error {
	stored := make([]byte, benchBytes/benchFrames)
	refs := make([]frame.Ref, 16)
	for i := range refs {
		refs[i] = frame.Ref{Digest: digest.Digest{k, byte(i)}, Length: frame.MaxPlain / 16}
	}
	n := uint32(0)
	for range benchDigests / benchBatch / 2 {
		ds := make([]digest.Digest, benchBatch)
		for i := range ds {
			n++
			ds[i] = digest.Digest{k, 1, byte(n), byte(n >> 8), byte(n >> 16)}
		}
		if _, err := l.Have(ctx, ds); err != nil {
			return err
		}
		for range benchFrames / (benchDigests / benchBatch) {
			if err := l.Put(ctx, frame.Frame{Refs: refs, Codec: frame.Zstd, Stored: stored}); err != nil {
				return err
			}
		}
	}
	return l.Flush(ctx)
}

// BenchmarkBareTLS moves as many bytes over TLS in large writes, with nothing around them.
func BenchmarkBareTLS(b *testing.B) {
	ca := newAuthority(b)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	conf := &tls.Config{Certificates: []tls.Certificate{ca.pair(b, "a")}, DynamicRecordSizingDisabled: true}
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, tls.Server(nc, conf), make([]byte, 256<<10))
				_ = nc.Close()
			}()
		}
	}()
	buf := make([]byte, 256<<10)
	for b.Loop() {
		nc, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
		if err != nil {
			b.Fatal(err)
		}
		began := cpu()
		for range benchBytes / len(buf) {
			if _, err := nc.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = nc.CloseWrite()
		_, _ = nc.Read(buf[:1])
		b.ReportMetric((cpu() - began).Seconds(), "cpu-s")
		_ = nc.Close()
	}
	b.SetBytes(benchBytes)
}
