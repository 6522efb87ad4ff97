package gcs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gcs "cloud.google.com/go/storage"
	"google.golang.org/api/option"

	"encdump/storage"
	"encdump/storage/storagetest"
)

// emulator starts fake-gcs-server, and returns its endpoint and a client for what no Bucket does.
func emulator(t *testing.T) (endpoint string, client *gcs.Client) {
	t.Helper()
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	endpoint = storagetest.GCS(t)
	client, err := gcs.NewClient(context.Background(), option.WithEndpoint(endpoint+"/storage/v1/"), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	return endpoint, client
}

var buckets atomic.Int64

func newBucket(t *testing.T, client *gcs.Client) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", buckets.Add(1))
	if err := client.Bucket(name).Create(context.Background(), "project", nil); err != nil {
		t.Fatal(err)
	}
	return name
}

// impatient are options under which a test does not wait long.
var impatient = &storage.Options{Patience: 2 * time.Second, Timeout: time.Second}

func openURL(t *testing.T, u string, o *storage.Options) *Bucket {
	t.Helper()
	b, err := storage.OpenURL(t.Context(), u, o)
	if err != nil {
		t.Fatal(err)
	}
	inner, ok := storage.As[*Bucket](b)
	if !ok {
		t.Fatalf("%T holds no *Bucket", b)
	}
	return inner
}

func TestConformance(t *testing.T) {
	endpoint, client := emulator(t)
	for name, suffix := range map[string]string{
		"Plain":  "?",
		"Prefix": "/backups/pg%20%25+1?chunk-size=1MiB&", // pg %+1
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.Conformance(t, func(t *testing.T) storage.Bucket {
				return openURL(t, "gs://"+newBucket(t, client)+suffix+"endpoint="+endpoint, nil)
			})
		})
	}
}

func TestNetworkFaults(t *testing.T) {
	endpoint, client := emulator(t)
	storagetest.NetworkFaults(t, endpoint, func(t *testing.T, proxy string, o *storage.Options) storage.Bucket {
		return openURL(t, "gs://"+newBucket(t, client)+"/folder?chunk-size=1MiB&endpoint="+proxy, o)
	}, func(r *http.Request) bool {
		part := r.Header.Get("Content-Range")
		return r.URL.Query().Get("uploadType") == "multipart" || part != "" && !strings.HasSuffix(part, "/*")
	})
}

func TestListPages(t *testing.T) {
	endpoint, client := emulator(t)
	name := newBucket(t, client)
	b := openURL(t, "gs://"+name+"/pg?endpoint="+endpoint, nil)
	const n = 2500
	var want []string
	var wg sync.WaitGroup
	errs := make([]error, 8)
	create := func(object string) error {
		w := client.Bucket(name).Object(object).NewWriter(t.Context())
		w.ChunkSize = 256 << 10
		return w.Close()
	}
	for i := range n {
		want = append(want, fmt.Sprintf("key-%d", i))
	}
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				errs[w] = create("pg/" + want[i])
			}
		})
	}
	wg.Wait()
	// Not ours: beside the folder, in one below, and a name that is no key.
	for _, other := range []string{"pg-x", "p", "pg/", "pg/below/key", "pg/.hidden"} {
		errs = append(errs, create(other))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	var got []string
	for o, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %d keys other than the %d that are there, or in another order", len(got), len(want))
	}
}

// What is sent is stated with its CRC32C, by which the service refuses what arrives changed; fake-gcs-server does not
// look at it. What it says to have stored is compared, too.
func TestChecksum(t *testing.T) {
	endpoint, client := emulator(t)
	for _, size := range []int{0, 1000, 1<<20 + 5} {
		content := bytes.Repeat([]byte{7}, size)
		sum := crc32.Checksum(content, castagnoli)
		header := encode(sum)
		name := newBucket(t, client)
		proxy := storagetest.NewProxy(t, endpoint)
		b := openURL(t, "gs://"+name+"?chunk-size=512KiB&endpoint="+proxy.URL, nil)
		stated := 0
		proxy.Next(func(r *http.Request) storagetest.Mishap {
			if r.Method != http.MethodPost {
				return storagetest.Mishap{}
			}
			sent, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(sent))
			if strings.Contains(string(sent), `"crc32c":"`+header+`"`) || strings.Contains(r.Header.Get("X-Goog-Hash"), header) {
				stated++
			}
			return storagetest.Mishap{}
		})
		if err := b.Put(t.Context(), "key", bytes.NewReader(content), nil); err != nil {
			t.Fatal(err)
		}
		if stated != 1 {
			t.Errorf("the checksum of %d bytes was stated %d times", size, stated)
		}
		if size == 0 {
			continue
		}
		proxy.Next(func(r *http.Request) storagetest.Mishap {
			data := r.URL.Query().Get("uploadType") == "multipart" || strings.HasPrefix(r.Header.Get("Content-Range"), "bytes 524288-")
			return storagetest.Mishap{Flip: data}
		})
		err := b.Put(t.Context(), "flipped", bytes.NewReader(content), nil)
		proxy.Next(nil)
		if err == nil {
			t.Errorf("%d bytes that changed on the way were stored", size)
		}
		for o := range b.List(t.Context(), "flipped") {
			t.Errorf("%s is there after %v", o.Key, err)
		}
	}
}

