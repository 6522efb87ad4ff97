package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"encdump/storage"
	"encdump/storage/storagetest/servers"
)

// data returns n bytes that do not repeat.
func data(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// wantState checks, past all faults, that key holds content, or with nil that nothing is there, and that no upload is left.
func wantState(t *testing.T, s *servers.S3Server, bucket, key string, content []byte) {
	t.Helper()
	client := s.Client()
	out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	switch {
	case err != nil && codeOf(err) != "NoSuchKey":
		t.Fatal(err)
	case err != nil && content != nil:
		t.Errorf("%s is not there", key)
	case err == nil && content == nil:
		t.Errorf("%s is visible", key)
	case err == nil:
		got, err := io.ReadAll(out.Body)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s holds %d bytes other than the %d that were put, %v", key, len(got), len(content), err)
		}
	}
	if out != nil {
		out.Body.Close()
	}
	if ids := uploadIDs(t, s, bucket); len(ids) > 0 {
		t.Errorf("with %s, uploads are left: %q", key, ids)
	}
}

func uploadIDs(t *testing.T, s *servers.S3Server, bucket string) (ids []string) {
	t.Helper()
	out, err := s.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range out.Uploads {
		ids = append(ids, *u.UploadId)
	}
	return ids
}

// chunks makes uploads of few bytes take several chunks.
var chunks = []string{"chunk-size", "5MiB", "concurrency", "2"}

const multi = 6 << 20 // two of these chunks

// TestPutFaults lets each request of a Put go wrong in each way.
func TestPutFaults(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	type outcome struct {
		kind error  // nil: it succeeds
		text string // of the error
	}
	done := outcome{}
	gaveUp := outcome{storage.ErrTemporary, "no success in 700ms of trying"}
	tests := []struct {
		name string
		servers.S3Fault
		want    outcome
		publish *outcome // of the request that makes the object visible, where that differs
	}{
		{"500 twice", servers.S3Fault{Times: 2, Status: 500, Code: "InternalError"}, done, nil},
		{"503 twice", servers.S3Fault{Times: 2, Status: 503, Code: "SlowDown"}, done, nil},
		{"500 without a word", servers.S3Fault{Times: 1, Status: 500}, done, nil},
		{"bad digest once", servers.S3Fault{Times: 1, Status: 400, Code: "BadDigest"}, done, nil},
		{"changed on the way", servers.S3Fault{Times: 1, Flip: true}, done, nil},
		{"timeout once", servers.S3Fault{Times: 1, Status: 400, Code: "RequestTimeout"}, done, nil},
		{"conflict twice", servers.S3Fault{Times: 2, Status: 409, Code: "ConditionalRequestConflict"}, done, nil},
		{"500 always", servers.S3Fault{Times: servers.Always, Status: 500, Code: "InternalError"}, gaveUp, nil},
		{"denied", servers.S3Fault{Times: servers.Always, Status: 403, Code: "AccessDenied"}, outcome{storage.ErrPermission, "made up (AccessDenied)"}, nil},
		{"expired", servers.S3Fault{Times: servers.Always, Status: 403, Code: "ExpiredToken"}, outcome{storage.ErrPermission, "the credentials have expired"}, nil},
		{"unknown", servers.S3Fault{Times: servers.Always, Status: 400, Code: "Strange"}, outcome{nil, "made up (Strange)"}, nil},
		{"answer lost once", servers.S3Fault{Times: 1, Lost: true}, done, nil},
		{"answer lost twice", servers.S3Fault{Times: 2, Lost: true}, done, nil},
		{"answers always lost", servers.S3Fault{Times: servers.Always, Lost: true}, gaveUp, &done},
	}
	for _, size := range []int{0, 1000, multi} {
		ops := []string{"PutObject"}
		if size == multi {
			ops = []string{"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}
		}
		for _, op := range ops {
			for _, test := range tests {
				for _, ifAbsent := range []bool{false, true} {
					if ifAbsent && (op == "CreateMultipartUpload" || op == "UploadPart") {
						continue // knows nothing of it
					}
					t.Run(fmt.Sprintf("%d bytes/%s/%s/%v", size, op, test.name, ifAbsent), func(t *testing.T) {
						t.Parallel()
						f, bucket, content := servers.StartFaultyS3(t, s), newBucket(t, s, false), data(size)
						b := openBucket(t, f.URL(bucket+"/p", chunks...), &storage.Options{Patience: 700 * time.Millisecond, Timeout: 5 * time.Second})
						f.Set(op, test.S3Fault)
						err := b.Put(t.Context(), "key", bytes.NewReader(content), &storage.PutOptions{IfAbsent: ifAbsent})
						want := test.want
						if test.publish != nil && (op == "PutObject" || op == "CompleteMultipartUpload") {
							want = *test.publish
						}
						if want == done {
							if err != nil {
								t.Fatal(err)
							}
							wantState(t, s, bucket, "p/key", content)
							return
						}
						if err == nil || want.kind != nil && !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.text) {
							t.Errorf("error %v, want %v with %q", err, want.kind, want.text)
						}
						if !strings.HasPrefix(err.Error(), "put key to s3://"+bucket+"/p: ") {
							t.Errorf("error reads %q", err)
						}
						wantState(t, s, bucket, "p/key", nil)
					})
				}
			}
		}
	}
}

