package s3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"encdump/storage"
	"encdump/storage/storagetest/servers"
)

func TestChunkSize(t *testing.T) {
	for _, first := range []int64{minChunk, defaultChunk, 100 << 20, maxChunk} {
		var sum, last int64
		for n := range maxChunks {
			size := chunkSize(first, n)
			if size < last || size < minChunk || size > maxChunk {
				t.Fatalf("chunk %d of %d is %d", n, first, size)
			}
			if size > first && size > sum/growEvery+first {
				t.Fatalf("chunk %d of %d is %d, after %d in all", n, first, size, sum)
			}
			last, sum = size, sum+size
		}
		if sum < 5<<40 {
			t.Errorf("10,000 chunks from %d on hold %d bytes, less than 5 TiB", first, sum)
		}
	}
	if got := 2 * defaultChunk * defaultConcurrency; got > 128<<20 {
		t.Errorf("two destinations hold %d bytes of chunks", got)
	}
}

func TestURL(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(bundle, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ url, want, text string }{ // want: String, or text of the error
		{"s3://b", "s3://b", ""},
		{"s3://b/", "s3://b", ""},
		{"s3://b/p/q/", "s3://b/p/q", ""},
		{"s3://b/p%3Fq?region=eu-west-1", "s3://b/p%3Fq?region=eu-west-1", ""},
		{"s3://b?sse=aws:kms&sse-kms-key-id=k&lock-mode=COMPLIANCE&lock-days=3", "s3://b?lock-days=3&lock-mode=COMPLIANCE&sse=aws%3Akms&sse-kms-key-id=k", ""},
		{"s3://b?endpoint=http://h:1&path-style=false&chunk-size=64MiB&concurrency=2", "s3://b?chunk-size=64MiB&concurrency=2&endpoint=http%3A%2F%2Fh%3A1&path-style=false", ""},
		{"s3://", "", "no bucket"},
		{"s3:///p", "", "no bucket"},
		{"s3://h:9000/b", "", "endpoint=https://HOST:PORT"},
		{"s3://b#f", "", "%23"},
		{"s3://b?SECRET=SECRET", "", "unknown option (known: ca-bundle, "},
		{"s3://b?region=a&region=SECRET", "", "option region: give it once"},
		{"s3://b?region=", "", "option region: give it once"},
		{"s3://b?region=%ZZSECRET", "", "not well formed"},
		{"s3://b?endpoint=SECRET:9000", "", "option endpoint: write http://"},
		{"s3://b?endpoint=https://SECRET:SECRET@h", "", "credentials come from"},
		{"s3://b?path-style=SECRET", "", "option path-style: true or false"},
		{"s3://b?ca-bundle=/SECRET", "", "option ca-bundle: cannot read the file: no such file"},
		{"s3://b?ca-bundle=" + bundle, "", "option ca-bundle: the file holds no certificate"},
		{"s3://b?insecure-skip-verify=SECRET", "", "true or false"},
		{"s3://b?sse=SECRET", "", "AES256 or aws:kms"},
		{"s3://b?sse-kms-key-id=SECRET", "", "needs sse=aws:kms"},
		{"s3://b?lock-mode=SECRET&lock-days=1", "", "governance or compliance"},
		{"s3://b?lock-mode=governance", "", "needs lock-days or lock-until"},
		{"s3://b?lock-days=0", "", "a number from 1"},
		{"s3://b?lock-days=1&lock-until=2999-01-01", "", "exclude each other"},
		{"s3://b?lock-until=SECRET", "", "a day as 2030-12-31"},
		{"s3://b?lock-until=2001-01-01", "", "that is past"},
		{"s3://b?checksum=SECRET", "", "when-supported, when-required or one of crc32"},
		{"s3://b?chunk-size=4MiB", "", "5MiB to 5120MiB"},
		{"s3://b?chunk-size=SECRET", "", "5MiB to 5120MiB"},
		{"s3://b?concurrency=0", "", "a number from 1 to 64"},
		{"s3://b?profile=SECRET", "", "there is no such profile"},
		{"s3://b/" + strings.Repeat("p", 900), "", "longer than 800"},
	} {
		b, err := storage.OpenURL(t.Context(), test.url, nil)
		if test.want == "" {
			if err == nil || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%s: %v, want an error with %q", test.url, err, test.text)
			}
			continue
		}
		if err != nil || b.String() != test.want {
			t.Errorf("%s opens %v, %v; want %s", test.url, b, err, test.want)
			continue
		}
		if again, err := storage.OpenURL(t.Context(), b.String(), nil); err != nil || again.String() != test.want {
			t.Errorf("%s opens %v, %v", b, again, err)
		}
	}
}

