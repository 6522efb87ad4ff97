package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"encdump/storage"
)

// Mem returns an empty bucket in memory, for tests of what is built on buckets. It passes Conformance, and is safe for
// concurrent use. Each has a String of its own, which OpenURL does not know.
func Mem() storage.Bucket {
	return &mem{name: fmt.Sprintf("mem://%d", memCount.Add(1)), objects: map[string]memObject{}}
}

var memCount atomic.Int64

type mem struct {
	name    string
	mu      sync.Mutex
	objects map[string]memObject
}

type memObject struct {
	data     []byte // never changed
	modified time.Time
}

func (m *mem) String() string { return m.name }

func (m *mem) fail(op, key string, err error) error {
	return &storage.Error{Op: op, Key: key, Bucket: m.name, Err: err}
}

func check(ctx context.Context, key string) error {
	if err := storage.ValidKey(key); err != nil {
		return err
	}
	return ctx.Err()
}

func (m *mem) Put(ctx context.Context, key string, r io.Reader, o *storage.PutOptions) error {
	if err := check(ctx, key); err != nil {
		return m.fail("put", key, err)
	}
	var data bytes.Buffer
	_, err := data.ReadFrom(ctxReader{ctx, r})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return m.fail("put", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken && o != nil && o.IfAbsent {
		return m.fail("put", key, storage.ErrExists)
	}
	m.objects[key] = memObject{data.Bytes(), time.Now()}
	return nil
}

func (m *mem) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := check(ctx, key); err != nil {
		return nil, m.fail("open", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	switch {
	case !ok:
		return nil, m.fail("open", key, storage.ErrNotFound)
	case offset < 0:
		return nil, m.fail("open", key, errors.New("negative offset"))
	case offset > int64(len(o.data)):
		return nil, m.fail("open", key, storage.ErrRange)
	}
	data := o.data[offset:]
	if length >= 0 {
		data = data[:min(length, int64(len(data)))]
	}
	return io.NopCloser(&memReader{ctx, m, key, bytes.NewReader(data)}), nil
}

func (m *mem) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		m.mu.Lock()
		objects := maps.Clone(m.objects)
		m.mu.Unlock()
		if err := ctx.Err(); err != nil {
			yield(storage.Object{}, m.fail("list", "", err))
			return
		}
		for _, key := range slices.Sorted(maps.Keys(objects)) {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(storage.Object{}, m.fail("list", "", err))
				return
			}
			o := objects[key]
			if !yield(storage.Object{Key: key, Size: int64(len(o.data)), Modified: o.modified}, nil) {
				return
			}
		}
	}
}

func (m *mem) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return m.fail("delete", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

type memReader struct {
	ctx context.Context
	m   *mem
	key string
	r   *bytes.Reader
}

func (r *memReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.m.fail("read", r.key, err)
	}
	return r.r.Read(p)
}

// ctxReader fails once its context is done.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
