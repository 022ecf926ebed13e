package uplink

import (
	"context"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// Session is a run over a Link.
type Session struct{}

var _ Run = (*Session)(nil)

func (s *Session) ID() string       { panic("todo") }
func (s *Session) Domain() Domain   { panic("todo") }
func (s *Session) Parent() *Parent  { panic("todo") }
func (s *Session) Root() recipe.Ref { panic("todo") }
func (s *Session) Lane(i int) Lane  { panic("todo") }
func (s *Session) MaxLanes() int    { panic("todo") }
func (s *Session) PutNode(ctx context.Context, d digest.Digest, rec []byte) error {
	panic("todo")
}
func (s *Session) Node(ctx context.Context, d digest.Digest) ([]byte, error) { panic("todo") }
func (s *Session) Progress(p sms.Progress)                                   { panic("todo") }
func (s *Session) Notice(n sms.Notice)                                       { panic("todo") }
func (s *Session) Fetch(ctx context.Context, items []FetchItem, emit func(f frame.Frame) error) error {
	panic("todo")
}
func (s *Session) Commit(ctx context.Context, c sms.Commit) (sms.CommitResult, error) {
	panic("todo")
}
func (s *Session) Finish(ctx context.Context, o sms.Outcome) error { panic("todo") }
func (s *Session) Done() <-chan struct{}                           { panic("todo") }
func (s *Session) Err() error                                      { panic("todo") }
func (s *Session) Close() error                                    { panic("todo") }