// A name that somebody else takes while an answer is lost is not ours.
func TestLostAnswerOfAnother(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	for _, size := range []int{1000, multi} {
		for _, op := range []string{"PutObject", "CompleteMultipartUpload"} {
			if (op == "PutObject") != (size == 1000) {
				continue
			}
			f, bucket := servers.StartFaultyS3(t, s), newBucket(t, s, false)
			b := openBucket(t, f.URL(bucket, chunks...), nil)
			other := data(size) // the same content: not even that makes it ours
			f.Set(op, servers.S3Fault{Times: 1, Status: 500, Hook: func() {
				key := "key"
				if _, err := s.Client().PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(other)}); err != nil {
					t.Error(err)
				}
			}})
			err := b.Put(t.Context(), "key", bytes.NewReader(other), &storage.PutOptions{IfAbsent: true})
			if !errors.Is(err, storage.ErrExists) {
				t.Errorf("%d bytes: %v, want ErrExists", size, err)
			}
			wantState(t, s, bucket, "key", other)
		}
	}
}

// An upload that cannot be aborted is named, found, and removed.
func TestAbortFails(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	f, bucket := servers.StartFaultyS3(t, s), newBucket(t, s, false)
	b := openBucket(t, f.URL(bucket, chunks...), &storage.Options{Patience: 300 * time.Millisecond})
	f.Set("UploadPart", servers.S3Fault{Times: servers.Always, After: 1, Status: 403, Code: "AccessDenied"})
	f.Set("AbortMultipartUpload", servers.S3Fault{Times: servers.Always, Status: 503, Code: "SlowDown"})
	err := b.Put(t.Context(), "key", bytes.NewReader(data(multi)), nil)
	ids := uploadIDs(t, s, bucket)
	if !errors.Is(err, storage.ErrPermission) || len(ids) != 1 || !strings.Contains(err.Error(), "stays as upload "+ids[0]) {
		t.Fatalf("%v, left: %q", err, ids)
	}
	f.Set("AbortMultipartUpload", servers.S3Fault{})
	if err := b.Put(t.Context(), "other", strings.NewReader("x"), nil); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range 2 {
		for u, err := range b.Uploads(t.Context(), "ke") {
			if err != nil || u.Key != "key" || u.ID != ids[0] || time.Since(u.Started).Abs() > time.Minute {
				t.Fatalf("%+v, %v", u, err)
			}
			n++
			for range 2 { // absent is no error
				if err := b.AbortUpload(t.Context(), u); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if n != 1 {
		t.Errorf("%d uploads were listed, want 1 and then none", n)
	}
	wantState(t, s, bucket, "key", nil)
}

// The upload of a Put that fails by its reader or its context is gone, and so it is when somebody else has removed it.
func TestNothingStaysBehind(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	f, bucket := servers.StartFaultyS3(t, s), newBucket(t, s, false)
	b := openBucket(t, f.URL(bucket, chunks...), nil)
	errBoom := errors.New("boom")
	fails := &hookReader{func() error { return errBoom }}
	err := b.Put(t.Context(), "key", io.MultiReader(bytes.NewReader(data(multi)), fails), nil)
	if !errors.Is(err, errBoom) || f.Count("CreateMultipartUpload") != 1 {
		t.Errorf("%v", err)
	}
	wantState(t, s, bucket, "key", nil)

	for name, op := range map[string]string{"while a chunk is sent": "UploadPart", "while it begins": "CreateMultipartUpload"} {
		ctx, cancel := context.WithCancel(t.Context())
		f.Set(op, servers.S3Fault{Times: 1, Status: 503, Hook: cancel})
		if err := b.Put(ctx, "key", bytes.NewReader(data(multi)), nil); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled %s: %v", name, err)
		}
		wantState(t, s, bucket, "key", nil)
	}

	// Cancelled too late: the request that makes it visible is on its way, and is not left in doubt.
	for _, size := range []int{1000, multi} {
		op := map[int]string{1000: "PutObject", multi: "CompleteMultipartUpload"}[size]
		ctx, cancel := context.WithCancel(t.Context())
		f.Set(op, servers.S3Fault{Times: 1, Lost: true, Hook: cancel})
		if err := b.Put(ctx, "late", bytes.NewReader(data(size)), nil); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		wantState(t, s, bucket, "late", data(size))
	}

	f.Set("CompleteMultipartUpload", servers.S3Fault{Times: 1, Hook: func() {
		for _, id := range uploadIDs(t, s, bucket) {
			if err := b.AbortUpload(t.Context(), storage.Upload{Key: "key", ID: id}); err != nil {
				t.Error(err)
			}
		}
	}})
	err = b.Put(t.Context(), "key", bytes.NewReader(data(multi)), nil)
	if err == nil || errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrTemporary) {
		t.Errorf("an upload that was aborted by others: %v", err)
	}
	wantState(t, s, bucket, "key", nil)
}

type hookReader struct{ f func() error }

func (h *hookReader) Read([]byte) (int, error) { return 0, h.f() }

// TestReadFaults lets reading requests go wrong.
func TestReadFaults(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	bucket, content := newBucket(t, s, false), data(1<<20)
	if err := openBucket(t, s.URL(bucket), nil).Put(t.Context(), "key", bytes.NewReader(content), nil); err != nil {
		t.Fatal(err)
	}
	list := func(b *Bucket) ([]byte, error) {
		for o, err := range b.List(t.Context(), "") {
			if err != nil || o.Key != "key" || o.Size != int64(len(content)) {
				return nil, err
			}
			return content, nil
		}
		return nil, nil
	}
	read := func(b *Bucket) ([]byte, error) {
		r, err := b.Open(t.Context(), "key", 0, -1)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	remove := func(b *Bucket) ([]byte, error) {
		return content, b.Delete(t.Context(), "none")
	}
	for _, test := range []struct {
		op string
		servers.S3Fault
		kind error
		text string
	}{
		{"", servers.S3Fault{Times: 3, Status: 500}, nil, ""},
		{"", servers.S3Fault{Times: 3, Status: 503, Code: "SlowDown"}, nil, ""},
		{"", servers.S3Fault{Times: 2, Lost: true}, nil, ""},
		{"", servers.S3Fault{Times: servers.Always, Status: 500}, storage.ErrTemporary, "no success in 700ms of trying"},
		{"", servers.S3Fault{Times: servers.Always, Lost: true}, storage.ErrTemporary, "no success in 700ms of trying"},
		{"", servers.S3Fault{Times: servers.Always, Status: 403, Code: "AccessDenied"}, storage.ErrPermission, "made up (AccessDenied)"},
		{"", servers.S3Fault{Times: servers.Always, Status: 403, Code: "ExpiredToken"}, storage.ErrPermission, "expired"},
		{"", servers.S3Fault{Times: servers.Always, Status: 403, Code: "SignatureDoesNotMatch"}, storage.ErrPermission, "secret key"},
		{"", servers.S3Fault{Times: servers.Always, Status: 401}, storage.ErrPermission, ""},
		{"", servers.S3Fault{Times: servers.Always, Status: 404, Code: "NoSuchBucket"}, storage.ErrNotFound, "no such bucket"},
		{"GetObject", servers.S3Fault{Times: servers.Always, Cut: 100_000}, storage.ErrTemporary, "read key from s3://" + bucket},
		{"ListObjectsV2", servers.S3Fault{Times: 1, Cut: 100}, nil, ""},
		{"ListObjectsV2", servers.S3Fault{Times: servers.Always, Cut: 100}, storage.ErrTemporary, "no success"},
	} {
		for op, do := range map[string]func(*Bucket) ([]byte, error){"ListObjectsV2": list, "GetObject": read, "DeleteObject": remove} {
			if test.op != "" && test.op != op {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d %s lost %v cut %v times %d", op, test.Status, test.Code, test.Lost, test.Cut, test.Times), func(t *testing.T) {
				t.Parallel()
				f := servers.StartFaultyS3(t, s)
				b := openBucket(t, f.URL(bucket), &storage.Options{Patience: 700 * time.Millisecond, Timeout: 5 * time.Second})
				if test.kind == nil {
					b = openBucket(t, f.URL(bucket), nil)
				}
				f.Set(op, test.S3Fault)
				got, err := do(b)
				if test.kind == nil && (err != nil || !bytes.Equal(got, content)) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if test.kind != nil && (!errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.text)) {
					t.Errorf("%v, want %v with %q", err, test.kind, test.text)
				}
			})
		}
	}
}

