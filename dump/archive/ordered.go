package archive

import (
	"context"
	"io"
	"sync"
)

// ordered runs jobs on a fixed number of goroutines and hands on their results
// in the order in which the jobs were given. One goroutine gives jobs, one
// takes results; a cancelled context frees both.
type ordered[T any] struct {
	ctx     context.Context
	jobs    chan func()
	results chan chan result[T]
}

type result[T any] struct {
	value T
	err   error
}

// newOrdered starts workers goroutines. At most ahead results wait to be taken,
// those under way included, so ahead should be more than workers.
func newOrdered[T any](ctx context.Context, workers, ahead int) *ordered[T] {
	o := &ordered[T]{ctx, make(chan func()), make(chan chan result[T], ahead)}
	for range workers {
		go func() {
			for {
				select {
				case job, ok := <-o.jobs:
					if !ok {
						return
					}
					job()
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return o
}

// do gives a job; it waits while too many results have not been taken.
func (o *ordered[T]) do(job func() (T, error)) error {
	c := make(chan result[T], 1)
	select {
	case o.results <- c:
	case <-o.ctx.Done():
		return context.Cause(o.ctx)
	}
	select {
	case o.jobs <- func() { v, err := job(); c <- result[T]{v, err} }:
		return nil
	case <-o.ctx.Done():
		return context.Cause(o.ctx)
	}
}

// close says that no job follows, and ends the workers. The giver of jobs must
// call it exactly once.
func (o *ordered[T]) close() {
	close(o.jobs)
	close(o.results)
}

// next returns the result of the next job, in the order of do; io.EOF after the last.
func (o *ordered[T]) next() (T, error) {
	var zero T
	select {
	case c, ok := <-o.results:
		if !ok {
			return zero, io.EOF
		}
		select {
		case r := <-c:
			return r.value, r.err
		case <-o.ctx.Done():
		}
	case <-o.ctx.Done():
	}
	return zero, context.Cause(o.ctx)
}

// buffers is a fixed number of buffers, which bounds the memory of a stage:
// whoever wants one waits until another was put back.
type buffers struct {
	free chan []byte
	mu   sync.Mutex
	left int // not yet made
	size int
}

func newBuffers(count, size int) *buffers {
	return &buffers{free: make(chan []byte, count), left: count, size: size}
}

// get returns a buffer of length 0 and a capacity of at least the pool's size.
func (b *buffers) get(ctx context.Context) ([]byte, error) {
	select {
	case buf := <-b.free:
		return buf, nil
	default:
	}
	b.mu.Lock()
	if b.left > 0 {
		b.left--
		b.mu.Unlock()
		return make([]byte, 0, b.size), nil
	}
	b.mu.Unlock()
	select {
	case buf := <-b.free:
		return buf, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// put gives a buffer back. It may have grown.
func (b *buffers) put(buf []byte) { b.free <- buf[:0] }
