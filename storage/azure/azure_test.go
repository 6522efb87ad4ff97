package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"encdump/storage"
	"encdump/storage/storagetest"
)

// azurite starts the emulator and makes it the account of the environment, without what the machine may have set.
func azurite(t *testing.T) (endpoint string) {
	t.Helper()
	connection := storagetest.Azurite(t)
	for _, name := range []string{"ACCOUNT", "KEY", "SAS_TOKEN"} {
		t.Setenv("AZURE_STORAGE_"+name, "")
	}
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
	c, err := parseConnectionString(connection)
	if err != nil {
		t.Fatal(err)
	}
	return c.endpoint
}

var containers atomic.Int64

// newContainer makes an empty container, and returns its name and the client that made it.
func newContainer(t *testing.T, endpoint string) (string, *container.Client) {
	t.Helper()
	name := fmt.Sprintf("test-%d", containers.Add(1))
	key, err := blob.NewSharedKeyCredential(storagetest.AzuriteAccount, storagetest.AzuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := container.NewClientWithSharedKeyCredential(endpoint+"/"+name, key, nil)
	if err == nil {
		_, err = c.Create(context.Background(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name, c
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

// TestAzurite runs the tests that need the emulator, which takes seconds to start.
func TestAzurite(t *testing.T) {
	endpoint := azurite(t)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, endpoint string)
	}{
		{"Conformance", testConformance},
		{"NetworkFaults", testNetworkFaults},
		{"ManyBlocks", testManyBlocks},
		{"Leftover", testLeftover},
		{"ListPages", testListPages},
		{"Digest", testDigest},
		{"Errors", testErrors},
		{"Signature", testSignature},
		{"LockedUntil", testLockedUntil},
		{"Inspect", testInspect},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, endpoint) })
	}
}

func testConformance(t *testing.T, endpoint string) {
	for name, suffix := range map[string]string{
		"Plain":  "",
		"Prefix": "/backups/pg%20%25+1?chunk-size=4MiB&concurrency=2", // pg %+1
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.Conformance(t, func(t *testing.T) storage.Bucket {
				c, _ := newContainer(t, endpoint)
				return openURL(t, "azblob://"+c+suffix, nil)
			})
		})
	}
}

func testNetworkFaults(t *testing.T, endpoint string) {
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	storagetest.NetworkFaults(t, endpoint, func(t *testing.T, proxy string, o *storage.Options) storage.Bucket {
		c, _ := newContainer(t, endpoint)
		return openURL(t, "azblob://"+c+"/folder?chunk-size=1MiB&endpoint="+proxy+u.Path, o)
	}, func(r *http.Request) bool {
		return r.Method == http.MethodPut && r.URL.Query().Get("comp") != "block"
	})
}

func TestBlockSize(t *testing.T) {
	const MiB, TB = 1 << 20, 1_000_000_000_000
	for base, want := range map[int64]int64{defaultBlock: 10 * TB, 64 * MiB: 80 * TB, maxBlock: 200 * TB, 64 << 10: 80_000_000_000} {
		var total, last int64
		for i := range maxBlocks {
			size := blockSize(base, i)
			if size < last || size > maxBlock {
				t.Fatalf("block %d of base %d has %d bytes after %d", i, base, size, last)
			}
			total, last = total+size, size
		}
		if total < want {
			t.Errorf("base %d: %d bytes fit into a blob, want %d", base, total, want)
		}
	}
	// What the comment says.
	var total int64
	at := map[int64]int64{}
	for i := range maxBlocks {
		size := blockSize(defaultBlock, i)
		for _, mark := range []int64{1 * TB, 5 * TB} {
			if total < mark && total+size >= mark {
				at[mark] = size
			}
		}
		total += size
	}
	if at[1*TB] != 120*MiB || at[5*TB] != 280*MiB {
		t.Errorf("blocks of %d MiB at 1 TB and %d MiB at 5 TB", at[1*TB]/MiB, at[5*TB]/MiB)
	}
}

