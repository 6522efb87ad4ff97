package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/storage"
	_ "encdump/storage/azure"
	"encdump/storage/file"
	_ "encdump/storage/s3"
	"encdump/storage/storagetest"
	"encdump/storage/storagetest/servers"
)

func TestMain(m *testing.M) {
	servers.SetS3Env()
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "AZURE_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("AZURE_STORAGE_KEY", storagetest.AzuriteKey)
	os.Exit(m.Run())
}

// openStore opens a store by its URL.
func openStore(t *testing.T, url string, o *storage.Options) storage.Bucket {
	t.Helper()
	b, err := storage.OpenURL(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// objectsOf returns what a store holds.
func objectsOf(t testing.TB, b storage.Bucket) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for o, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		r, err := b.Open(t.Context(), o.Key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		all[o.Key] = string(data)
	}
	return all
}

// stored returns the encrypted stream that a store holds for a backup.
func stored(all map[string]string, m *archive.Metadata) string {
	var s strings.Builder
	for _, p := range m.Parts {
		s.WriteString(all[p.Name])
	}
	return s.String()
}

// uploadsLeft returns the unfinished uploads in a store.
func uploadsLeft(t *testing.T, b storage.Bucket) (out []storage.Upload) {
	t.Helper()
	u, ok := storage.As[storage.Uploader](b)
	if !ok {
		t.Fatalf("%s knows no uploads", b)
	}
	for upload, err := range u.Uploads(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, upload)
	}
	return out
}

// trouble is what happens to a store in S3 while something is done.
type trouble struct {
	name string
	// The network: a toxic of toxiproxy, or "down".
	toxic, stream string
	attributes    map[string]any
	// The service: what is wrong with its operations; "" are all others.
	faults map[string]servers.S3Fault
	// stays says that it does not end; a network is otherwise bad until the first attempt has failed.
	stays bool
	want  error // nil: it is done nevertheless
	gone  bool  // in the end nothing reaches the store, or is permitted there
}

// networkTroubles are toxiproxy's, each for a while and for ever.
func networkTroubles() []trouble {
	out := []trouble{
		{name: "latency", toxic: "latency", stream: "downstream", attributes: map[string]any{"latency": 50, "jitter": 30}, stays: true},
		{name: "bandwidth", toxic: "bandwidth", stream: "upstream", attributes: map[string]any{"rate": 20000}, stays: true},
	}
	for _, bad := range []trouble{
		{name: "cut request", toxic: "limit_data", stream: "upstream", attributes: map[string]any{"bytes": 300}},
		{name: "cut answer", toxic: "limit_data", stream: "downstream", attributes: map[string]any{"bytes": 30}},
		{name: "reset", toxic: "reset_peer", stream: "downstream", attributes: map[string]any{"timeout": 0}},
		{name: "silence", toxic: "timeout", stream: "downstream", attributes: map[string]any{"timeout": 0}},
		{name: "deafness", toxic: "timeout", stream: "upstream", attributes: map[string]any{"timeout": 0}},
		{name: "down", toxic: "down"},
	} {
		out = append(out, bad)
		bad.name, bad.stays, bad.want, bad.gone = bad.name+" stays", true, storage.ErrTemporary, true
		out = append(out, bad)
	}
	return out
}

// faultsOf is one fault for several operations.
func faultsOf(f servers.S3Fault, ops ...string) map[string]servers.S3Fault {
	m := make(map[string]servers.S3Fault)
	for _, op := range ops {
		m[op] = f
	}
	return m
}

// line is the way to a store, on which trouble can be made.
type line struct {
	store storage.Bucket
	begin func() // of the trouble
}

