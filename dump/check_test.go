package dump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"encdump/storage"
	"encdump/storage/storagetest"
)

func wantNothingLeft(t *testing.T, b storage.Bucket) {
	t.Helper()
	for o, err := range b.List(context.Background(), "") {
		t.Errorf("left is %q, %v", o.Key, err)
	}
}

func TestCheck(t *testing.T) {
	refused := fmt.Errorf("%w: policy", storage.ErrPermission)
	boom := errors.New("boom")
	for name, test := range map[string]struct {
		fault  storagetest.Fault
		failed string // steps that failed
		ok     bool
		left   bool
	}{
		"all may be done":       {ok: true},
		"writing fails":         {storagetest.Fault{Op: storagetest.Put, Err: boom}, "write read", false, false},
		"answer of write lost":  {storagetest.Fault{Op: storagetest.Put, Err: boom, Late: true}, "write read", false, false},
		"writing not permitted": {storagetest.Fault{Op: storagetest.Put, Err: refused}, "write read", false, false},
		"listing fails":         {storagetest.Fault{Op: storagetest.List, Err: boom}, "list", false, false},
		"listing not permitted": {storagetest.Fault{Op: storagetest.List, Err: refused}, "list", false, false},
		"reading fails":         {storagetest.Fault{Op: storagetest.Open, Err: boom}, "read", false, false},
		"reading breaks off":    {storagetest.Fault{Op: storagetest.Open, Cut: 5}, "read", false, false},
		"other bytes are read":  {storagetest.Fault{Op: storagetest.Open, Corrupt: map[int64]byte{3: 1}}, "read", false, false},
		"reading not permitted": {storagetest.Fault{Op: storagetest.Open, Err: refused}, "read", true, false},
		"deleting fails":        {storagetest.Fault{Op: storagetest.Delete, Err: boom}, "delete", false, true},
		"not to be deleted":     {storagetest.Fault{Op: storagetest.Delete, Err: refused}, "delete", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := storagetest.Mem()
			r, err := Check(t.Context(), storagetest.NewFaulty(b).Add(test.fault))
			if err != nil {
				t.Fatal(err)
			}
			var failed []string
			for _, s := range r.Steps {
				if s.Err != nil {
					failed = append(failed, s.Name)
				}
			}
			if got := strings.Join(failed, " "); got != test.failed || len(r.Steps) != 4 || r.OK() != test.ok || r.Left != "" != test.left || r.Skew != 0 {
				t.Errorf("failed %q, OK %v, left %q, skew %v", got, r.OK(), r.Left, r.Skew)
			}
			if test.left {
				b.Delete(t.Context(), r.Left)
			}
			wantNothingLeft(t, b)
		})
	}
}

// TestCheckInterrupted cancels each operation; the probe must be gone all the same.
func TestCheckInterrupted(t *testing.T) {
	for _, op := range []storagetest.Op{storagetest.Put, storagetest.List, storagetest.Open, storagetest.Delete} {
		synctest.Test(t, func(t *testing.T) {
			b := storagetest.Mem()
			gate := storagetest.NewGate()
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-gate.Reached(); cancel() }()
			r, err := Check(ctx, storagetest.NewFaulty(b).Add(storagetest.Fault{Op: op, Nth: 1, Gate: gate}))
			if !errors.Is(err, context.Canceled) || r.Left != "" {
				t.Errorf("%s: %+v, %v", op, r, err)
			}
			wantNothingLeft(t, b)
		})
	}
}

// other is a store whose clock is off, and that tells its settings.
type other struct {
	storage.Bucket
	off time.Duration
	put *storage.PutOptions
}

func (o *other) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for x, err := range o.Bucket.List(ctx, prefix) {
			x.Modified = x.Modified.Add(o.off).Truncate(time.Second)
			if !yield(x, err) {
				return
			}
		}
	}
}

func (o *other) Put(ctx context.Context, key string, r io.Reader, opts *storage.PutOptions) error {
	o.put = opts
	return o.Bucket.Put(ctx, key, r, opts)
}

func (o *other) Inspect(context.Context) []storage.Setting {
	return []storage.Setting{{Name: "versioning", Value: "enabled"}}
}

func TestCheckClockAndSettings(t *testing.T) {
	for _, off := range []time.Duration{0, time.Hour, -time.Hour, 90 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(777 * time.Millisecond)
			o := &other{Bucket: storagetest.Mem(), off: off}
			r, err := Check(t.Context(), storage.Resume(o, nil))
			if err != nil || (r.Skew-off).Abs() > time.Second {
				t.Errorf("off by %v: %v, %v", off, r.Skew, err)
			}
			if len(r.Settings) != 1 || !o.put.Transient {
				t.Errorf("settings %v, put with %v", r.Settings, o.put)
			}
		})
	}
}