// Addresses, region and time of lock, which String does not show.
func TestSettings(t *testing.T) {
	get := func(rawURL string) (*Bucket, s3.Options) {
		b := openBucket(t, rawURL, nil)
		return b, b.client.Options()
	}
	if _, o := get("s3://b"); o.UsePathStyle || o.Region != "us-east-1" {
		t.Error("AWS is addressed by path")
	}
	if _, o := get("s3://b?endpoint=http://h&region=x"); !o.UsePathStyle || o.Region != "x" {
		t.Error("another service is not addressed by path")
	}
	if _, o := get("s3://b?endpoint=http://h&path-style=false"); o.UsePathStyle {
		t.Error("path-style=false is not followed")
	}
	b, _ := get("s3://b?lock-days=10")
	if d := time.Until(b.until) - 10*24*time.Hour; d.Abs() > 2*time.Hour || b.lockMode != types.ObjectLockModeGovernance {
		t.Errorf("locked until %v, %s", b.until, b.lockMode)
	}
	if b, _ := get("s3://b?lock-until=2999-12-31&lock-mode=compliance"); b.until.Format(time.RFC3339) != "2999-12-31T00:00:00Z" || b.lockMode != types.ObjectLockModeCompliance {
		t.Errorf("locked until %v, %s", b.until, b.lockMode)
	}
}

func readAll(t *testing.T, b *Bucket, key string) (string, error) {
	t.Helper()
	r, err := b.Open(t.Context(), key, 0, -1)
	if err != nil {
		return "", err
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	return string(got), err
}

// What stores and access say to whoever got something wrong.
func TestErrors(t *testing.T) {
	s, tls := servers.S3(t, false), servers.S3(t, true)
	bucket := newBucket(t, s, false)
	s.MakeUser(t, "nobodyskey", "nobodyssecret")
	all := func(b *Bucket) map[string]error {
		errs := map[string]error{"put": b.Put(t.Context(), "key", strings.NewReader("x"), nil)}
		errs["put large"] = b.Put(t.Context(), "key", bytes.NewReader(data(9<<20)), nil)
		_, errs["open"] = b.Open(t.Context(), "key", 0, -1)
		for _, err := range b.List(t.Context(), "") {
			errs["list"] = err
		}
		for _, err := range b.Uploads(t.Context(), "") {
			errs["list uploads"] = err
		}
		errs["delete"] = b.Delete(t.Context(), "key")
		_, errs["inspect"] = b.LockedUntil(t.Context(), "key")
		return errs
	}
	for _, test := range []struct {
		name, url   string
		key, secret string
		kind        error
		text        string
	}{
		{"no bucket", s.URL("nonexistent"), servers.S3AccessKey, servers.S3SecretKey, storage.ErrNotFound, "no such bucket"},
		{"unknown key", s.URL(bucket), "other", "other", storage.ErrPermission, "does not know this access key"},
		{"wrong secret", s.URL(bucket), servers.S3AccessKey, "other", storage.ErrPermission, "secret key is not the one"},
		{"no rights", s.URL(bucket), "nobodyskey", "nobodyssecret", storage.ErrPermission, "(AccessDenied)"},
		{"no credentials", s.URL(bucket), "", "", storage.ErrPermission, "no usable credentials"},
		{"unknown authority", (&servers.S3Server{Endpoint: tls.Endpoint}).URL(bucket), servers.S3AccessKey, servers.S3SecretKey, nil, "ca-bundle=FILE"},
		{"other host", strings.ReplaceAll(tls.URL(bucket), "127.0.0.1", "localhost"), servers.S3AccessKey, servers.S3SecretKey, nil, "another host name"},
		{"no TLS", (&servers.S3Server{Endpoint: "https://" + s.Address}).URL(bucket), servers.S3AccessKey, servers.S3SecretKey, nil, "endpoint=http://"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("AWS_ACCESS_KEY_ID", test.key)
			t.Setenv("AWS_SECRET_ACCESS_KEY", test.secret)
			for op, err := range all(openBucket(t, test.url, &storage.Options{Patience: 20 * time.Second})) {
				var e *storage.Error
				if !errors.As(err, &e) || test.kind != nil && !errors.Is(err, test.kind) || errors.Is(err, storage.ErrTemporary) {
					t.Errorf("%s: %v, want %v", op, err, test.kind)
					continue
				}
				head := op == "inspect" // an answer to HEAD has no text
				if !strings.Contains(err.Error(), test.text) && !(head && e.Kind != nil) || strings.Contains(err.Error(), servers.S3SecretKey) {
					t.Errorf("%s: %q does not say %q", op, err, test.text)
				}
			}
		})
	}
	t.Run("trust", func(t *testing.T) {
		b := openBucket(t, (&servers.S3Server{Endpoint: tls.Endpoint}).URL(newBucket(t, tls, false), "insecure-skip-verify", "true"), nil)
		if err := b.Put(t.Context(), "key", strings.NewReader("x"), nil); err != nil {
			t.Error(err)
		}
	})
}

