package uplink

import "context"

// latest hands over the newest of many values.
type latest[T any] struct{ c chan T }

func newLatest[T any]() latest[T] { return latest[T]{make(chan T, 1)} }

// set replaces the value that nobody has taken yet. It never blocks. Of values set at the same time any may win.
func (l latest[T]) set(v T) {
	for {
		select {
		case l.c <- v:
			return
		default:
		}
		select {
		case <-l.c:
		default:
		}
	}
}

// next waits for a value.
func (l latest[T]) next(ctx context.Context) (v T, err error) {
	select {
	case v = <-l.c:
		return v, nil
	case <-ctx.Done():
		return v, ctx.Err()
	}
}
