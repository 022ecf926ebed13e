package uplink

import (
	"context"
	"encoding/binary"
	"sync"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// fetchSlot hands the frames of the fetch that a lane is busy with to its caller.
type fetchSlot struct {
	mu sync.Mutex
	// mu guards all below.
	id    uint32
	lasts uint32
	to    chan *sms.Received
	over  chan struct{} // closed when the fetch ends
}

// begin makes the slot expect a new fetch.
func (f *fetchSlot) begin() (id uint32, from chan *sms.Received) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lasts++
	f.id, f.to, f.over = f.lasts, make(chan *sms.Received), make(chan struct{})
	return f.id, f.to
}

// end makes the slot drop what still comes.
func (f *fetchSlot) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.id, f.to = 0, nil
	close(f.over)
}

// give hands a message to the fetch with this id, or drops it where that is over.
func (f *fetchSlot) give(ctx context.Context, id uint32, m *sms.Received) error {
	f.mu.Lock()
	to, over := f.to, f.over
	if id != f.id {
		f.mu.Unlock()
		m.Release()
		return nil
	}
	f.mu.Unlock()
	select {
	case to <- m:
	case <-over:
		m.Release()
	case <-ctx.Done():
		m.Release()
		return ctx.Err()
	}
	return nil
}

// frames takes the data class of a lane: answers to fetches.
func (l *lane) frames(ctx context.Context, st *sms.Stream) error {
	for {
		m, err := st.Recv(ctx, sms.ClassData)
		if err != nil {
			return err
		}
		if m.Type != sms.TypeFetchFrame && m.Type != sms.TypeFetched || len(m.Payload) < 4 {
			m.Release()
			return sms.Errorf(sms.CodeProtocol, "unexpected message of type %v", m.Type)
		}
		if err := l.fetching.give(ctx, binary.LittleEndian.Uint32(m.Payload), m); err != nil {
			return err
		}
	}
}

// Fetch implements Run.
func (s *Session) Fetch(ctx context.Context, items []FetchItem, emit func(f frame.Frame) error) error {
	if len(items) == 0 {
		return nil
	}
	var n uint8
	select {
	case n = <-s.fetchers:
	case <-s.done:
		return whyOver(s.Err)
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.fetchers <- n }()
	l := s.lane(n)
	wanted := make(map[digest.Digest]struct{}, len(items))
	for i := range items {
		wanted[items[i].Digest] = struct{}{}
	}
	for len(wanted) > 0 {
		req, err := s.in.locate(items, wanted)
		if err != nil {
			return err
		}
		again, err := l.fetch(ctx, req, wanted, emit)
		if err != nil {
			return err
		}
		if !again && len(wanted) > 0 {
			return sms.Errorf(sms.CodeProtocol, "the appliance left %d chunks of a fetch out", len(wanted))
		}
	}
	return nil
}

// locate makes a request for those items that are still wanted: the children of known nodes.
func (r *nodeReader) locate(items []FetchItem, wanted map[digest.Digest]struct{}) (*sms.Fetch, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	req := &sms.Fetch{}
	size := 0
	for i := range items {
		d := items[i].Digest
		if _, ok := wanted[d]; !ok {
			continue
		}
		at, ok := r.tree.chunks[chunkKey(d)]
		if !ok {
			return nil, sms.Errorf(sms.CodeNotShown, "chunk %v is no child of a node that was shown to this run lately", d)
		}
		if size += addChunk(req, at); size > maxFetchRequest {
			break // the rest in another round
		}
	}
	return req, nil
}

// maxFetchRequest bounds a request in bytes.
const maxFetchRequest = 512 << 10

// addChunk adds a chunk to a request, to its last range where that continues; it returns the bytes added.
func addChunk(req *sms.Fetch, at place) int {
	if n := len(req.Items); n > 0 && req.Items[n-1].Node == at.parent.d {
		it := &req.Items[n-1]
		last := &it.Ranges[len(it.Ranges)-1]
		if last.First+last.Count == at.index {
			last.Count++
			return 0
		}
		it.Ranges = append(it.Ranges, sms.Children{First: at.index, Count: 1})
		return 8
	}
	req.Items = append(req.Items, sms.ChunkItem{Node: at.parent.d, Ranges: []sms.Children{{First: at.index, Count: 1}}})
	return 44
}

// fetch does one round on the lane's stream of the moment. again means that the round did not bring all that is wanted,
// for the connection was lost or the request was only a part.
func (l *lane) fetch(ctx context.Context, req *sms.Fetch, wanted map[digest.Digest]struct{}, emit func(frame.Frame) error) (again bool, err error) {
	st, err := l.p.stream(ctx)
	if err != nil {
		return false, err
	}
	id, from := l.fetching.begin()
	defer l.fetching.end()
	req.ID = id
	before := len(wanted)
	if err := st.SendSized(ctx, req, maxFetchRequest/8); err != nil {
		return true, ctx.Err()
	}
	for {
		select {
		case m := <-from:
			done, err := takeFetched(m, wanted, emit)
			m.Release()
			if done || err != nil {
				return len(wanted) < before, err
			}
		case <-st.Done():
			return true, l.lost(ctx, st)
		case <-l.s.done:
			return false, whyOver(l.s.Err)
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// lost waits until the pipe has noticed that a stream is over, so that the next round does not meet it again.
func (l *lane) lost(ctx context.Context, st *sms.Stream) error {
	return l.p.wait(ctx, func() bool { return l.p.st != st })
}

// takeFetched takes a message of an answer.
func takeFetched(m *sms.Received, wanted map[digest.Digest]struct{}, emit func(frame.Frame) error) (done bool, err error) {
	if m.Type == sms.TypeFetched {
		var end sms.Fetched
		if err := m.Decode(&end); err != nil {
			return true, err
		}
		if end.Code != "" {
			return true, &sms.Error{Code: end.Code, Message: end.Message, Remote: true}
		}
		return true, nil
	}
	var ff sms.FetchFrame
	if err := m.Decode(&ff); err != nil {
		return false, err
	}
	if err := emit(ff.Frame); err != nil {
		return false, err
	}
	for i := range ff.Frame.Refs {
		delete(wanted, ff.Frame.Refs[i].Digest)
	}
	return false, nil
}