func (tr trouble) line(t *testing.T, s *servers.S3Server, bucket string, options ...string) *line {
	t.Helper()
	var via *servers.S3Server
	l := &line{}
	end := func() {}
	if tr.toxic != "" {
		p := servers.StartProxy(t, s.Address)
		via = &servers.S3Server{Endpoint: "http://" + p.Address}
		end = func() { p.Heal(t) }
		l.begin = func() {
			if tr.toxic == "down" {
				p.Enable(t, false)
				return
			}
			p.Toxic(t, tr.toxic, tr.stream, tr.attributes)
		}
	} else {
		f := servers.StartFaultyS3(t, s)
		via = f.S3Server
		l.begin = func() {
			for op, fault := range tr.faults {
				f.Set(op, fault)
			}
		}
	}
	o := &storage.Options{Patience: 30 * time.Second, Timeout: 500 * time.Millisecond}
	switch {
	case tr.want != nil, tr.faults != nil && tr.stays:
		o = &storage.Options{Patience: 300 * time.Millisecond, Timeout: 300 * time.Millisecond}
	case !tr.stays:
		o.Logger = slog.New(&firstRetry{Handler: slog.DiscardHandler, do: end})
	}
	l.store = openStore(t, via.URL(bucket, options...), o)
	return l
}

// firstRetry is a slog.Handler that does something when a first attempt has failed.
type firstRetry struct {
	slog.Handler
	once sync.Once
	do   func()
}

func (*firstRetry) Enabled(context.Context, slog.Level) bool { return true }

func (f *firstRetry) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "again") {
		f.once.Do(f.do)
	}
	return nil
}

// trigger is a Progress that does something when so many bytes are through.
type trigger struct {
	silent
	at   int64
	done atomic.Int64
	once sync.Once
	do   func()
}

func (t *trigger) Add(n int64) {
	if t.done.Add(n) >= t.at {
		t.once.Do(t.do)
	}
}

// createOptions are those of a dump that comes in a reader.
func createOptions(in io.Reader, partSize int64, stores ...storage.Bucket) *CreateOptions {
	return &CreateOptions{
		Stores: stores, Stdin: in, GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11",
		Key:     func(context.Context, string, bool) (*crypto.Key, error) { return testKey, nil },
		Archive: archive.WriterOptions{Jobs: 2, Level: 1, PartSize: partSize},
	}
}

// wantFailure checks that an error is of the kind that was expected, and one line that names the store.
func wantFailure(t *testing.T, err, want error, bucket string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%v, want %v", err, want)
	}
	if text := err.Error(); strings.Contains(text, "\n") || strings.Count(text, "s3://"+bucket) != 1 {
		t.Errorf("the error reads %q", text)
	}
}

const (
	// Parts of two chunks.
	cloudPart  = 6_000_000
	cloudChunk = "5MiB"
)