// Blocks grow on the way, and more of them than there may be is an error that leaves nothing.
func testManyBlocks(t *testing.T, endpoint string) {
	name, _ := newContainer(t, endpoint)
	b := openURL(t, "azblob://"+name+"?concurrency=16", nil)
	b.block = 1 << 10
	const size = 1000<<10 + 2<<10 + 1 // a thousand blocks of 1 KiB, and the start of the second of 2 KiB
	content := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
	if err := b.Put(t.Context(), "key", bytes.NewReader(content), nil); err != nil {
		t.Fatal(err)
	}
	blocks, err := b.container.NewBlockBlobClient("key").GetBlockList(t.Context(), blockblob.BlockListTypeAll, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(blocks.CommittedBlocks); n != 1002 || len(blocks.UncommittedBlocks) != 0 || *blocks.CommittedBlocks[1000].Size != 2<<10 {
		t.Errorf("%d blocks", n)
	}
	r, err := b.Open(t.Context(), "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// What was cut off before is in nobody's way: neither of the listing nor of a new object of that name.
func testLeftover(t *testing.T, endpoint string) {
	name, _ := newContainer(t, endpoint)
	b := openURL(t, "azblob://"+name+"?chunk-size=64KiB", nil)
	boom := errors.New("boom")
	for _, o := range []*storage.PutOptions{{IfAbsent: true}, nil} {
		err := b.Put(t.Context(), "key", io.MultiReader(bytes.NewReader(make([]byte, 200<<10)), errReader{boom}), o)
		if !errors.Is(err, boom) || errors.Is(err, storage.ErrTemporary) {
			t.Fatal(err)
		}
		for o, err := range b.List(t.Context(), "") {
			t.Errorf("listed %v, %v", o, err)
		}
	}
	for _, want := range []error{nil, storage.ErrExists} {
		if err := b.Put(t.Context(), "key", strings.NewReader("new"), &storage.PutOptions{IfAbsent: true}); !errors.Is(err, want) {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func testListPages(t *testing.T, endpoint string) {
	name, client := newContainer(t, endpoint)
	b := openURL(t, "azblob://"+name+"/pg", nil)
	const n = 2500
	var want []string
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range n {
		want = append(want, fmt.Sprintf("key-%d", i))
	}
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				_, errs[w] = client.NewBlockBlobClient("pg/"+want[i]).Upload(t.Context(), body(nil), nil)
			}
		})
	}
	wg.Wait()
	// Not ours: beside the folder, in one below, and a name that is no key.
	for _, other := range []string{"pg-x", "p", "pg/below/key", "pg/.hidden"} {
		_, err := client.NewBlockBlobClient(other).Upload(t.Context(), body(nil), nil)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	thousand := int32(1000)
	b.pageSize = &thousand
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

// A byte that changes on the way is noticed by the service, and sent again.
func testDigest(t *testing.T, endpoint string) {
	u, _ := url.Parse(endpoint)
	for _, size := range []int{1000, 200 << 10} {
		name, _ := newContainer(t, endpoint)
		proxy := storagetest.NewProxy(t, endpoint)
		b := openURL(t, "azblob://"+name+"?chunk-size=64KiB&endpoint="+proxy.URL+u.Path, nil)
		flips := 0
		proxy.Next(func(r *http.Request) storagetest.Mishap {
			if r.ContentLength > 500 && flips == 0 {
				flips++
				return storagetest.Mishap{Flip: true}
			}
			return storagetest.Mishap{}
		})
		content := bytes.Repeat([]byte{7}, size)
		if err := b.Put(t.Context(), "key", bytes.NewReader(content), nil); err != nil {
			t.Fatal(err)
		}
		r, err := b.Open(t.Context(), "key", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, content) || flips != 1 {
			t.Errorf("%d bytes, %v; %d flips", len(got), err, flips)
		}
	}
}

func testErrors(t *testing.T, endpoint string) {
	// No such container.
	b := openURL(t, "azblob://none", impatient)
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
	// A wrong key.
	name, _ := newContainer(t, endpoint)
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "")
	t.Setenv("AZURE_STORAGE_KEY", "d3Jvbmc=")
	b = openURL(t, "azblob://"+name+"?account="+storagetest.AzuriteAccount+"&endpoint="+endpoint, impatient)
	err := b.Put(t.Context(), "key", strings.NewReader("x"), nil)
	if !errors.Is(err, storage.ErrPermission) || strings.Contains(err.Error(), "\n") {
		t.Errorf("wrong key: %v", err)
	}
	// Nobody there.
	b = openURL(t, "azblob://"+name+"?account="+storagetest.AzuriteAccount+"&endpoint=http://127.0.0.1:1", impatient)
	b.options.Patience = 100 * time.Millisecond
	if err := b.Delete(t.Context(), "key"); !errors.Is(err, storage.ErrTemporary) {
		t.Errorf("no service: %v", err)
	}
}

// A shared access signature is part of every request's URL, and must show nowhere.
func testSignature(t *testing.T, endpoint string) {
	u, _ := url.Parse(endpoint)
	name, client := newContainer(t, endpoint)
	sign := func(p sas.ContainerPermissions) string {
		signed, err := client.GetSASURL(p, time.Now().Add(time.Hour), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, query, _ := strings.Cut(signed, "?")
		return query
	}
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "")
	// Who may create, write and list, but neither read nor delete, can make backups: with a part and a marker taken.
	writer := sign(sas.ContainerPermissions{Create: true, Write: true, List: true})
	t.Setenv("AZURE_STORAGE_SAS_TOKEN", "?"+writer)
	var logged bytes.Buffer
	proxy := storagetest.NewProxy(t, endpoint)
	options := &storage.Options{Patience: 100 * time.Millisecond, Timeout: 300 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&logged, nil))}
	b := openURL(t, "azblob://"+name+"?chunk-size=64KiB&endpoint="+proxy.URL+u.Path, options)
	var said []string
	say := func(err error) {
		t.Helper()
		if err == nil {
			t.Error("succeeded")
			return
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			said = append(said, e.Error(), fmt.Sprintf("%+v", e))
		}
		var s *storage.Error
		if errors.As(err, &s) && s.Err != nil {
			said = append(said, fmt.Sprintf("%#v", s.Err), s.Err.Error())
		}
	}
	ifAbsent := &storage.PutOptions{IfAbsent: true}
	if err := b.Put(t.Context(), "key", bytes.NewReader(make([]byte, 200<<10)), ifAbsent); err != nil {
		t.Fatal(err)
	}
	err := b.Put(t.Context(), "key", strings.NewReader("x"), ifAbsent)
	if !errors.Is(err, storage.ErrExists) {
		t.Errorf("key taken: %v", err)
	}
	say(err)
	_, err = b.Open(t.Context(), "key", 0, -1)
	if !errors.Is(err, storage.ErrPermission) {
		t.Errorf("reading without permission: %v", err)
	}
	say(err)
	say(b.Delete(t.Context(), "key"))
	_, err = b.LockedUntil(t.Context(), "key")
	say(err)
	for _, s := range b.Inspect(t.Context()) {
		if s.Err != nil {
			say(s.Err)
		}
	}
	for _, m := range []storagetest.Mishap{{Status: 503}, {Status: 400}, {Status: 302, Header: http.Header{"Location": {"/"}}}, {Cut: true}, {Stall: true}} {
		proxy.Next(func(*http.Request) storagetest.Mishap { return m })
		say(b.Put(t.Context(), "new", strings.NewReader("x"), nil))
		for _, err := range b.List(t.Context(), "") {
			say(err)
		}
	}
	proxy.Next(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	say(b.Delete(ctx, "key"))
	say(openURL(t, "azblob://"+name+"?endpoint=http://127.0.0.1:1/x", options).Delete(t.Context(), "key"))
	say(openURL(t, "azblob://"+name+"?endpoint=https"+strings.TrimPrefix(endpoint, "http"), options).Delete(t.Context(), "key"))
	said = append(said, b.String(), fmt.Sprint(b), logged.String())
	values, _ := url.ParseQuery(writer)
	for _, s := range said {
		for _, secret := range []string{"sig=", values.Get("sig"), url.QueryEscape(values.Get("sig"))} {
			if strings.Contains(s, secret) {
				t.Errorf("%q tells the signature", s)
			}
		}
	}
	if !strings.Contains(logged.String(), "attempt failed") {
		t.Errorf("nothing was logged: %q", logged.String())
	}
}

func testLockedUntil(t *testing.T, endpoint string) {
	u, _ := url.Parse(endpoint)
	name, _ := newContainer(t, endpoint)
	proxy := storagetest.NewProxy(t, endpoint)
	b := openURL(t, "azblob://"+name+"?endpoint="+proxy.URL+u.Path, impatient)
	if err := b.Put(t.Context(), "key", strings.NewReader("x"), nil); err != nil {
		t.Fatal(err)
	}
	future := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	// Azurite has no immutability; the headers are those of the service's documentation.
	for _, test := range []struct {
		header http.Header
		want   time.Time
	}{
		{nil, time.Time{}},
		{http.Header{"X-Ms-Immutability-Policy-Until-Date": {future.Format(http.TimeFormat)}, "X-Ms-Immutability-Policy-Mode": {"locked"}}, future},
		{http.Header{"X-Ms-Immutability-Policy-Until-Date": {future.Add(-2 * time.Hour).Format(http.TimeFormat)}}, time.Time{}},
		{http.Header{"X-Ms-Legal-Hold": {"true"}}, storage.FarFuture},
		{http.Header{"X-Ms-Legal-Hold": {"false"}}, time.Time{}},
	} {
		proxy.Next(func(*http.Request) storagetest.Mishap { return storagetest.Mishap{Header: test.header} })
		got, err := b.LockedUntil(t.Context(), "key")
		if err != nil || !got.Equal(test.want) {
			t.Errorf("%v: %v, %v; want %v", test.header, got, err, test.want)
		}
	}
	if _, err := b.LockedUntil(t.Context(), "none"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	// What the service refuses because of a policy is a matter of permission, and not a name that is taken.
	immutable := &statusError{http.StatusConflict, "BlobImmutableDueToPolicy"}
	if immutable.kind() != storage.ErrPermission {
		t.Errorf("%v is %v", immutable, immutable.kind())
	}
}

func testInspect(t *testing.T, endpoint string) {
	name, _ := newContainer(t, endpoint)
	b := openURL(t, "azblob://"+name, impatient)
	got := map[string]string{}
	for _, s := range b.Inspect(t.Context()) {
		if s.Err != nil && s.Name != "versioning" {
			t.Errorf("%s: %v", s.Name, s.Err)
		}
		got[s.Name] = s.Value
	}
	if got["soft delete"] != "disabled" || got["public access"] != "none" || got["legal hold of the container"] != "no" {
		t.Errorf("told %v", got)
	}
	if w, ok := storage.As[storage.Wholer](b); !ok || !w.PrefersWhole() {
		t.Error("prefers parts")
	}
	for _, s := range openURL(t, "azblob://none", impatient).Inspect(t.Context()) {
		if strings.Contains(s.Name, "container") && !errors.Is(s.Err, storage.ErrNotFound) {
			t.Errorf("%s of no container: %q, %v", s.Name, s.Value, s.Err)
		}
	}
}

func TestOpenURL(t *testing.T) {
	const secret = "s3cr3t"
	for _, name := range []string{"CONNECTION_STRING", "ACCOUNT", "KEY", "SAS_TOKEN"} {
		t.Setenv("AZURE_STORAGE_"+name, "")
	}
	for _, test := range []struct {
		url string
		env map[string]string
		ok  bool
	}{
		{"azblob://backups", nil, false}, // whose?
		{"azblob://backups?account=acme", nil, true},
		{"azblob://backups", map[string]string{"ACCOUNT": "acme"}, true},
		{"azblob://backups/a/b", map[string]string{"ACCOUNT": "acme", "KEY": "c2VjcmV0"}, true},
		{"azblob://backups", map[string]string{"ACCOUNT": "acme", "KEY": secret + "!"}, false},
		{"azblob://backups?endpoint=https://x", map[string]string{"KEY": "c2VjcmV0"}, false},
		{"azblob://backups", map[string]string{"ACCOUNT": "acme", "SAS_TOKEN": "sv=1&sig=" + secret}, true},
		{"azblob://backups", map[string]string{"CONNECTION_STRING": "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net"}, true},
		{"azblob://backups", map[string]string{"CONNECTION_STRING": "BlobEndpoint=https://acme.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=" + secret}, true},
		{"azblob://backups", map[string]string{"CONNECTION_STRING": "AccountName=acme;" + secret}, false},
		{"azblob://backups?account=other", map[string]string{"CONNECTION_STRING": "AccountName=acme;AccountKey=c2VjcmV0"}, false},
		{"azblob://backups?account=acme&access-tier=cool&chunk-size=16MiB&concurrency=5&insecure-skip-verify=false", nil, true},
		{"azblob://backups?account=acme&access-tier=archive", nil, false},
		{"azblob://backups?account=acme&access-tier=" + secret, nil, false},
		{"azblob://backups?account=acme&chunk-size=" + secret, nil, false},
		{"azblob://backups?account=acme&chunk-size=5GiB", nil, false},
		{"azblob://backups?account=acme&concurrency=" + secret, nil, false},
		{"azblob://backups?account=acme&ca-bundle=/does/not/exist", nil, false},
		{"azblob://backups?account=acme&insecure-skip-verify=" + secret, nil, false},
		{"azblob://backups?account=acme&endpoint=https://acme.example/?sig=" + secret, nil, false},
		{"azblob://backups?account=acme&endpoint=https://u:" + secret + "@acme.example/", nil, false},
		{"azblob://backups?account=acme&sig=" + secret, nil, false},
		{"azblob://backups?account=acme&" + secret, nil, false},
		{"azblob://backups?account=" + secret + "!", nil, false},
		{"azblob://Backups?account=acme", nil, false},
		{"azblob://b?account=acme", nil, false},
		{"azblob://a--b?account=acme", nil, false},
		{"azblob://backups/a//b?account=acme", nil, false},
		{"azblob://backups/a/../b?account=acme", nil, false},
		{"azblob://backups/a%5Cb?account=acme", nil, false},
	} {
		for _, name := range []string{"CONNECTION_STRING", "ACCOUNT", "KEY", "SAS_TOKEN"} {
			t.Setenv("AZURE_STORAGE_"+name, test.env[name])
		}
		b, err := storage.OpenURL(t.Context(), test.url, nil)
		if err != nil {
			if test.ok || strings.Contains(err.Error(), secret) {
				t.Errorf("%s with %v: %v", test.url, test.env, err)
			}
			continue
		}
		if !test.ok {
			t.Errorf("%s with %v was opened", test.url, test.env)
		}
		if strings.Contains(b.String(), secret) {
			t.Errorf("%s tells the secret", b)
		}
		first, _ := storage.As[*Bucket](b)
		if again := openURL(t, b.String(), nil); again.String() != b.String() || again.container.URL() != first.container.URL() || again.prefix != first.prefix {
			t.Errorf("%s gives %v", b, again)
		}
	}
}