// allow sets the policy of a bucket: the user may do the actions on its objects and those on it.
func allow(t *testing.T, s *servers.S3Server, bucket, user string, onObjects, onBucket []string) {
	t.Helper()
	type statement struct {
		Effect, Principal, Resource string
		Action                      []string
	}
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []statement{
		{"Allow", user, "arn:aws:s3:::" + bucket + "/*", onObjects},
		{"Allow", user, "arn:aws:s3:::" + bucket, onBucket},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client().PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: aws.String(string(policy))}); err != nil {
		t.Fatal(err)
	}
}

// A user who may put and list, and no more, can put: what a host that makes backups needs. docs/s3.md has this policy.
func TestLeastPrivilege(t *testing.T) {
	s := servers.S3(t, false)
	f, bucket := servers.StartFaultyS3(t, s), newBucket(t, s, false)
	s.MakeUser(t, "writerskey", "writerssecret")
	allow(t, s, bucket, "writerskey", []string{"s3:PutObject", "s3:AbortMultipartUpload"}, []string{"s3:ListBucket"})
	t.Setenv("AWS_ACCESS_KEY_ID", "writerskey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "writerssecret")
	b := openBucket(t, f.URL(bucket, chunks...), nil)
	for _, ifAbsent := range []bool{false, true} {
		o := &storage.PutOptions{IfAbsent: ifAbsent}
		for _, size := range []int{10, multi} {
			for _, lost := range []bool{false, true} {
				key := fmt.Sprintf("key-%v-%d-%v", ifAbsent, size, lost)
				if lost {
					f.Set("PutObject", servers.S3Fault{Times: 1, Lost: true})
					f.Set("CompleteMultipartUpload", servers.S3Fault{Times: 1, Lost: true})
				}
				if err := b.Put(t.Context(), key, bytes.NewReader(data(size)), o); err != nil {
					t.Errorf("%s: %v", key, err)
				}
				f.Set("PutObject", servers.S3Fault{})
				f.Set("CompleteMultipartUpload", servers.S3Fault{})
				wantState(t, s, bucket, key, data(size))
				if err := b.Put(t.Context(), key, bytes.NewReader(data(size)), o); ifAbsent != errors.Is(err, storage.ErrExists) {
					t.Errorf("%s again: %v", key, err)
				}
				fails := io.MultiReader(bytes.NewReader(data(size)), &hookReader{func() error { return errors.New("boom") }})
				if err := b.Put(t.Context(), "failed", fails, o); err == nil {
					t.Error("put what failed")
				}
				wantState(t, s, bucket, "failed", nil)
			}
		}
	}
	n := 0
	for _, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 8 {
		t.Errorf("%d objects are listed", n)
	}
	if _, err := readAll(t, b, "key-false-10-false"); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("open: %v", err)
	}
	if err := b.Delete(t.Context(), "key-false-10-false"); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("delete: %v", err)
	}
	for _, setting := range b.Inspect(t.Context()) {
		unknown := setting.Err != nil && strings.Contains(setting.Err.Error(), "does not know") // a service with less than AWS
		if !unknown && !errors.Is(setting.Err, storage.ErrPermission) || !unknown && !strings.Contains(setting.Err.Error(), "s3:Get") {
			t.Errorf("%+v", setting)
		}
	}
}

