package dedup

import (
	"context"
	"iter"
)

// object is a small object of the store. Name is what it is sealed as and what callers know; it may lie under one or two
// blob names (its forms, FORMAT.md) while a key is being replaced.
type object struct {
	name  string
	blobs []string // the newest form first
}

// objects lists the small objects below a prefix by name, each once, however many forms it has. Use it, and deleteObject,
// wherever the store has small objects of several names: a blob's name is not the object's.
func (s *Store) objects(ctx context.Context, prefix string) iter.Seq2[object, error] {
	return func(yield func(object, error) bool) {
		for info, err := range s.blob.List(ctx, prefix, "") {
			if !yield(object{name: info.Name, blobs: []string{info.Name}}, err) || err != nil {
				return
			}
		}
	}
}

// deleteObject removes an object in all its forms. What is not there is deleted. It excludes Reseal, which would bring the
// object back.
func (s *Store) deleteObject(ctx context.Context, name string) error {
	return wrap("delete object", name, s.blob.Delete(ctx, name))
}