func encode(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// A source that fails in the very moment when the object could be completed must not complete it.
func TestCutSource(t *testing.T) {
	endpoint, client := emulator(t)
	name := newBucket(t, client)
	b := openURL(t, "gs://"+name+"?chunk-size=256KiB&endpoint="+endpoint, nil)
	boom := errors.New("boom")
	for _, size := range []int{0, 1, 256 << 10, 256<<10 + 1, 512 << 10, 1 << 20} {
		for range 10 {
			err := b.Put(t.Context(), "key", io.MultiReader(bytes.NewReader(make([]byte, size)), errReader{boom}), nil)
			if !errors.Is(err, boom) || errors.Is(err, storage.ErrTemporary) {
				t.Fatalf("%d bytes: %v", size, err)
			}
		}
	}
	for o := range b.List(t.Context(), "") {
		t.Errorf("%s is there, with %d bytes", o.Key, o.Size)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestErrors(t *testing.T) {
	endpoint, client := emulator(t)
	b := openURL(t, "gs://none-such?endpoint="+endpoint, impatient)
	for _, err := range b.List(t.Context(), "") {
		if !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("list: %v", err)
		}
	}
	if err := b.Put(t.Context(), "key", strings.NewReader("x"), nil); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("put: %v", err)
	}
	if _, err := b.Open(t.Context(), "key", 0, -1); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	for _, s := range b.Inspect(t.Context()) {
		if !errors.Is(s.Err, storage.ErrNotFound) {
			t.Errorf("%s of no bucket: %q, %v", s.Name, s.Value, s.Err)
		}
	}
	b = openURL(t, "gs://none-such?endpoint=http://127.0.0.1:1", impatient)
	b.options.Patience = 100 * time.Millisecond
	if err := b.Delete(t.Context(), "key"); !errors.Is(err, storage.ErrTemporary) || strings.Contains(err.Error(), "storage/v1") {
		t.Errorf("no service: %v", err)
	}
	// Who knows the URL of a resumable upload may write to it.
	name := newBucket(t, client)
	proxy := storagetest.NewProxy(t, endpoint)
	var logged bytes.Buffer
	b = openURL(t, "gs://"+name+"?chunk-size=256KiB&endpoint="+proxy.URL, &storage.Options{
		Patience: 100 * time.Millisecond, Timeout: 300 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
	})
	for _, m := range []storagetest.Mishap{{Status: 503}, {Status: 404}, {Status: 308}, {Cut: true}, {Stall: true}} {
		proxy.Next(func(r *http.Request) storagetest.Mishap {
			if r.URL.Query().Has("upload_id") {
				return m
			}
			return storagetest.Mishap{}
		})
		err := b.Put(t.Context(), "key", bytes.NewReader(make([]byte, 1<<20)), nil)
		if err == nil || strings.Contains(err.Error(), "upload_id") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if !strings.Contains(logged.String(), "attempt failed") || strings.Contains(logged.String(), "upload_id") {
		t.Errorf("logged %s", logged.String())
	}
}

func TestLocks(t *testing.T) {
	endpoint, client := emulator(t)
	name := newBucket(t, client)
	proxy := storagetest.NewProxy(t, endpoint)
	b := openURL(t, "gs://"+name+"?endpoint="+proxy.URL, impatient)
	future := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	at, past := future.Format(time.RFC3339), future.Add(-2*time.Hour).Format(time.RFC3339)
	// fake-gcs-server has no retention; the answers are those of the service's documentation.
	for answer, want := range map[string]time.Time{
		`{}`: {},
		`{"retentionExpirationTime": "` + at + `"}`:                                                   future,
		`{"retentionExpirationTime": "` + past + `"}`:                                                 {},
		`{"retention": {"mode": "Locked", "retainUntilTime": "` + at + `"}}`:                          future,
		`{"retentionExpirationTime": "` + past + `", "retention": {"retainUntilTime": "` + at + `"}}`: future,
		`{"temporaryHold": true}`:                                                                     storage.FarFuture,
		`{"eventBasedHold": true, "retentionExpirationTime": "` + at + `"}`:                           storage.FarFuture,
	} {
		proxy.Next(func(*http.Request) storagetest.Mishap { return storagetest.Mishap{Answer: answer} })
		if got, err := b.LockedUntil(t.Context(), "key"); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v; want %v", answer, got, err, want)
		}
	}
	proxy.Next(nil)
	if _, err := b.LockedUntil(t.Context(), "none"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	proxy.Next(func(*http.Request) storagetest.Mishap {
		return storagetest.Mishap{Answer: `{"versioning": {"enabled": true}, "retentionPolicy": {"retentionPeriod": "3600", "effectiveTime": "` + past + `", "isLocked": true},
			"softDeletePolicy": {"retentionDurationSeconds": "604800"}, "encryption": {"defaultKmsKeyName": "projects/p/k"},
			"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30}}]}}`}
	})
	got := map[string]string{}
	for _, s := range b.Inspect(t.Context()) {
		if s.Err != nil {
			t.Errorf("%s: %v", s.Name, s.Err)
		}
		got[s.Name] = s.Value
	}
	for setting, want := range map[string]string{
		"versioning": "enabled", "retention policy": "1h0m0s, locked", "soft delete": "168h0m0s", "encryption key": "projects/p/k", "lifecycle rules that delete": "1",
	} {
		if got[setting] != want {
			t.Errorf("%s is told as %q, want %q", setting, got[setting], want)
		}
	}
}

func TestOpenURL(t *testing.T) {
	const secret = "s3cr3t"
	t.Setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
	for u, ok := range map[string]bool{
		"gs://backups": true,
		"gs://backups/a/b?storage-class=nearline":             true,
		"gs://my_backups.example.org?chunk-size=32MiB":        true,
		"gs://backups?endpoint=http://127.0.0.1:1":            true,
		"gs://backups?insecure-skip-verify=true":              true,
		"gs://backups?insecure-skip-verify=" + secret:         false,
		"gs://backups?storage-class=" + secret:                false,
		"gs://backups?chunk-size=" + secret:                   false,
		"gs://backups?chunk-size=1KiB":                        false,
		"gs://backups?" + secret:                              false,
		"gs://backups?endpoint=" + secret:                     false,
		"gs://backups?endpoint=http://u:" + secret + "@host/": false,
		"gs://backups?ca-bundle=/does/not/exist":              false,
		"gs://Backups":                                        false,
		"gs://b":                                              false,
		"gs://backups/a//b":                                   false,
	} {
		b, err := storage.OpenURL(t.Context(), u, nil)
		if err != nil {
			if ok || strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v", u, err)
			}
			continue
		}
		first, _ := storage.As[*Bucket](b)
		if again := openURL(t, b.String(), nil); !ok || again.String() != b.String() || again.prefix != first.prefix || again.chunk != first.chunk {
			t.Errorf("%s: %s gives %v", u, b, again)
		}
	}
	// The variable of the SDK does for an endpoint.
	endpoint, client := emulator(t)
	t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimPrefix(endpoint, "http://"))
	b := openURL(t, "gs://"+newBucket(t, client), nil)
	if err := b.Put(t.Context(), "key", strings.NewReader("x"), nil); err != nil {
		t.Error(err)
	}
}