// What is locked outlives whoever has our credentials.
func TestLock(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	bucket := newBucket(t, s, true)
	for _, checksum := range []string{"when-supported", "when-required"} {
		b := openBucket(t, s.URL(bucket, append([]string{"lock-days", "2", "lock-mode", "compliance", "checksum", checksum}, chunks...)...), nil)
		for key, size := range map[string]int{"small": 10, "large": multi} {
			if err := b.Put(t.Context(), key, bytes.NewReader(data(size)), nil); err != nil {
				t.Fatal(err)
			}
			if until, err := b.LockedUntil(t.Context(), key); err != nil || !until.Equal(b.until) {
				t.Errorf("%s is locked until %v, %v; want %v", key, until, err, b.until)
			}
		}
		for range 2 {
			if err := b.Put(t.Context(), "marker", strings.NewReader("x"), &storage.PutOptions{Transient: true}); err != nil {
				t.Fatal(err)
			}
			if until, err := b.LockedUntil(t.Context(), "marker"); err != nil || !until.IsZero() {
				t.Errorf("the marker is locked until %v, %v", until, err)
			}
		}
		if _, err := b.LockedUntil(t.Context(), "none"); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
	}
	// A hostile user deletes, and deletes versions.
	client, plain := s.Client(), openBucket(t, s.URL(bucket), nil)
	versions, err := client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &bucket, Prefix: aws.String("large")})
	if err != nil || len(versions.Versions) != 2 {
		t.Fatalf("%v, %v", versions, err)
	}
	if err := plain.Delete(t.Context(), "large"); err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(t, plain, "large"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("after a delete: %v", err)
	}
	for _, v := range versions.Versions {
		_, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: v.Key, VersionId: v.VersionId, BypassGovernanceRetention: aws.Bool(true)})
		if err == nil {
			t.Error("a locked version was deleted")
		}
	}
	markers, err := client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &bucket, Prefix: aws.String("large")})
	if err != nil || len(markers.DeleteMarkers) != 1 || len(markers.Versions) != 2 {
		t.Fatalf("%v, %v", markers, err)
	}
	m := markers.DeleteMarkers[0]
	if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: m.Key, VersionId: m.VersionId}); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, plain, "large"); err != nil || got != string(data(multi)) {
		t.Errorf("what a thief deleted is not back: %d bytes, %v", len(got), err)
	}

	// A legal hold has no end; without a lock there is none.
	if err := plain.Put(t.Context(), "held", strings.NewReader("x"), nil); err != nil {
		t.Fatal(err)
	}
	if until, err := plain.LockedUntil(t.Context(), "held"); err != nil || !until.IsZero() {
		t.Errorf("%v, %v", until, err)
	}
	hold := &types.ObjectLockLegalHold{Status: types.ObjectLockLegalHoldStatusOn}
	if _, err := client.PutObjectLegalHold(t.Context(), &s3.PutObjectLegalHoldInput{Bucket: &bucket, Key: aws.String("held"), LegalHold: hold}); err != nil {
		t.Fatal(err)
	}
	if until, err := plain.LockedUntil(t.Context(), "held"); err != nil || until != storage.FarFuture {
		t.Errorf("%v, %v", until, err)
	}
	free := openBucket(t, s.URL(newBucket(t, s, false)), nil)
	if err := free.Put(t.Context(), "key", strings.NewReader("x"), nil); err != nil {
		t.Fatal(err)
	}
	if until, err := free.LockedUntil(t.Context(), "key"); err != nil || !until.IsZero() {
		t.Errorf("%v, %v", until, err)
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	for _, lock := range []bool{false, true} {
		b := openBucket(t, s.URL(newBucket(t, s, lock)), nil)
		got := map[string]string{}
		for _, setting := range b.Inspect(t.Context()) {
			got[setting.Name] = setting.Value
			if setting.Err != nil {
				got[setting.Name] = "error: " + setting.Err.Error()
			}
		}
		want := map[bool]string{false: "disabled", true: "enabled"}[lock]
		if got["versioning"] != want || !strings.HasPrefix(got["object lock"], want) || len(got) != 5 {
			t.Errorf("lock %v: %q", lock, got)
		}
	}
	// What services say that this one does not have.
	b := &Bucket{settings: settings{prefix: "p/"}}
	enabled := types.ExpirationStatusEnabled
	for text, rules := range map[string][]types.LifecycleRule{
		noLifecycle: {{Status: types.ExpirationStatusDisabled, AbortIncompleteMultipartUpload: &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(7)}}},
		"abandoned uploads are removed after 7 days; objects are deleted after 30 days": {
			{Status: enabled, AbortIncompleteMultipartUpload: &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(7)}},
			{Status: enabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("p/")}, Expiration: &types.LifecycleExpiration{Days: aws.Int32(30)}},
			{Status: enabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("q/")}, Expiration: &types.LifecycleExpiration{Days: aws.Int32(3)}},
		},
	} {
		if got := b.lifecycleText(rules); got != text {
			t.Errorf("%q, want %q", got, text)
		}
	}
}

