package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// tree is a small model of a client's files: directories of files with contents.
type tree map[string]map[string][]byte

// randomTree makes a tree of n files that compress somewhat; some are alike, some are long.
func randomTree(seed uint64, n int) tree {
	rng := rand.New(rand.NewPCG(seed, 1))
	t := tree{}
	for i := range n {
		dir := fmt.Sprintf("dir%03d", i/20)
		if t[dir] == nil {
			t[dir] = map[string][]byte{}
		}
		size := rng.IntN(40_000)
		switch rng.IntN(50) {
		case 0:
			size = 2 << 20
		case 1:
			size = 0
		}
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(rng.IntN(24))
		}
		if rng.IntN(10) == 0 {
			data = bytes.Repeat([]byte("the same in many files "), 400)
		}
		t[dir][fmt.Sprintf("file%05d", i)] = data
	}
	return t
}

func sortedKeys[V any](m map[string]V) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// sendTree backs a tree up through a run as an agent does: readers hash, ask and put on lanes of their own; the builder
// goes through the tree in order.
func sendTree(ctx context.Context, run uplink.Run, t tree) (sms.CommitResult, error) {
	started := time.Now()
	var files [][]byte
	for _, d := range sortedKeys(t) {
		for _, f := range sortedKeys(t[d]) {
			files = append(files, t[d][f])
		}
	}
	contents := make([]recipe.Content, len(files))
	readers := min(3, run.MaxLanes())
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() { errs[r] = readFiles(ctx, run, run.Lane(r), files, contents, r, readers) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return sms.CommitResult{}, err
	}
	root, err := buildTree(ctx, run, t, contents)
	if err != nil {
		return sms.CommitResult{}, err
	}
	return run.Commit(ctx, sms.Commit{Root: root, Started: started, Finished: time.Now()})
}

// readFiles is reader r of n: batches of files, every n-th batch.
func readFiles(ctx context.Context, run uplink.Run, lane uplink.Lane, files [][]byte, contents []recipe.Content, r, n int) error {
	const batch = 16
	h := digest.NewHasher(run.Domain().Keys.Data)
	nodes := digest.NewHasher(run.Domain().Keys.Node)
	enc := frame.NewEncoder()
	for at := r * batch; at < len(files); at += n * batch {
		var ds []digest.Digest
		var chunks [][]byte
		for i := at; i < min(at+batch, len(files)); i++ {
			sb := recipe.NewStreamBuilder(run, nodes)
			for rest := files[i]; len(rest) > 0; {
				c := rest[:min(len(rest), 700_000)]
				rest = rest[len(c):]
				d := h.Sum(c)
				ds, chunks = append(ds, d), append(chunks, c)
				if err := sb.Add(ctx, recipe.Extent{Length: uint64(len(c)), Digest: d}); err != nil {
					return err
				}
			}
			c, _, err := sb.Finish(ctx)
			if err != nil {
				return err
			}
			contents[i] = c
		}
		have, err := lane.Have(ctx, ds)
		if err != nil {
			return err
		}
		if err := putMissing(ctx, lane, enc, ds, chunks, have); err != nil {
			return err
		}
	}
	return nil
}

func putMissing(ctx context.Context, lane uplink.Lane, enc *frame.Encoder, ds []digest.Digest, chunks [][]byte, have []bool) error {
	var p frame.Packer
	put := func() error {
		if p.Empty() {
			return nil
		}
		defer p.Reset()
		return lane.Put(ctx, p.Encode(enc, nil))
	}
	for i := range ds {
		if have[i] {
			continue
		}
		if !p.Empty() && !p.Fits(len(chunks[i])) {
			if err := put(); err != nil {
				return err
			}
		}
		p.Add(ds[i], chunks[i])
	}
	return put()
}

