package storagetest

import (
	"context"
	"io"
	"iter"
	"sync"

	"encdump/storage"
)

// Op names a method of storage.Bucket.
type Op string

// The operations that a Fault can name and a Faulty counts.
const (
	Put    Op = "put"
	Open   Op = "open"
	List   Op = "list"
	Delete Op = "delete"
)

// Fault says which calls go wrong, and how. Op, Key and Nth choose the calls, the rest is what happens to them; several
// kinds may be set at once.
type Fault struct {
	Op  Op     // empty: every operation
	Key string // the object; for List the prefix. Empty: every one
	Nth int    // only the nth call, from 1, of those that Op and Key choose since the fault was added. 0: every one

	// Err is what fails, inside a *storage.Error. With Late, the operation (Put, Delete) is done first, as when a
	// service's answer is lost. Else with After > 0, so many bytes pass first: of the reader in Put, of the range in
	// Open; where there are fewer bytes, nothing happens. With After < 0 Open succeeds and the first Read fails.
	Err   error
	After int64
	Late  bool

	// Cut ends what Open returns in io.EOF after so many bytes of the range, as if the object were shorter; -1 is after none.
	Cut int64

	// MaxRead is the number of bytes that one Read of Open's reader returns at most.
	MaxRead int

	// Corrupt is XORed with the bytes that Open's reader returns, by their offset in the object.
	Corrupt map[int64]byte

	// Gate holds the call up at its beginning, or with After > 0 behind so many bytes, until it is released or
	// the call's context is done.
	Gate *Gate
}

// Gate makes calls wait; see Fault.
type Gate struct {
	reached, released         chan struct{}
	reachedOnce, releasedOnce sync.Once
}

// NewGate returns a closed gate.
func NewGate() *Gate {
	return &Gate{reached: make(chan struct{}), released: make(chan struct{})}
}

// Reached is closed when the first call waits at the gate.
func (g *Gate) Reached() <-chan struct{} { return g.reached }

// Release opens the gate for good. It may be called several times.
func (g *Gate) Release() { g.releasedOnce.Do(func() { close(g.released) }) }

func (g *Gate) wait(ctx context.Context) error {
	if g == nil {
		return nil
	}
	g.reachedOnce.Do(func() { close(g.reached) })
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-g.released:
		return nil
	}
}

// Faulty is a bucket that goes wrong where it is told to, and counts what is asked of it. It is safe for concurrent use.
type Faulty struct {
	inner storage.Bucket

	mu      sync.Mutex
	rules   []*rule
	calls   map[Op]int
	read    int64
	written int64
}

type rule struct {
	Fault
	seen int // calls that Op and Key chose
}

// NewFaulty wraps b, which does the work. Without a call of Add it only counts.
func NewFaulty(b storage.Bucket) *Faulty {
	return &Faulty{inner: b, calls: map[Op]int{}}
}

// Add makes calls from now on go wrong in this way, too. Where several faults choose a call, the one added last is
// taken. It returns f.
func (f *Faulty) Add(fault Fault) *Faulty {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &rule{Fault: fault})
	return f
}

// Heal forgets all faults; calls that are under way keep theirs.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// Calls returns how often op was called.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// BytesRead returns how many bytes the readers of all Opens have handed out.
func (f *Faulty) BytesRead() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read
}

// BytesPut returns how many bytes all Puts have taken from their readers.
func (f *Faulty) BytesPut() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.written
}

// begin counts the call and returns what is to happen to it.
func (f *Faulty) begin(op Op, key string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	var chosen Fault
	for _, r := range f.rules {
		if r.Op != "" && r.Op != op || r.Key != "" && r.Key != key {
			continue
		}
		r.seen++
		if r.Nth == 0 || r.Nth == r.seen {
			chosen = r.Fault
		}
	}
	return chosen
}