// The service gets the storage class and encryption that were asked for, with small objects and large.
func TestHeaders(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	f := servers.StartFaultyS3(t, s)
	b := openBucket(t, f.URL(newBucket(t, s, false), append([]string{"storage-class", "STANDARD_IA", "sse", "aws:kms", "sse-kms-key-id", "thekey"}, chunks...)...), nil)
	f.Set("PutObject", servers.S3Fault{Times: servers.Always, Status: 400, Code: "Seen"})
	f.Set("CreateMultipartUpload", servers.S3Fault{Times: servers.Always, Status: 400, Code: "Seen"})
	for op, size := range map[string]int{"PutObject": 1, "CreateMultipartUpload": multi} {
		if err := b.Put(t.Context(), "key", bytes.NewReader(data(size)), nil); err == nil {
			t.Fatal(op)
		}
		h := f.Header(op)
		for name, want := range map[string]string{"Storage-Class": "STANDARD_IA", "Server-Side-Encryption": "aws:kms", "Server-Side-Encryption-Aws-Kms-Key-Id": "thekey"} {
			if got := h.Get("X-Amz-" + name); got != want {
				t.Errorf("%s: %s is %q", op, name, got)
			}
		}
	}
}

// A role's credentials that the service calls expired are asked for once more.
func TestExpiredCredentials(t *testing.T) {
	t.Parallel()
	asked := 0
	c := &credentials{provider: aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		asked++
		return aws.Credentials{AccessKeyID: servers.S3AccessKey, SecretAccessKey: servers.S3SecretKey}, nil
	}))}
	s := servers.S3(t, false)
	f, bucket := servers.StartFaultyS3(t, s), newBucket(t, s, false)
	b := openBucket(t, f.URL(bucket), nil)
	b.credentials = c
	o := b.client.Options()
	o.Credentials = c
	b.client = s3.New(o)
	f.Set("PutObject", servers.S3Fault{Times: 1, Status: 403, Code: "ExpiredToken"})
	if err := b.Put(t.Context(), "key", strings.NewReader("x"), nil); err != nil || asked != 2 {
		t.Errorf("%v after the credentials were asked for %d times", err, asked)
	}
}

// An upload holds no more than its chunks, however long it is.
func TestMemory(t *testing.T) { // not parallel: it looks at the heap of all
	s := servers.S3(t, false)
	b := openBucket(t, s.URL(newBucket(t, s, false)), nil)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, most := heap(), int64(0)
	piece := data(16 << 20)
	var pieces []io.Reader
	for range 8 {
		pieces = append(pieces, bytes.NewReader(piece), &hookReader{func() error { most = max(most, heap()-before); return io.EOF }})
	}
	if err := b.Put(t.Context(), "key", io.MultiReader(pieces...), nil); err != nil {
		t.Fatal(err)
	}
	if limit := int64(defaultChunk*defaultConcurrency + len(piece) + 8<<20); most > limit {
		t.Errorf("%d bytes were held, more than %d", most, limit)
	}
}