// TestCloudCreate makes backups in S3 while the network or the service fails. They are whole in the end; or Create
// fails, there is no backup, and what could not be removed then has its marker, by which prune removes it.
func TestCloudCreate(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	sql := clusterDump(7 << 20)
	writes := []string{"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}
	all := append(networkTroubles(), []trouble{
		{name: "500 for a while", faults: faultsOf(servers.S3Fault{Times: 2, Status: 500, Code: "InternalError"}, writes...)},
		{name: "503 for a while", faults: faultsOf(servers.S3Fault{Times: 2, Status: 503, Code: "SlowDown"}, writes...)},
		{name: "answers lost", faults: faultsOf(servers.S3Fault{Times: 1, Lost: true}, writes...)},
		{
			name: "answer of the last request always lost", stays: true,
			faults: faultsOf(servers.S3Fault{Times: servers.Always, Lost: true}, "CompleteMultipartUpload"),
		},
		{name: "500 stays", want: storage.ErrTemporary, faults: faultsOf(servers.S3Fault{Times: servers.Always, After: 1, Status: 500}, "UploadPart")},
		{
			name: "503 stays", want: storage.ErrTemporary,
			faults: faultsOf(servers.S3Fault{Times: servers.Always, After: 1, Status: 503, Code: "SlowDown"}, "UploadPart"),
		},
		{
			name: "no metadata", want: storage.ErrTemporary, // after the second part, sums and toc
			faults: faultsOf(servers.S3Fault{Times: servers.Always, After: 3, Status: 500}, "PutObject"),
		},
		{
			name: "403", want: storage.ErrPermission,
			faults: faultsOf(servers.S3Fault{Times: servers.Always, After: 1, Status: 403, Code: "AccessDenied"}, "UploadPart"),
		},
		{
			name: "credentials expire", want: storage.ErrPermission, gone: true,
			faults: faultsOf(servers.S3Fault{Times: servers.Always, After: 2, Status: 403, Code: "ExpiredToken"}, ""),
		},
	}...)
	for i, tr := range all {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel()
			bucket := fmt.Sprintf("create-%d", i)
			s.MakeBucket(t, bucket, false)
			direct := openStore(t, s.URL(bucket), nil)
			l := tr.line(t, s, bucket, "chunk-size", cloudChunk, "concurrency", "2")
			o := createOptions(bytes.NewReader(sql), cloudPart, l.store)
			o.Progress = &trigger{at: 1, do: l.begin}
			report, err := Create(t.Context(), o)
			left := slices.Sorted(maps.Keys(objectsOf(t, direct)))
			if tr.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				if err := Restore(t.Context(), find(t, direct, report.Metadata.BackupID), &out, archive.ReadOptions{}, nil); err != nil || !bytes.Equal(out.Bytes(), sql) {
					t.Errorf("%d bytes, %v", out.Len(), err)
				}
				if len(left) != len(report.Metadata.Parts)+3 || len(report.Metadata.Parts) < 2 {
					t.Errorf("there is %q", left)
				}
				if uploads := uploadsLeft(t, direct); len(uploads) > 0 {
					t.Errorf("uploads are left: %+v", uploads)
				}
				return
			}
			wantFailure(t, err, tr.want, bucket)
			for _, name := range left {
				if strings.HasSuffix(name, ".json") || !slices.Contains(left, report.Metadata.BackupID+".incomplete") {
					t.Errorf("left is %q", left)
				}
			}
			if !tr.gone {
				if uploads := uploadsLeft(t, direct); len(left)+len(uploads) > 0 {
					t.Errorf("left is %q, %+v", left, uploads)
				}
				return
			}
			if len(left) == 0 {
				t.Error("the marker went though nothing could be removed")
			}
			// The store counts in whole seconds.
			for deadline := time.Now().Add(20 * time.Second); len(left)+len(uploadsLeft(t, direct)) > 0; left = slices.Sorted(maps.Keys(objectsOf(t, direct))) {
				if time.Now().After(deadline) {
					t.Fatalf("prune leaves %q, %+v", left, uploadsLeft(t, direct))
				}
				prune(t, direct, Policy{IncompleteOnly: true, Grace: time.Millisecond})
			}
		})
	}
}