func buildTree(ctx context.Context, run uplink.Run, t tree, contents []recipe.Content) (recipe.Ref, error) {
	h := digest.NewHasher(run.Domain().Keys.Node)
	root := recipe.NewDirBuilder(run, h)
	i := 0
	for _, d := range sortedKeys(t) {
		dir := recipe.NewDirBuilder(run, h)
		for _, f := range sortedKeys(t[d]) {
			e := recipe.Entry{Name: f, Mode: recipe.ModeRegular | 0o644, Size: uint64(len(t[d][f])), Content: contents[i]}
			i++
			if err := dir.Add(ctx, e, recipe.Totals{}); err != nil {
				return recipe.Ref{}, err
			}
		}
		ref, err := dir.Finish(ctx)
		if err != nil {
			return recipe.Ref{}, err
		}
		e := recipe.Entry{Name: d, Mode: recipe.ModeDir | 0o755, Content: recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}}
		if err := root.Add(ctx, e, ref.Totals); err != nil {
			return recipe.Ref{}, err
		}
	}
	return root.Finish(ctx)
}

// fetchTree restores a tree through a run: walk, collect, fetch several batches side by side, verify.
func fetchTree(ctx context.Context, run uplink.Run, root digest.Digest) (tree, error) {
	t := tree{}
	places := map[digest.Digest][][]byte{} // where each chunk goes
	var items []uplink.FetchItem
	err := walkDir(ctx, run, root, func(d recipe.Entry) error {
		t[d.Name] = map[string][]byte{}
		return walkDir(ctx, run, d.Content.Digest, func(f recipe.Entry) error {
			data := make([]byte, f.Size)
			t[d.Name][f.Name] = data
			it := recipe.NewStreamIter(run, f.Content, f.Size)
			for {
				x, err := it.Next(ctx)
				if err == io.EOF {
					return nil
				}
				if err != nil {
					return err
				}
				places[x.Digest] = append(places[x.Digest], data[x.Offset:x.Offset+x.Length])
				items = append(items, uplink.FetchItem{Digest: x.Digest, Length: uint32(x.Length)})
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return t, fetchAll(ctx, run, items, places)
}

func walkDir(ctx context.Context, src recipe.Source, dir digest.Digest, visit func(recipe.Entry) error) error {
	it := recipe.NewDirIter(src, dir)
	for {
		e, _, err := it.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(e); err != nil {
			return err
		}
	}
}

func fetchAll(ctx context.Context, run uplink.Run, items []uplink.FetchItem, places map[digest.Digest][][]byte) error {
	const workers = 3
	var wg sync.WaitGroup
	var mu sync.Mutex
	errs := make([]error, workers)
	part := (len(items) + workers - 1) / workers
	for w := range workers {
		wg.Go(func() {
			dec := frame.NewDecoder()
			h := digest.NewHasher(run.Domain().Keys.Data)
			mine := items[min(w*part, len(items)):min((w+1)*part, len(items))]
			for len(mine) > 0 && errs[w] == nil {
				n, bytes := 0, 0
				for n < len(mine) && bytes < 2<<20 {
					bytes += int(mine[n].Length)
					n++
				}
				errs[w] = run.Fetch(ctx, mine[:n], func(f frame.Frame) error {
					plain, err := dec.Decode(f, nil)
					if err != nil {
						return err
					}
					if err := f.Verify(h, plain); err != nil {
						return err
					}
					mu.Lock()
					defer mu.Unlock()
					for i, r := range f.Refs {
						for _, p := range places[r.Digest] {
							copy(p, f.Chunk(i, plain))
						}
					}
					return nil
				})
				mine = mine[n:]
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// equal tells the first difference of two trees.
func equal(a, b tree) error {
	if !slices.Equal(sortedKeys(a), sortedKeys(b)) {
		return fmt.Errorf("directories %v and %v", sortedKeys(a), sortedKeys(b))
	}
	for d := range a {
		if !slices.Equal(sortedKeys(a[d]), sortedKeys(b[d])) {
			return fmt.Errorf("%s: files %v and %v", d, sortedKeys(a[d]), sortedKeys(b[d]))
		}
		for f := range a[d] {
			if !bytes.Equal(a[d][f], b[d][f]) {
				return fmt.Errorf("%s/%s differs", d, f)
			}
		}
	}
	return nil
}
