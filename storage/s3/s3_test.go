package s3

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"encdump/storage"
	"encdump/storage/storagetest"
	"encdump/storage/storagetest/servers"
)

func TestMain(m *testing.M) {
	servers.SetS3Env()
	os.Exit(m.Run())
}

var impatient = &storage.Options{Patience: 3 * time.Second, Timeout: 2 * time.Second}

// openBucket opens a bucket for a test.
func openBucket(t *testing.T, url string, o *storage.Options) *Bucket {
	t.Helper()
	if o == nil {
		o = impatient
	}
	b, err := storage.OpenURL(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := storage.As[*Bucket](b)
	if !ok {
		t.Fatalf("%T holds no *Bucket", b)
	}
	return s
}

var buckets atomic.Int32

// newBucket makes an empty bucket of a name of its own.
func newBucket(t *testing.T, s *servers.S3Server, lock bool) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", buckets.Add(1))
	s.MakeBucket(t, name, lock)
	return name
}

func TestConformance(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	tls := servers.S3(t, true)
	for name, open := range map[string]func(t *testing.T) storage.Bucket{
		"Bucket": func(t *testing.T) storage.Bucket { return openBucket(t, s.URL(newBucket(t, s, false)), nil) },
		// Other names, and over TLS, where the SDK sends checksums in another way.
		"Prefix": func(t *testing.T) storage.Bucket {
			return openBucket(t, tls.URL(newBucket(t, tls, false)+"/some/pre fix"), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Conformance(t, open)
		})
	}
}