// TestCloudRead reads a backup in S3 while the network or the service fails. It ends in the same bytes; or fetch fails
// and leaves no file, restore fails in the middle and psql does so too, and fetch of the objects goes on another time
// with what has arrived.
func TestCloudRead(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	sql := clusterDump(14 << 20)
	const bucket = "backups"
	s.MakeBucket(t, bucket, false)
	direct := openStore(t, s.URL(bucket), nil)
	report, err := Create(t.Context(), createOptions(bytes.NewReader(sql), cloudPart, direct))
	if err != nil {
		t.Fatal(err)
	}
	id, want := report.Metadata.BackupID, objectsOf(t, direct)
	cluster := startCluster(t)

	get := func(f servers.S3Fault) map[string]servers.S3Fault { return faultsOf(f, "GetObject") }
	all := append(networkTroubles(), []trouble{
		{name: "500 for a while", faults: get(servers.S3Fault{Times: 2, After: 2, Status: 500})},
		{name: "503 for a while", faults: get(servers.S3Fault{Times: 2, After: 2, Status: 503, Code: "SlowDown"})},
		{name: "answers lost", faults: get(servers.S3Fault{Times: 2, After: 2, Lost: true})},
		{name: "answers cut", faults: get(servers.S3Fault{Times: 2, After: 2, Cut: 1 << 20})},
		{name: "500 stays", want: storage.ErrTemporary, faults: get(servers.S3Fault{Times: servers.Always, After: 2, Status: 500})},
		{name: "503 stays", want: storage.ErrTemporary, faults: get(servers.S3Fault{Times: servers.Always, After: 2, Status: 503, Code: "SlowDown"})},
		{name: "credentials expire", want: storage.ErrPermission, faults: map[string]servers.S3Fault{
			"GetObject": {Times: servers.Always, After: 2, Status: 403, Code: "ExpiredToken"},
			"":          {Times: servers.Always, Status: 403, Code: "ExpiredToken"},
		}},
	}...)
	// begin finds the backup and makes trouble when so many bytes of it are through.
	begin := func(t *testing.T, tr trouble, bytes int64) (*archive.Backup, Progress) {
		l := tr.line(t, s, bucket)
		b := find(t, l.store, id)
		if tr.toxic == "" { // counts requests itself
			l.begin()
			return b, nil
		}
		return b, &trigger{at: bytes, do: l.begin}
	}
	// Little is read ahead, so that the trouble comes in the middle.
	o := archive.ReadOptions{Jobs: 2, Connections: 1}
	for _, tr := range all {
		t.Run(tr.name+"/fetch", func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "out.sql")
			b, progress := begin(t, tr, 1)
			err := FetchSQL(t.Context(), b, path, o, progress)
			if tr.want == nil {
				if got, readErr := os.ReadFile(path); err != nil || readErr != nil || !bytes.Equal(got, sql) {
					t.Errorf("%v, %v, %d bytes", err, readErr, len(got))
				}
				return
			}
			wantFailure(t, err, tr.want, bucket)
			if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
				t.Errorf("left is %v, %v", entries, err)
			}
		})
		t.Run(tr.name+"/restore", func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			b, progress := begin(t, tr, archive.SegmentSize+1)
			err := Restore(t.Context(), b, &out, o, progress)
			if tr.want == nil {
				if err != nil || !bytes.Equal(out.Bytes(), sql) {
					t.Errorf("%v, %d bytes", err, out.Len())
				}
				return
			}
			wantFailure(t, err, tr.want, bucket)
			same := 0
			for same < min(len(sql), out.Len()) && sql[same] == out.Bytes()[same] {
				same++
			}
			if same < 1<<20 || same > len(sql)-1<<20 || out.Len()-same > 100<<10 {
				t.Errorf("%d bytes are those of the dump of %d, %d follow", same, len(sql), out.Len()-same)
			}
			cmd := exec.Command("psql", "-Xq", "-d", cluster.DSN("postgres"), "-v", "ON_ERROR_STOP=0")
			cmd.Stdin = &out
			if text, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.ExitCode() < 1 {
				t.Errorf("psql takes it for whole: %v\n%s", err, text)
			}
		})
		t.Run(tr.name+"/encrypted", func(t *testing.T) {
			t.Parallel()
			to := file.New(filepath.Join(t.TempDir(), "copy"))
			b, progress := begin(t, tr, cloudPart+1)
			first, err := Copy(t.Context(), b, to, archive.CopyOptions{}, progress)
			if tr.want != nil {
				wantFailure(t, err, tr.want, bucket)
				left := slices.Sorted(maps.Keys(objectsOf(t, to)))
				// Where requests are what does not come through, the one that was under way still ends well.
				if first.Copied < 1 || first.Copied > 2 || len(left) != first.Copied+1 || left[0] != id+"-0" || left[len(left)-1] != id+".incomplete" {
					t.Errorf("%+v, left is %q", first, left)
				}
				var second archive.CopyReport
				second, err = Copy(t.Context(), find(t, direct, id), to, archive.CopyOptions{}, nil)
				if second.Present != first.Copied || second.Copied != len(want)-first.Copied {
					t.Errorf("the second time: %+v", second)
				}
			}
			if got := objectsOf(t, to); err != nil || !maps.Equal(got, want) {
				t.Errorf("%v, there is %q", err, slices.Sorted(maps.Keys(got)))
			}
		})
	}
}