// atStart does what a fault does before the operation.
func (f *Faulty) atStart(ctx context.Context, op Op, key string, fault Fault) error {
	if fault.After <= 0 {
		if err := fault.Gate.wait(ctx); err != nil {
			return f.fail(op, key, err)
		}
	}
	// List and Delete move no bytes to wait for.
	streams := op == Put || op == Open
	if fault.Err != nil && !fault.Late && (fault.After == 0 || fault.After < 0 && op != Open || !streams) {
		return f.fail(op, key, fault.Err)
	}
	return nil
}

// fail keeps nil, so that it can wrap a Fault's Err that is not set.
func (f *Faulty) fail(op Op, key string, err error) error {
	if err == nil {
		return nil
	}
	return &storage.Error{Op: string(op), Key: key, Bucket: f.inner.String(), Err: err}
}

// String is that of the bucket inside.
func (f *Faulty) String() string { return f.inner.String() }

// Put implements storage.Bucket.
func (f *Faulty) Put(ctx context.Context, key string, r io.Reader, o *storage.PutOptions) error {
	fault := f.begin(Put, key)
	if err := f.atStart(ctx, Put, key, fault); err != nil {
		return err
	}
	s := &stream{ctx: ctx, f: f, key: key, r: r, fault: Fault{After: fault.After, Gate: fault.Gate}, count: &f.written}
	if !fault.Late {
		s.fault.Err = f.fail(Put, key, fault.Err)
	}
	err := f.inner.Put(ctx, key, s, o)
	if s.injected != nil {
		return s.injected
	}
	if err == nil && fault.Late {
		err = f.fail(Put, key, fault.Err)
	}
	return err
}

// Open implements storage.Bucket.
func (f *Faulty) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fault := f.begin(Open, key)
	if err := f.atStart(ctx, Open, key, fault); err != nil {
		return nil, err
	}
	r, err := f.inner.Open(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	fault.Err = f.fail("read", key, fault.Err)
	return &stream{ctx: ctx, f: f, key: key, r: r, Closer: r, fault: fault, offset: offset, count: &f.read}, nil
}

// List implements storage.Bucket.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		fault := f.begin(List, prefix)
		if err := f.atStart(ctx, List, prefix, fault); err != nil {
			yield(storage.Object{}, err)
			return
		}
		f.inner.List(ctx, prefix)(yield)
	}
}

// Delete implements storage.Bucket.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	fault := f.begin(Delete, key)
	if err := f.atStart(ctx, Delete, key, fault); err != nil {
		return err
	}
	err := f.inner.Delete(ctx, key)
	if err == nil && fault.Late {
		err = f.fail(Delete, key, fault.Err)
	}
	return err
}

// stream is a reader that goes wrong.
type stream struct {
	ctx context.Context
	f   *Faulty
	key string
	r   io.Reader
	io.Closer
	fault    Fault
	offset   int64  // in the object, of the first byte of r
	done     int64  // bytes handed out
	passed   bool   // the gate
	injected error  // fault.Err, once it was returned
	count    *int64 // under f.mu
}

func (s *stream) Read(p []byte) (int, error) {
	limit := int64(len(p)) // before something happens
	if s.fault.After > 0 {
		if s.done == s.fault.After && !s.passed {
			if err := s.fault.Gate.wait(s.ctx); err != nil {
				return 0, s.f.fail("read", s.key, err)
			}
			s.passed = true
		}
		if s.done < s.fault.After {
			limit = min(limit, s.fault.After-s.done)
		}
	}
	if s.fault.Err != nil && s.fault.After != 0 && s.done >= s.fault.After {
		s.injected = s.fault.Err
		return 0, s.injected
	}
	if s.fault.Cut != 0 {
		limit = min(limit, max(s.fault.Cut, 0)-s.done)
		if limit == 0 && len(p) > 0 {
			return 0, io.EOF
		}
	}
	if s.fault.MaxRead > 0 {
		limit = min(limit, int64(s.fault.MaxRead))
	}
	n, err := s.r.Read(p[:limit])
	for at, mask := range s.fault.Corrupt {
		if i := at - s.offset - s.done; 0 <= i && i < int64(n) {
			p[i] ^= mask
		}
	}
	s.done += int64(n)
	s.f.mu.Lock()
	*s.count += int64(n)
	s.f.mu.Unlock()
	return n, err
}
