package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/rogpeppe/go-internal/testscript"

	"encdump/storage/storagetest"
	"encdump/storage/storagetest/servers"
)

// TestCloudStores runs one script against each service.
func TestCloudStores(t *testing.T) {
	for _, test := range []struct {
		name  string
		start func(t *testing.T) map[string]string // what the script finds in its environment
	}{
		{"azblob", func(t *testing.T) map[string]string {
			connection := storagetest.Azurite(t)
			c, err := container.NewClientFromConnectionString(connection, "backups", nil)
			if err == nil {
				_, err = c.Create(t.Context(), nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			return map[string]string{
				"AZURE_STORAGE_CONNECTION_STRING": connection,
				"STORE":                           "azblob://backups/pg?chunk-size=1MiB",
				"OTHER":                           "azblob://none",
				"LAYOUT":                          "--part-size=0",
			}
		}},
		{"gs", func(t *testing.T) map[string]string {
			endpoint := storagetest.GCS(t)
			resp, err := http.Post(endpoint+"/storage/v1/b", "application/json", strings.NewReader(`{"name":"backups"}`))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return map[string]string{
				"STORE":  "gs://backups/pg?endpoint=" + endpoint,
				"OTHER":  "gs://none?endpoint=" + endpoint,
				"LAYOUT": "--part-size=100B",
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := test.start(t)
			testscript.Run(t, testscript.Params{
				Dir: "testdata/cloud",
				Setup: func(e *testscript.Env) error {
					for name, value := range env {
						e.Setenv(name, value)
					}
					e.Setenv("SCHEME", test.name)
					home := filepath.Join(e.WorkDir, "home")
					e.Setenv("HOME", home)
					e.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
					e.Setenv("GUID", "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11")
					return os.MkdirAll(home, 0o700)
				},
				Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
					"status": scriptStatus,
					"sh":     scriptShell,
				},
				RequireExplicitExec: true,
			})
		})
	}
}

const (
	someGUID  = "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11"
	s3Bucket  = "backups"
	maxMemory = 256 << 20 // that a dump process may take, in bytes
)

// newS3Program makes a program whose store is a bucket of the server, in small chunks.
func newS3Program(t *testing.T, s *servers.S3Server) *program {
	t.Helper()
	p := newProgram(t, nil)
	for name, value := range servers.S3Env() {
		p.env = append(p.env, name+"="+value)
	}
	p.env = append(p.env, "DUMP_GUID="+someGUID, "DUMP_STORE="+s.URL(s3Bucket, "chunk-size", "5MiB"))
	return p
}

// inS3 returns the names of the objects and the number of unfinished uploads.
func inS3(t *testing.T, s *servers.S3Server) (names []string, uploads int) {
	t.Helper()
	bucket := s3Bucket
	list, err := s.Client().ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Contents {
		names = append(names, *o.Key)
	}
	multi, err := s.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	return names, len(multi.Uploads)
}

// awaitChunk polls until a chunk of an unfinished upload is stored.
func awaitChunk(t *testing.T, s *servers.S3Server) {
	t.Helper()
	bucket := s3Bucket
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		multi, err := s.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range multi.Uploads {
			parts, err := s.Client().ListParts(t.Context(), &s3.ListPartsInput{Bucket: &bucket, Key: u.Key, UploadId: u.UploadId})
			if err == nil && len(parts.Parts) > 0 {
				return
			}
		}
	}
	t.Fatal("no chunk was stored")
}

// bigDump writes a dump of a table of n random bytes in base64, at which compression gains next to nothing: some 1.35 n
// bytes are stored.
func bigDump(w io.Writer, n int64) error {
	b := bufio.NewWriterSize(w, 1<<20)
	b.WriteString("--\n-- PostgreSQL database cluster dump\n--\n\n\\connect postgres\n\nCOPY public.t (x) FROM stdin;\n")
	random := rand.NewChaCha8([32]byte{7})
	var raw [96]byte
	for ; n > 0; n -= int64(len(raw)) {
		random.Read(raw[:])
		b.Write(base64.StdEncoding.AppendEncode(b.AvailableBuffer(), raw[:]))
		b.WriteByte('\n')
	}
	b.WriteString("\\.\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n")
	return b.Flush()
}

// pruneAll prunes until the store is empty, which it is when the store's clock, of whole seconds, has gone on.
func pruneAll(t *testing.T, p *program, s *servers.S3Server) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		p.ok("prune", "--incomplete-only", "--yes", "--grace", "1ms")
		names, uploads := inS3(t, s)
		if len(names)+uploads == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("prune leaves %q and %d uploads", names, uploads)
		}
	}
}