// watch is a slog.Handler that tells of the first attempt that failed.
type watch struct {
	slog.Handler
	once   sync.Once
	failed chan struct{}
}

func newWatch() *watch { return &watch{Handler: slog.DiscardHandler, failed: make(chan struct{})} }

func (w *watch) Enabled(context.Context, slog.Level) bool { return true }

func (w *watch) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "request failed") {
		w.once.Do(func() { close(w.failed) })
	}
	return nil
}

// TestNetwork has a network between the service and us that is bad for a while, until the first attempt has failed, or
// for ever.
func TestNetwork(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	type toxic struct {
		kind, stream string
		attributes   map[string]any
		harmless     bool // all goes well though it stays
	}
	for name, bad := range map[string]toxic{
		"latency":     {"latency", "downstream", map[string]any{"latency": 100, "jitter": 50}, true},
		"bandwidth":   {"bandwidth", "upstream", map[string]any{"rate": 20000}, true},
		"cut request": {"limit_data", "upstream", map[string]any{"bytes": 300}, false},
		"cut answer":  {"limit_data", "downstream", map[string]any{"bytes": 30}, false},
		"reset":       {"reset_peer", "downstream", map[string]any{"timeout": 0}, false},
		"reset late":  {"reset_peer", "upstream", map[string]any{"timeout": 20}, false},
		"silence":     {"timeout", "downstream", map[string]any{"timeout": 0}, false},
		"deafness":    {"timeout", "upstream", map[string]any{"timeout": 0}, false},
		"down":        {"", "", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := servers.StartProxy(t, s.Address)
			proxied := &servers.S3Server{Endpoint: "http://" + p.Address}
			break_ := func() {
				if bad.kind == "" {
					p.Enable(t, false)
				} else {
					p.Toxic(t, bad.kind, bad.stream, bad.attributes)
				}
			}
			bucket, small, large := newBucket(t, s, false), data(1000), data(multi)
			if err := openBucket(t, s.URL(bucket), nil).Put(t.Context(), "there", bytes.NewReader(small), nil); err != nil {
				t.Fatal(err)
			}
			operations := map[string]func(b *Bucket) error{
				"small": func(b *Bucket) error { return b.Put(t.Context(), "small", bytes.NewReader(small), nil) },
				"large": func(b *Bucket) error { return b.Put(t.Context(), "large", bytes.NewReader(large), nil) },
				"open": func(b *Bucket) error {
					r, err := b.Open(t.Context(), "there", 0, -1)
					if err != nil {
						return err
					}
					defer r.Close()
					got, err := io.ReadAll(r)
					if err == nil && !bytes.Equal(got, small) {
						err = errors.New("other bytes were read")
					}
					return err
				},
				"list": func(b *Bucket) error {
					for _, err := range b.List(t.Context(), "there") {
						return err
					}
					return errors.New("nothing is listed")
				},
			}
			if !bad.harmless {
				o := &storage.Options{Patience: 200 * time.Millisecond, Timeout: 150 * time.Millisecond}
				for name, do := range operations {
					break_()
					err := do(openBucket(t, proxied.URL(bucket, chunks...), o))
					if !errors.Is(err, storage.ErrTemporary) {
						t.Errorf("%s: %v, want ErrTemporary", name, err)
					}
					p.Heal(t)
					if bad.stream == "downstream" && name == "small" {
						// The service hears us, and no answer comes to anything: nobody can know.
						if !strings.Contains(err.Error(), "whether the object was stored is not known") {
							t.Errorf("%v", err)
						}
						if err := openBucket(t, s.URL(bucket), nil).Delete(t.Context(), name); err != nil {
							t.Error(err)
						}
					}
				}
				if bad.stream == "downstream" {
					removeUploads(t, openBucket(t, s.URL(bucket), nil))
				}
				wantState(t, s, bucket, "large", nil)
				wantState(t, s, bucket, "small", nil)
			}
			for name, do := range operations {
				break_()
				w := newWatch()
				b := openBucket(t, proxied.URL(bucket, chunks...), &storage.Options{Patience: 30 * time.Second, Timeout: 500 * time.Millisecond, Logger: slog.New(w)})
				result := make(chan error)
				go func() { result <- do(b) }()
				var err error
				if bad.harmless {
					err = <-result
				} else {
					select {
					case <-w.failed:
						p.Heal(t)
						err = <-result
					case err = <-result:
						t.Errorf("%s: nothing failed", name)
					}
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if bad.harmless {
					p.Heal(t)
				}
			}
			wantState(t, s, bucket, "large", large)
			wantState(t, s, bucket, "small", small)
		})
	}
}

