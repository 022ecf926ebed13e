package backup

import (
	"context"
	"fmt"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/dedup/frame"
)

const (
	// wholeFrame is how many consecutive bytes are a frame at once, as a long chunk is; fewer are copied together with others.
	wholeFrame = frame.MaxPlain * 3 / 4
	// idleFlush is how long a frame that is not full waits for more chunks when nothing else is to do.
	idleFlush = 200 * time.Millisecond
)

// sender compresses the chunks that the appliance lacks and puts them on its lane.
type sender struct {
	*job
	lane uplink.Lane
	enc  *frame.Encoder
	dst  []byte
	pack frame.Packer
}

func newSender(j *job, i int) *sender {
	return &sender{job: j, lane: j.run.Lane(i % j.lanes()), enc: frame.NewEncoder()}
}

func (s *sender) run(ctx context.Context) error {
	idle := time.NewTimer(idleFlush)
	defer idle.Stop()
	for {
		var wait <-chan time.Time
		if !s.pack.Empty() {
			idle.Reset(idleFlush)
			wait = idle.C
		}
		select {
		case p, ok := <-s.sends:
			if !ok {
				return s.flush(ctx)
			}
			if err := s.parcel(ctx, p); err != nil {
				return err
			}
		case <-wait:
			if err := s.flush(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// parcel sends the missing chunks of a parcel and gives its buffer back.
func (s *sender) parcel(ctx context.Context, p *parcel) error {
	start := time.Now()
	have, err := p.have(ctx)
	s.rep.Network.Add(int64(time.Since(start)))
	if err != nil {
		return fmt.Errorf("ask for missing chunks: %w", err)
	}
	err = s.missing(ctx, p, have)
	p.from.put(p.buf)
	return err
}

// missing makes frames of the chunks that are not there: directly from the buffer where enough of them lie together,
// by way of the packer where not.
func (s *sender) missing(ctx context.Context, p *parcel, have []bool) error {
	at := 0
	for i := 0; i < len(p.refs); {
		if have[i] {
			at += int(p.refs[i].Length)
			i++
			continue
		}
		n, size := frame.Missing(p.refs[i:], have[i:])
		plain := p.buf[at : at+size]
		if err := s.frame(ctx, p.refs[i:i+n], plain); err != nil {
			return err
		}
		at += size
		i += n
	}
	return nil
}

func (s *sender) frame(ctx context.Context, refs []frame.Ref, plain []byte) error {
	s.rep.BytesNew.Add(uint64(len(plain)))
	if len(plain) >= wholeFrame || refs[0].Length >= frame.Alone {
		return s.put(ctx, func(dst []byte) frame.Frame { return s.enc.Encode(refs, plain, dst) })
	}
	for _, ref := range refs {
		if !s.pack.Fits(int(ref.Length)) {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
		s.pack.Add(ref.Digest, plain[:ref.Length])
		plain = plain[ref.Length:]
	}
	return nil
}

// flush sends what the packer holds.
func (s *sender) flush(ctx context.Context) error {
	if s.pack.Empty() {
		return nil
	}
	defer s.pack.Reset()
	return s.put(ctx, func(dst []byte) frame.Frame { return s.pack.Encode(s.enc, dst) })
}

func (s *sender) put(ctx context.Context, encode func(dst []byte) frame.Frame) error {
	start := time.Now()
	f := encode(s.dst)
	s.dst = f.Stored
	encoded := time.Now()
	err := s.lane.Put(ctx, f)
	s.rep.Compress.Add(int64(encoded.Sub(start)))
	s.rep.Network.Add(int64(time.Since(encoded)))
	if err != nil {
		return fmt.Errorf("send chunks: %w", err)
	}
	s.rep.BytesSent.Add(uint64(len(f.Stored)))
	return nil
}