// TestKilledUpload: create is killed in the middle of a multipart upload. prune finds what that leaves, also what no
// listing of objects shows, and removes it when the grace is over.
func TestKilledUpload(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	s.MakeBucket(t, s3Bucket, false)
	p := newS3Program(t, s)
	cmd := p.command("create", "--stdin")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go bigDump(in, 40<<20) // the pipe breaks
	awaitChunk(t, s)
	cmd.Process.Kill()
	cmd.Wait()
	in.Close()
	names, uploads := inS3(t, s)
	if len(names) != 1 || !strings.HasSuffix(names[0], ".incomplete") || uploads != 1 {
		t.Fatalf("left is %q and %d uploads", names, uploads)
	}
	if out := p.ok("list"); !strings.Contains(out, " incomplete") {
		t.Errorf("list shows %q", out)
	}
	p.ok("prune", "--incomplete-only", "--yes")
	if names, uploads := inS3(t, s); len(names) != 1 || uploads != 1 {
		t.Errorf("within the grace prune leaves %q and %d uploads", names, uploads)
	}
	if out := p.ok("prune", "--incomplete-only", "--dry-run", "--grace", "1ms"); !strings.Contains(out, "upload") {
		t.Errorf("the plan is %q", out)
	}
	pruneAll(t, p, s)
}

// TestOutage: the store goes away in the middle of create for longer than it is tried again. There is one error, and
// no backup.
func TestOutage(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	s.MakeBucket(t, s3Bucket, false)
	proxy := servers.StartProxy(t, s.Address)
	p := newS3Program(t, &servers.S3Server{Endpoint: "http://" + proxy.Address})
	p.env = append(p.env, "DUMP_RETRY_FOR=1s", "DUMP_TIMEOUT=500ms")
	cmd := p.command("create", "--stdin")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It ends though whoever writes the dump goes on for ever.
	go bigDump(in, 1<<40)
	awaitChunk(t, s)
	proxy.Enable(t, false)
	cmd.Wait()
	in.Close()
	text := stderr.String()
	if got := cmd.ProcessState.ExitCode(); got != 1 || strings.Count(text, "dump: error: ") != 1 || !strings.Contains(text, "s3://"+s3Bucket) || strings.Contains(text, servers.S3SecretKey) {
		t.Errorf("status %d\n%s", got, text)
	}
	if names, _ := inS3(t, s); slices.ContainsFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".incomplete") }) {
		t.Errorf("left is %q", names)
	}
	proxy.Enable(t, true)
	pruneAll(t, p, s)
}

// TestLargeStream sends a stream of several parts to S3 and to a folder at once and back, in little memory. With
// TEST_FULL_SIZE it is 2.5 GB in parts of 1 GB.
func TestLargeStream(t *testing.T) {
	t.Parallel()
	partSize, option := int64(16_000_000), "16MB"
	if os.Getenv("TEST_FULL_SIZE") != "" {
		partSize, option = 1_000_000_000, "1GB"
	}
	s := servers.S3(t, false)
	s.MakeBucket(t, s3Bucket, false)
	p := newS3Program(t, s)
	url := s.URL(s3Bucket) // in chunks of the size that is usual
	p.env = append(p.env, "DUMP_STORE="+url)
	memory := func(what string, state *os.ProcessState) {
		peak := state.SysUsage().(*syscall.Rusage).Maxrss << 10
		t.Logf("%s: %d MiB of memory at most", what, peak>>20)
		if peak > maxMemory {
			t.Errorf("%s took %d MiB", what, peak>>20)
		}
	}

	cmd := p.command("create", "--stdin", "--part-size", option, "--store", url, "--store", "folder")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sent, start := sha256.New(), time.Now()
	if err := bigDump(io.MultiWriter(in, sent), partSize*15/8); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("create took %v", time.Since(start).Round(time.Second/10))
	memory("create", cmd.ProcessState)

	bucket := s3Bucket
	list, err := s.Client().ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int64 // of the parts
	for _, o := range list.Contents {
		if filepath.Ext(*o.Key) == "" {
			sizes = append(sizes, *o.Size)
		}
		if info, err := os.Stat(filepath.Join(p.dir, "folder", *o.Key)); err != nil || info.Size() != *o.Size {
			t.Errorf("%s is not in the folder, too: %v", *o.Key, err)
		}
	}
	if len(sizes) != 3 || sizes[0] != partSize || sizes[1] != partSize || sizes[2] < partSize*4/10 || sizes[2] > partSize*6/10 {
		t.Errorf("the parts have %d bytes", sizes)
	}

	for _, store := range []string{url, "folder"} {
		start := time.Now()
		got := sha256.New()
		cmd := p.command("restore", "--store", store)
		cmd.Stdout = got
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%x", sent.Sum(nil)); fmt.Sprintf("%x", got.Sum(nil)) != want {
			t.Errorf("%s brings other bytes back", store)
		}
		t.Logf("restore took %v", time.Since(start).Round(time.Second/10))
		memory("restore", cmd.ProcessState)
	}
}

