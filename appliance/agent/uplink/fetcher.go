package uplink

import (
	"context"
	"fmt"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/seal"
)

// Fetcher brings chunks into memory. For one goroutine.
type Fetcher struct {
	run    Run
	unseal *seal.Opener
	dec    *frame.Decoder
	hash   *digest.Hasher
}

// NewFetcher returns a Fetcher of a run's chunks, opened where the run is one of Unseal's.
func NewFetcher(run Run) *Fetcher {
	return &Fetcher{run: run, unseal: OpenerOf(run), dec: frame.NewDecoder(), hash: digest.NewHasher(run.Domain().Keys.Data)}
}

// Chunks fetches and verifies chunks, at most MaxFetch bytes. Each may be wanted more than once. Code CodeNotFound names the
// first that the appliance did not deliver as it is; what a key does not open is seal's error.
func (f *Fetcher) Chunks(ctx context.Context, items []FetchItem) (map[digest.Digest][]byte, error) {
	got := make(map[digest.Digest][]byte, len(items))
	var once []FetchItem
	for _, it := range items {
		if _, again := got[it.Digest]; !again {
			got[it.Digest] = nil
			once = append(once, it)
		}
	}
	if len(once) == 0 {
		return got, nil
	}
	err := f.run.Fetch(ctx, once, func(fr frame.Frame) error {
		plain, err := f.dec.Decode(fr, nil)
		if err != nil {
			return err
		}
		for _, ref := range fr.Refs {
			chunk := plain[:ref.Length:ref.Length]
			plain = plain[ref.Length:]
			if have, wanted := got[ref.Digest]; !wanted || have != nil || f.hash.Sum(chunk) != ref.Digest {
				continue
			}
			if f.unseal != nil {
				if chunk, err = f.unseal.Chunk(nil, chunk); err != nil {
					return err
				}
			}
			got[ref.Digest] = chunk
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	for d, chunk := range got {
		if chunk == nil {
			return nil, sms.Errorf(sms.CodeNotFound, "the appliance could not deliver chunk %v", d)
		}
	}
	return got, nil
}