// A transfer that stands still half way is a temporary error, and one that is slow is none.
func TestStandstill(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	p := servers.StartProxy(t, s.Address)
	proxied := &servers.S3Server{Endpoint: "http://" + p.Address}
	bucket, content := newBucket(t, s, false), data(multi)
	open := func(patience, timeout time.Duration) *Bucket {
		return openBucket(t, proxied.URL(bucket, chunks...), &storage.Options{Patience: patience, Timeout: timeout})
	}
	p.Toxic(t, "bandwidth", "upstream", map[string]any{"rate": 8000}) // a chunk takes 0.6 s
	if err := open(200*time.Millisecond, 5*time.Second).Put(t.Context(), "key", bytes.NewReader(content), nil); err != nil {
		t.Fatal(err)
	}
	p.Heal(t)
	wantState(t, s, bucket, "key", content)

	b := open(200*time.Millisecond, 300*time.Millisecond)
	p.Toxic(t, "bandwidth", "downstream", map[string]any{"rate": 8000}) // all takes 0.8 s
	slow, err := b.Open(t.Context(), "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if got, err := io.ReadAll(slow); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	p.Heal(t)

	r, err := b.Open(t.Context(), "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
		t.Fatal(err)
	}
	p.Toxic(t, "timeout", "downstream", map[string]any{"timeout": 0})
	n, err := io.Copy(io.Discard, r)
	if !errors.Is(err, storage.ErrTemporary) || n >= multi || !strings.Contains(err.Error(), "no byte in 300ms") {
		t.Errorf("after %d bytes: %v", n, err)
	}
	p.Heal(t)

	// The network goes away for good in the middle of an upload: what stays is said.
	first := io.MultiReader(bytes.NewReader(content), &hookReader{func() error { p.Enable(t, false); return io.EOF }})
	err = b.Put(t.Context(), "gone", first, nil)
	if !errors.Is(err, storage.ErrTemporary) || !strings.Contains(err.Error(), "stays as upload") {
		t.Errorf("%v", err)
	}
	p.Enable(t, true)
	removeUploads(t, b)
	wantState(t, s, bucket, "gone", nil)
}

// removeUploads removes what could not be removed while there was no network.
func removeUploads(t *testing.T, b *Bucket) {
	t.Helper()
	for u, err := range b.Uploads(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if err := b.AbortUpload(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
}