// A service account's file is found as Google's own tools find it, and its token is sent to the service over TLS.
func TestCredentials(t *testing.T) {
	endpoint, client := emulator(t)
	name := newBucket(t, client)
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	const token = "t0k3n"
	var unauthorized atomic.Int64
	service := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			unauthorized.Add(1)
		}
		httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
	}))
	defer service.Close()
	var status atomic.Int64
	status.Store(http.StatusOK)
	login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(status.Load()))
		if status.Load() == http.StatusOK {
			fmt.Fprintf(w, `{"access_token": %q, "token_type": "Bearer", "expires_in": 3600}`, token)
			return
		}
		io.WriteString(w, `{"error": "invalid_grant",`+"\n"+`"error_description": "account not found"}`)
	}))
	defer login.Close()

	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "project", "client_email": "dump@project.iam.gserviceaccount.com", "token_uri": login.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, bundle := filepath.Join(dir, "account.json"), filepath.Join(dir, "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: service.Certificate().Raw})
	if err := errors.Join(os.WriteFile(file, account, 0o600), os.WriteFile(bundle, certificate, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	store := "gs://" + name + "?ca-bundle=" + bundle + "&endpoint=" + service.URL
	b := openURL(t, store, impatient)
	if err := b.Put(t.Context(), "key", strings.NewReader("x"), nil); err != nil {
		t.Fatal(err)
	}
	for o, err := range b.List(t.Context(), "") {
		if err != nil || o.Key != "key" {
			t.Errorf("%v, %v", o, err)
		}
	}
	if n := unauthorized.Load(); n > 0 {
		t.Errorf("%d requests without the token", n)
	}
	for code, want := range map[int]error{http.StatusBadRequest: storage.ErrPermission, http.StatusServiceUnavailable: storage.ErrTemporary} {
		status.Store(int64(code))
		b := openURL(t, store, &storage.Options{Patience: 100 * time.Millisecond})
		err := b.Delete(t.Context(), "key")
		if !errors.Is(err, want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "assertion") {
			t.Errorf("login answers %d: %v, want %v", code, err, want)
		}
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(dir, "none"))
	if _, err := storage.OpenURL(t.Context(), store, nil); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("no credentials: %v", err)
	}
}