// TestThreeDestinations backs a cluster up to S3, Azure and a folder in one run, and recovers each by itself: by this
// program, and by what S3 and Azure give to others' clients, openssl, gunzip and psql.
func TestThreeDestinations(t *testing.T) {
	t.Parallel()
	source, target := startCluster(t), startCluster(t)
	sql(t, source, "postgres", `CREATE TABLE t AS SELECT i, md5(i::text) || md5((i * 3)::text) AS noise FROM generate_series(1, 200000) i`)
	s3 := servers.S3(t, false)
	s3.MakeBucket(t, "backups", false)
	connection := storagetest.Azurite(t)
	_, endpoint, _ := strings.Cut(connection, "BlobEndpoint=")
	azure, err := container.NewClientFromConnectionString(connection, "backups", nil)
	if err == nil {
		_, err = azure.Create(t.Context(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	folder := filepath.Join(work, "folder")
	stores := []storage.Bucket{
		openStore(t, s3.URL("backups/pg", "chunk-size", cloudChunk), nil),
		openStore(t, "azblob://backups/pg?chunk-size=1MiB&account="+storagetest.AzuriteAccount+"&endpoint="+endpoint, nil),
		openStore(t, folder, nil),
	}
	o := createOptions(nil, 0, stores...)
	o.Stdin, o.Source = nil, postgres.Config{DSN: source.DSN("postgres")}
	report, err := Create(t.Context(), o)
	if err != nil || len(report.Failed()) > 0 {
		t.Fatal(err, report.Failed())
	}
	id := report.Metadata.BackupID

	// What others' clients bring.
	s3Dir, azureDir := filepath.Join(work, "s3"), filepath.Join(work, "azure")
	cmd := exec.Command("aws", "--endpoint-url", s3.Endpoint, "s3", "cp", "--quiet", "--recursive", "s3://backups/pg", s3Dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Mkdir(azureDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for pages := azure.NewListBlobsFlatPager(nil); pages.More(); {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range page.Segment.BlobItems {
			f, err := os.Create(filepath.Join(azureDir, filepath.Base(*item.Name)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := azure.NewBlobClient(*item.Name).DownloadFile(t.Context(), f, nil); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}

	before := contents(t, source)
	var plain, cipher string
	for i, dir := range []string{s3Dir, azureDir, folder} {
		var out bytes.Buffer
		b := find(t, stores[i], id)
		if err := Restore(t.Context(), b, &out, archive.ReadOptions{Jobs: 2}, nil); err != nil {
			t.Fatal(err)
		}
		stream := stored(objectsOf(t, stores[i]), b.Metadata)
		if i == 0 {
			plain, cipher = out.String(), stream
		}
		if out.String() != plain || stream != cipher || len(stream) < 6<<20 {
			t.Errorf("%s has not what %s has", stores[i], stores[0])
		}
		if whole := len(b.Metadata.Parts) == 1 && b.Metadata.Parts[0].Name == id; whole != (dir == azureDir) {
			t.Errorf("%s: parts %+v", stores[i], b.Metadata.Parts)
		}
		byHand := exec.Command("bash", "-euo", "pipefail", "-c",
			`cat $(ls -1v | grep -E -- "^$ID(-[0-9]+)?$") | openssl enc -d -aes256 -md md5 -pass env:PASSPHRASE 2>/dev/null | gunzip`)
		byHand.Dir = dir
		byHand.Env = append(os.Environ(), "ID="+id, "PASSPHRASE=a passphrase for this test")
		got, err := byHand.Output()
		if err != nil || string(got) != plain {
			t.Fatalf("%s by hand: %d bytes of %d, %v", dir, len(got), len(plain), err)
		}
		on(t, target, got, "psql", "-Xq", "-d", "postgres")
		same(t, dir, contents(t, target), before)
		sql(t, target, "postgres", "DROP TABLE t")
	}
}