// TestLockedBackup: whoever has the credentials of a bucket with Object Lock can hide a backup and put other objects over
// it, and cannot destroy it. When that is taken back, it restores.
func TestLockedBackup(t *testing.T) {
	t.Parallel()
	s := servers.S3(t, false)
	s.MakeBucket(t, s3Bucket, true)
	p := newS3Program(t, s)
	var sql bytes.Buffer
	if err := bigDump(&sql, 10_000); err != nil {
		t.Fatal(err)
	}
	whole := sql.String()
	create := p.command("create", "--stdin", "--part-size", "5000B", "--store", s.URL(s3Bucket, "lock-days", "1", "lock-mode", "compliance"))
	create.Stdin = strings.NewReader(whole)
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	objects, _ := inS3(t, s)
	if len(objects) < 5 {
		t.Fatalf("only %q", objects)
	}

	id := strings.TrimSuffix(objects[slices.IndexFunc(objects, func(o string) bool { return strings.HasSuffix(o, ".json") })], ".json")

	// prune keeps it for a newer one that has no lock, and says until when.
	second := p.command("create", "--stdin")
	second.Stdin = strings.NewReader(whole)
	if out, err := second.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	client, bucket := s.Client(), s3Bucket
	retention, err := client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &bucket, Key: &objects[0]})
	if err != nil {
		t.Fatal(err)
	}
	until := "locked until " + retention.Retention.RetainUntilDate.UTC().Format(time.DateTime+"Z")
	if plan := p.ok("prune", "--keep-last", "1", "--yes", "--verbose"); !strings.Contains(plan, until) {
		t.Errorf("the plan of prune is %q, want %q", plan, until)
	}
	if now, _ := inS3(t, s); !slices.Equal(now[:len(objects)], objects) {
		t.Errorf("after prune there are %q", now)
	}
	p.ok("delete", "latest", "--yes")

	// rekey does not put one in its place that has no lock.
	p.ok("key", "generate", "--key-file", filepath.Join(p.dir, "newer"))
	if status, _, errors := p.run("rekey", "--backup-id", id, "--new-key-file", filepath.Join(p.dir, "newer")); status != 1 || !strings.Contains(errors, id+" is "+until) || !strings.Contains(errors, "--keep-old") {
		t.Errorf("rekey of a locked backup: status %d, %s", status, errors)
	}
	if now, _ := inS3(t, s); !slices.Equal(now, objects) {
		t.Errorf("after rekey there are %q", now)
	}

	// Everything that a thief may ask for.
	versions := func() *s3.ListObjectVersionsOutput {
		t.Helper()
		list, err := client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &bucket})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	ours := map[string]bool{} // versions of the backup
	for _, v := range versions().Versions {
		if slices.Contains(objects, *v.Key) {
			ours[*v.Key+" "+*v.VersionId] = true
		}
	}
	if len(ours) != len(objects) {
		t.Fatalf("%d versions of %d objects", len(ours), len(objects))
	}
	for _, o := range objects {
		if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &o, Body: strings.NewReader("mine")}); err != nil {
			t.Fatal(err)
		}
	}
	if status, out, _ := p.run("restore", id); status == 0 || out != "" {
		t.Errorf("what a thief put over a backup is restored: status %d, %d bytes", status, len(out))
	}
	p.ok("delete", id, "--yes")
	if out := p.ok("list"); strings.Contains(out, someGUID) {
		t.Errorf("a deleted backup is listed: %s", out)
	}
	for _, v := range versions().Versions {
		bypass := true
		_, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: v.Key, VersionId: v.VersionId, BypassGovernanceRetention: &bypass})
		if ours[*v.Key+" "+*v.VersionId] == (err == nil) {
			t.Errorf("version of %s deleted: %v", *v.Key, err)
		}
	}
	for _, m := range versions().DeleteMarkers {
		if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: m.Key, VersionId: m.VersionId}); err != nil {
			t.Fatal(err)
		}
	}
	if now, _ := inS3(t, s); !slices.Equal(now, objects) {
		t.Errorf("back are %q, not %q", now, objects)
	}
	if p.ok("restore", id) != whole {
		t.Error("the backup does not restore")
	}
	p.ok("verify", id, "--level", "decode")
}
