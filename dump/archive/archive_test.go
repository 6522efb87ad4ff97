package archive

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"encdump/crypto"
	"encdump/storage"
	"encdump/storage/file"
	"encdump/storage/storagetest"
)

const (
	testGUID   = "0d6f0c4e-9a3b-4f6e-8f0e-1f2a3b4c5d6e"
	otherGUID  = "b6f4c071-ef44-4af2-9608-531b4ce4823f"
	testSecret = "NYHD8MVmA55HEqoaYHpQaxfwEMcQ1wkI"
)

// What a key publishes is slow to derive on purpose, so the tests share theirs.
var (
	testKey  = crypto.NewKey(crypto.NewPassphrase([]byte(testSecret)), "test")
	otherKey = crypto.NewKey(crypto.NewPassphrase([]byte("another passphrase of that length")), "other")
	testKeys = crypto.Keyring{testKey}
)

var (
	testTime = time.UnixMilli(1_700_000_000_000)
	testID   = NewID(testGUID, testTime)
	errBoom  = errors.New("boom")
)

// What whole dumps begin and end with.
const (
	clusterHeader  = "--\n-- PostgreSQL database cluster dump\n--\n\n"
	clusterEnd     = "--\n-- PostgreSQL database cluster dump complete\n--\n\n"
	databaseHeader = "--\n-- PostgreSQL database dump\n--\n\n"
	databaseEnd    = "--\n-- PostgreSQL database dump complete\n--\n\n"
)

// clusterDump is the output of pg_dumpall with body in it.
func clusterDump(body string) []byte { return []byte(clusterHeader + body + clusterEnd) }

// sqlOf returns n bytes of SQL: a whole dump where that has room, else the
// beginning of one. The same seed gives the same.
func sqlOf(seed byte, n int) []byte {
	return dumpOf(n, func(n int) []byte {
		r := rand.New(rand.NewChaCha8([32]byte{seed}))
		var b []byte
		for i := 0; ; i++ {
			line := fmt.Sprintf("INSERT INTO t VALUES (%d, '%x');\n", i, r.Uint64())
			if len(b)+len(line) > n {
				return append(b, strings.Repeat("\n", n-len(b))...)
			}
			b = append(b, line...)
		}
	})
}

// noiseOf is sqlOf with something in it that does not compress.
func noiseOf(seed byte, n int) []byte {
	return dumpOf(n, func(n int) []byte {
		const begin, end = "SELECT $noise$", "$noise$;\n"
		b := bytes.Repeat([]byte("\n"), n)
		if n -= len(begin) + len(end); n > 0 {
			rand.NewChaCha8([32]byte{seed}).Read(b[len(begin):][:n])
			copy(b, begin)
			copy(b[len(begin)+n:], end)
		}
		return b
	})
}

func dumpOf(n int, body func(n int) []byte) []byte {
	if n <= len(clusterHeader)+len(clusterEnd) {
		return []byte(clusterHeader + clusterEnd)[:n]
	}
	return clusterDump(string(body(n - len(clusterHeader) - len(clusterEnd))))
}

// options completes what a test does not care about.
func options(o WriterOptions) *WriterOptions {
	if o.GUID == "" {
		o.GUID = testGUID
	}
	if o.Key == nil {
		o.Key = testKey
	}
	if o.TriggeredAt.IsZero() {
		o.TriggeredAt = testTime
	}
	return &o
}

// backUp makes a backup of what src yields, as the operation Create does.
func backUp(ctx context.Context, src io.Reader, o *WriterOptions, dst ...storage.Bucket) (*Writer, error) {
	w, err := NewWriter(ctx, dst, o)
	if err != nil {
		return nil, err
	}
	if _, err := w.ReadFrom(src); err != nil {
		w.Abort(err)
		return w, err
	}
	return w, w.Commit()
}

// mustBackUp makes a backup that nothing stands against, and returns its ID.
func mustBackUp(t testing.TB, sql []byte, o WriterOptions, dst ...storage.Bucket) ID {
	t.Helper()
	w, err := backUp(t.Context(), bytes.NewReader(sql), options(o), dst...)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range w.Destinations() {
		if d.Err != nil {
			t.Fatal(d.Err)
		}
	}
	return w.ID()
}

// objects is what a bucket holds: content by name.
type objects map[string]string

func contents(t testing.TB, b storage.Bucket) objects {
	t.Helper()
	out := objects{}
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
		out[o.Key] = string(data)
	}
	return out
}

// bucket returns a new bucket that holds the objects.
func (o objects) bucket(t testing.TB) storage.Bucket {
	t.Helper()
	b := storagetest.Mem()
	for name, data := range o {
		put(t, b, name, data)
	}
	return b
}

// names returns the names in order, with ID for the test's ID.
func (o objects) names() []string {
	var out []string
	for name := range o {
		out = append(out, strings.ReplaceAll(name, testID.String(), "ID"))
	}
	slices.Sort(out)
	return out
}

func put(t testing.TB, b storage.Bucket, name, data string) {
	t.Helper()
	if err := b.Put(t.Context(), name, strings.NewReader(data), nil); err != nil {
		t.Fatal(err)
	}
}

func wantEmpty(t testing.TB, b storage.Bucket) {
	t.Helper()
	if got := contents(t, b).names(); len(got) > 0 {
		t.Errorf("left in the bucket: %q", got)
	}
}

// wantNoBackup checks that nothing in the bucket passes for a backup.
func wantNoBackup(t testing.TB, b storage.Bucket) {
	t.Helper()
	for b, err := range OpenCatalog(b, testKeys, nil).Backups(t.Context(), "") {
		if err != nil {
			t.Error(err)
		} else if b.Status != Incomplete {
			t.Errorf("%s is %s", b.ID, b.Status)
		}
	}
}

func find(t testing.TB, b storage.Bucket, ref string, keys ...*crypto.Key) *Backup {
	t.Helper()
	if keys == nil {
		keys = testKeys
	}
	found, err := OpenCatalog(b, keys, nil).Find(t.Context(), Ref{ID: ref})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// restore reads a backup; what was released before an error comes back with it.
func restore(ctx context.Context, b *Backup, o *ReadOptions) ([]byte, error) {
	r, err := b.Reader(ctx, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// wantRestored checks that the bucket holds a whole backup of sql, in every respect.
func wantRestored(t testing.TB, b storage.Bucket, id ID, sql []byte) *Backup {
	t.Helper()
	backup := find(t, b, id.String())
	if backup.Status != Complete || !backup.Authenticated || backup.Problem != nil {
		t.Fatalf("found as %s, authenticated %v: %v", backup.Status, backup.Authenticated, backup.Problem)
	}
	if damage := backup.CheckObjects(); len(damage) > 0 {
		t.Errorf("objects: %v", damage)
	}
	if damage, err := backup.Digests(t.Context(), nil); err != nil || len(damage) > 0 {
		t.Errorf("digests: %v, %v", damage, err)
	}
	for _, jobs := range []int{0, 3} {
		got, err := restore(t.Context(), backup, &ReadOptions{Jobs: jobs})
		if err != nil {
			t.Fatalf("restored by %d jobs: %v", jobs, err)
		}
		if !bytes.Equal(got, sql) {
			t.Fatalf("restored by %d jobs: %d bytes, want %d, differing", jobs, len(got), len(sql))
		}
	}
	if n, err := backup.Decode(t.Context(), nil); n != int64(len(sql)) || err != nil {
		t.Errorf("decoded: %d, %v; want %d bytes", n, err, len(sql))
	}
	return backup
}

// shell runs commands in a folder that holds the objects and the key.
func shell(t testing.TB, o objects, commands string) []byte {
	t.Helper()
	dir := t.TempDir()
	o["key"] = testSecret + "\n"
	for name, data := range o {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	delete(o, "key")
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", commands)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 && !strings.Contains(stderr.String(), "deprecated key derivation") {
		t.Fatalf("%s: %v\n%s", commands, err, &stderr)
	}
	return out
}

// wantStock checks that stock tools get sql out of the backup, by the commands
// that it carries and by other programs that know gzip.
func wantStock(t testing.TB, o objects, b *Backup, sql []byte) {
	t.Helper()
	if got := shell(t, o, b.Metadata.Recover); !bytes.Equal(got, sql) {
		t.Errorf("the backup's own commands recover %d bytes, want %d, differing", len(got), len(sql))
	}
	for _, program := range []string{"zcat", "pigz -dc"} {
		commands := strings.ReplaceAll(b.Metadata.Recover, "gunzip -c", program)
		if got := shell(t, o, commands); !bytes.Equal(got, sql) {
			t.Errorf("%s gives %d bytes, want %d, differing", program, len(got), len(sql))
		}
	}
}

// wantFormat checks the stored stream against the description of the format,
// without the code that reads backups.
func wantFormat(t testing.TB, o objects, b *Backup, sql []byte, partSize int64) {
	t.Helper()
	id, m := b.ID.String(), b.Metadata
	var stored strings.Builder
	for i, p := range m.Parts {
		name := fmt.Sprintf("%s-%d", id, i)
		if partSize == WholeObject {
			name = id
		}
		if p.Name != name {
			t.Errorf("part %d is %s, want %s", i, p.Name, name)
		}
		if last := i == len(m.Parts)-1; partSize != WholeObject && (p.Size > partSize || p.Size < partSize && !last) {
			t.Errorf("part %d of %d has %d bytes", i, len(m.Parts), p.Size)
		}
		stored.WriteString(o[p.Name])
	}
	if n := len(o); n != len(m.Parts)+3 {
		t.Errorf("the bucket holds %d objects, want %d parts and .json, .sums and .toc", n, len(m.Parts))
	}
	if got := len(o[id+".sums"]); got != (stored.Len()+(4<<20)-1)/(4<<20)*32 {
		t.Errorf("sums of %d bytes for %d", got, stored.Len())
	}
	zipped, err := openEnc(stored.String(), b)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Sizes{int64(len(sql)), int64(len(zipped)), int64(stored.Len())}); m.Sizes != want {
		t.Errorf("sizes are %v, want %v", m.Sizes, want)
	}
	// Frames: a gzip member each, which begins with its own size.
	toc, err := b.TOC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	count, rest := 0, zipped
	for pos := 0; len(rest) > 0; count++ {
		if len(rest) < 20 || string(rest[:4]) != "\x1f\x8b\x08\x04" || string(rest[10:16]) != "\x08\x00DF\x04\x00" {
			t.Fatalf("frame %d begins with % x", count, rest[:min(20, len(rest))])
		}
		n := int(rest[16]) | int(rest[17])<<8 | int(rest[18])<<16 | int(rest[19])<<24
		z, err := gzip.NewReader(bytes.NewReader(rest[:n]))
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false)
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatalf("frame %d: %v", count, err)
		}
		if !bytes.HasPrefix(sql[pos:], plain) || len(plain) == 0 && len(sql) > 0 {
			t.Fatalf("frame %d holds %d other bytes", count, len(plain))
		}
		pos += len(plain)
		rest = rest[n:]
		if count >= len(toc.Frames) || toc.Frames[count] != [2]int{len(plain), n} {
			t.Fatalf("frame %d has %d plain and %d compressed bytes, the toc says %v", count, len(plain), n, toc.Frames)
		}
		if last := len(rest) == 0; len(plain) > m.Compression.FrameSize || len(plain) < m.Compression.FrameSize && !last {
			t.Errorf("frame %d has %d plain bytes, frame_size is %d", count, len(plain), m.Compression.FrameSize)
		}
	}
	if count != len(toc.Frames) {
		t.Errorf("%d frames, the toc has %d", count, len(toc.Frames))
	}
	for _, secret := range []string{testSecret, "INSERT", "PostgreSQL"} {
		if strings.Contains(o[id+".json"], secret) {
			t.Errorf("the metadata hold %q", secret)
		}
	}
}

// openEnc decrypts a stream with the container's own reader.
func openEnc(stored string, b *Backup) ([]byte, error) {
	r, err := crypto.NewReader(strings.NewReader(stored), testKey.Passphrase(),
		&crypto.Options{Derivation: b.Metadata.Encryption.Derivation()})
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// TestRoundTrip makes backups with sizes around every boundary, and reads them
// by this package and by stock tools.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	type test struct {
		name  string
		sql   []byte
		o     WriterOptions
		stock bool // what costs processes is not done for all
	}
	var tests []test
	for _, size := range []int{1, 7, 100} {
		for _, n := range []int{0, 1, size - 1, size, size + 1, 3*size - 1, 3 * size, 3*size + 1} {
			tests = append(tests, test{
				fmt.Sprintf("frames of %d, %d bytes", size, n), sqlOf(1, n),
				WriterOptions{FrameSize: size, AllowPartial: true},
				size == 7,
			})
		}
	}
	for _, n := range []int{DefaultFrameSize - 1, DefaultFrameSize, DefaultFrameSize + 1, 2*DefaultFrameSize + 1} {
		tests = append(tests, test{fmt.Sprintf("default frames, %d bytes", n), sqlOf(2, n), WriterOptions{Jobs: 2}, n == DefaultFrameSize})
	}
	small := sqlOf(3, 400)
	for size := int64(1); size <= 40; size++ {
		tests = append(tests, test{
			fmt.Sprintf("parts of %d", size), small,
			WriterOptions{PartSize: size, FrameSize: 150, Jobs: int(size % 4)},
			size%13 == 0,
		})
	}
	large := noiseOf(4, 9<<20+5)
	for i, size := range []int64{
		chunkSize - 1, chunkSize, chunkSize + 1,
		SegmentSize - 1, SegmentSize, SegmentSize + 1, WholeObject, DefaultPartSize,
	} {
		tests = append(tests, test{
			fmt.Sprintf("noise in parts of %d", size), large,
			WriterOptions{PartSize: size, Jobs: []int{1, 2, 16}[i%3], FrameSize: []int{0, 100_000}[i%2]},
			size == WholeObject || size == SegmentSize,
		})
	}
	tests = append(
		tests,
		test{"many jobs", sqlOf(5, 100_000), WriterOptions{FrameSize: 100, Jobs: 16, PartSize: 5000}, false},
		test{"zeros", clusterDump("SELECT '" + strings.Repeat("0", 5<<20) + "';\n"), WriterOptions{Jobs: 2}, true},
		test{"level 9", sqlOf(6, 50_000), WriterOptions{Level: 9, FrameSize: 10_000}, false},
		test{"SHA-256", sqlOf(7, 5000), WriterOptions{Derivation: crypto.SHA256}, true},
		test{"PBKDF2", sqlOf(8, 5000), WriterOptions{Derivation: crypto.NewPBKDF2(1000), PartSize: 100}, true},
		test{"whole and small", sqlOf(9, 5000), WriterOptions{PartSize: WholeObject}, true},
	)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, b := range []storage.Bucket{storagetest.Mem(), file.New(t.TempDir())} {
				if _, ok := b.(*file.Bucket); ok && !test.stock {
					continue // syncing hundreds of parts costs more than it shows
				}
				id := mustBackUp(t, test.sql, test.o, b)
				if id != testID {
					t.Errorf("its ID is %s, want %s", id, testID)
				}
				backup := wantRestored(t, b, id, test.sql)
				all := contents(t, b)
				size := test.o.PartSize
				if size == 0 {
					size = DefaultPartSize
				}
				wantFormat(t, all, backup, test.sql, size)
				if test.stock {
					wantStock(t, all, backup, test.sql)
				}
			}
		})
	}
}

// TestWriterSteps writes the same SQL in all kinds of steps; each must give the
// same frames.
func TestWriterSteps(t *testing.T) {
	t.Parallel()
	sql := sqlOf(1, 3001)
	steps := func(sizes ...int) func(io.Writer, io.Reader) error {
		return func(w io.Writer, r io.Reader) error {
			for i := 0; ; i++ {
				b := make([]byte, sizes[i%len(sizes)])
				n, err := io.ReadFull(r, b)
				if k, err := w.Write(b[:n]); k != n || err != nil {
					return fmt.Errorf("Write of %d: %d, %w", n, k, err)
				}
				for j := range b {
					b[j] = 'x' // the writer must have kept a copy
				}
				if err != nil {
					return nil
				}
			}
		}
	}
	from := func(wrap func(io.Reader) io.Reader) func(io.Writer, io.Reader) error {
		return func(w io.Writer, r io.Reader) error {
			n, err := w.(io.ReaderFrom).ReadFrom(wrap(r))
			if err == nil && n != int64(len(sql)) {
				err = fmt.Errorf("ReadFrom tells of %d bytes", n)
			}
			return err
		}
	}
	for name, write := range map[string]func(io.Writer, io.Reader) error{
		"bytes":              steps(1),
		"all at once":        steps(len(sql)),
		"odd":                steps(3, 0, 97, 1, 500),
		"a frame":            steps(100),
		"a frame and a byte": steps(101),
		"one byte reader":    from(iotest.OneByteReader),
		"half reader":        from(iotest.HalfReader),
		"data and EOF":       from(iotest.DataErrReader),
		"mixed": func(w io.Writer, r io.Reader) error {
			if err := steps(33)(w, io.LimitReader(r, 330)); err != nil {
				return err
			}
			_, err := w.(io.ReaderFrom).ReadFrom(iotest.HalfReader(r))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := storagetest.Mem()
			var progress struct {
				sync.Mutex
				n int
			}
			w, err := NewWriter(t.Context(), []storage.Bucket{b}, options(WriterOptions{
				FrameSize: 100, PartSize: 77, Jobs: 2,
				Progress: func(n int) { progress.Lock(); progress.n += n; progress.Unlock() },
			}))
			if err != nil {
				t.Fatal(err)
			}
			if err := write(w, bytes.NewReader(sql)); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			backup := wantRestored(t, b, w.ID(), sql)
			wantFormat(t, contents(t, b), backup, sql, 77)
			if progress.n != len(sql) {
				t.Errorf("progress tells of %d bytes, want %d", progress.n, len(sql))
			}
		})
	}
}

// TestReaderSteps reads in all kinds of steps.
func TestReaderSteps(t *testing.T) {
	t.Parallel()
	sql := sqlOf(1, 3001)
	b := storagetest.Mem()
	id := mustBackUp(t, sql, WriterOptions{FrameSize: 100, PartSize: 77}, b)
	backup := find(t, b, id.String())
	for _, jobs := range []int{0, 1, 2, 16} {
		r, err := backup.Reader(t.Context(), &ReadOptions{Jobs: jobs})
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, sql); err != nil {
			t.Errorf("%d jobs: %v", jobs, err)
		}
		for range 2 {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestReaderClosed checks that a closed reader, or one whose context is done,
// yields an error instead of an end.
func TestReaderClosed(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	sql := sqlOf(1, 100_000)
	id := mustBackUp(t, sql, WriterOptions{FrameSize: 10}, b)
	for _, how := range []string{"closed", "cancelled"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		r, err := find(t, b, id.String()).Reader(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 15)); err != nil {
			t.Fatal(err)
		}
		if how == "closed" {
			r.Close()
		} else {
			cancel(errBoom)
		}
		rest, err := io.ReadAll(r)
		if err == nil || how == "cancelled" && !errors.Is(err, errBoom) {
			t.Errorf("%s: %d bytes more, then %v", how, len(rest), err)
		}
		cancel(nil)
		r.Close()
	}
}

// TestWriterOptions checks what NewWriter refuses, before it touches a bucket.
func TestWriterOptions(t *testing.T) {
	t.Parallel()
	short := crypto.NewKey(crypto.NewPassphrase([]byte("short")), "short")
	for name, o := range map[string]WriterOptions{
		"no GUID":          {GUID: "x"},
		"upper-case GUID":  {GUID: strings.ToUpper(testGUID)},
		"level":            {Level: 10},
		"negative level":   {Level: -1},
		"part size":        {PartSize: -2},
		"frame size":       {FrameSize: -1},
		"large frame size": {FrameSize: maxFrame},
		"derivation":       {Derivation: crypto.NewPBKDF2(0)},
		"short passphrase": {Key: short},
	} {
		b := storagetest.NewFaulty(storagetest.Mem())
		if _, err := NewWriter(t.Context(), []storage.Bucket{b}, options(o)); err == nil {
			t.Errorf("%s: taken", name)
		}
		if n := b.Calls(storagetest.Put); n > 0 {
			t.Errorf("%s: refused after %d puts", name, n)
		}
	}
	if _, err := NewWriter(t.Context(), []storage.Bucket{storagetest.Mem()}, options(WriterOptions{Key: short, Derivation: crypto.NewPBKDF2(10)})); err != nil {
		t.Errorf("short passphrase with PBKDF2: %v", err)
	}
}

// TestComplete decides which streams are whole dumps.
func TestComplete(t *testing.T) {
	t.Parallel()
	const (
		restrict   = "\\restrict nD5Z\n\n"
		unrestrict = "\\unrestrict nD5Z\n\n"
		statement  = "CREATE TABLE a ();\n"
	)
	database := databaseHeader + restrict + "\\connect db\n\n" + statement + databaseEnd + unrestrict
	cluster := clusterHeader + restrict + statement + "\\connect db\n" + database + clusterEnd
	tests := map[string]struct{ sql, kind string }{
		"cluster":                     {cluster, KindCluster},
		"without \\restrict":          {clusterHeader + statement + clusterEnd, KindCluster},
		"comments before the header":  {"-- made by hand\n\n" + cluster, KindCluster},
		"carriage returns":            {strings.ReplaceAll(cluster, "\n", "\r\n"), KindCluster},
		"no statement":                {clusterHeader + clusterEnd, KindCluster},
		"\\unrestrict at the end":     {cluster + unrestrict, KindCluster},
		"white space at the end":      {cluster + "\n\n\n", KindCluster},
		"comment at the end":          {cluster + "-- bye\n", KindCluster},
		"database":                    {database, KindDatabase},
		"database, no \\restrict":     {databaseHeader + statement + databaseEnd, KindDatabase},
		"\\restrict first":            {restrict + database, KindDatabase},
		"empty":                       {"", ""},
		"no header":                   {statement + clusterEnd, ""},
		"header behind a statement":   {statement + cluster, ""},
		"header alone":                {clusterHeader, ""},
		"header within a line":        {strings.Replace(cluster, "-- PostgreSQL database cluster dump\n", "-- PostgreSQL database cluster dump of x\n", 1), ""},
		"statement at the end":        {cluster + "DROP TABLE t;\n", ""},
		"statement without a newline": {cluster + "DROP", ""},
		"data at the end":             {cluster + "1\tx\n", ""},
		"other completion comment":    {clusterHeader + statement + databaseEnd, ""},
		"other one, of a cluster":     {databaseHeader + statement + clusterEnd, ""},
		"cut behind a database":       {clusterHeader + statement + database, ""},
		"twice, the second cut":       {cluster + clusterHeader + statement, ""},
		"comment in front of it":      {clusterHeader + "x -- PostgreSQL database cluster dump complete\n", ""},
		"completion comment as data":  {clusterHeader + "COPY public.t (c) FROM stdin;\n-- PostgreSQL database cluster dump complete\n", ""},
		"and behind the data": {
			clusterHeader + "COPY public.t (c) FROM stdin;\n-- PostgreSQL database cluster dump complete\n\\.\n", "",
		},
		"in quotes":            {clusterHeader + "SELECT '\n-- PostgreSQL database cluster dump complete\n", ""},
		"in dollar quotes":     {clusterHeader + "SELECT $x$\n-- PostgreSQL database cluster dump complete\n", ""},
		"in a comment":         {clusterHeader + "/*\n-- PostgreSQL database cluster dump complete\n", ""},
		"in a statement":       {clusterHeader + "SELECT 1\n-- PostgreSQL database cluster dump complete\n", ""},
		"cut behind data":      {clusterHeader + "COPY public.t (c) FROM stdin;\n1\n", ""},
		"long end of comments": {cluster + strings.Repeat("-- x\n", 3000), KindCluster},
	}
	for name, test := range tests {
		// In one write and in many, which the scanner has to put together.
		for _, step := range []int{len(test.sql) + 1, 1, 1000} {
			e := newScan()
			for chunk := range slices.Chunk([]byte(test.sql), step) {
				e.write(chunk)
			}
			kind, err := e.kind()
			if kind != test.kind || (kind == "") != errors.Is(err, ErrCutShort) {
				t.Errorf("%s, in steps of %d: %q, %v; want %q", name, step, kind, err, test.kind)
			}
		}
	}

	// Cut at every byte: whole is what has the completion comment whole, unless a
	// line behind it is torn, which may be anything.
	for _, sql := range []string{cluster, database} {
		least := strings.LastIndex(sql, " complete\n") + len(" complete")
		for n := range sql {
			e := newScan()
			e.write([]byte(sql[:n]))
			_, err := e.kind()
			if err == nil && n < least || err != nil && (n == least || n > least && sql[n-1] == '\n') {
				t.Errorf("cut after %q: %v", sql[max(0, n-20):n], err)
			}
		}
	}
}

// TestKind checks what kind a backup gets, and that one that is cut short
// becomes none.
func TestKind(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, sql, set string
		partial        bool
		kind           string // empty: refused
	}{
		{"cluster", clusterHeader + clusterEnd, "", false, KindCluster},
		{"database", databaseHeader + databaseEnd, "", false, KindDatabase},
		{"cut", clusterHeader, "", false, ""},
		{"cut, of a kind", clusterHeader, KindCluster, false, ""},
		{"cut and partial", clusterHeader, "", true, KindPartial},
		{"cut and partial, of a kind", clusterHeader, KindCluster, true, KindPartial},
		{"whole and partial", clusterHeader + clusterEnd, "", true, KindCluster},
		{"whole, of a kind", clusterHeader + clusterEnd, KindPartial, false, KindPartial},
		{"empty", "", "", false, ""},
	} {
		b := storagetest.Mem()
		w, err := NewWriter(t.Context(), []storage.Bucket{b}, options(WriterOptions{AllowPartial: test.partial}))
		if err != nil {
			t.Fatal(err)
		}
		w.Metadata.Source.Kind = test.set
		if _, err := io.WriteString(w, test.sql); err != nil {
			t.Fatal(err)
		}
		err = w.Commit()
		if test.kind == "" {
			if !errors.Is(err, ErrCutShort) || !errors.Is(w.Destinations()[0].Err, ErrCutShort) {
				t.Errorf("%s: %v, in the bucket: %v", test.name, err, w.Destinations()[0].Err)
			}
			wantEmpty(t, b)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := find(t, b, Latest).Metadata.Source.Kind; got != test.kind {
			t.Errorf("%s: kind %q, want %q", test.name, got, test.kind)
		}
	}
}

// TestMetadataFields checks what a backup says of itself.
func TestMetadataFields(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	w, err := NewWriter(t.Context(), []storage.Bucket{b}, options(WriterOptions{
		Settings: map[string]string{"TimeZone": "UTC"}, TriggeredAt: testTime.Add(123456 * time.Nanosecond),
	}))
	if err != nil {
		t.Fatal(err)
	}
	w.Metadata.Name, w.Metadata.Previous, w.Metadata.Tool = "<nightly> & más", "before", Tool{"dump", "1.2"}
	w.Metadata.Source.Host = "db1"
	w.Write(clusterDump(""))
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	backup := find(t, b, Latest)
	got := *backup.Metadata
	if got.StartedAt.IsZero() || got.FinishedAt.Before(got.StartedAt) || got.StartedAt.Location() != time.UTC {
		t.Errorf("started at %v, finished at %v", got.StartedAt, got.FinishedAt)
	}
	if !got.TriggeredAt.Equal(testTime) || !backup.StartedAt().Equal(got.StartedAt) {
		t.Errorf("triggered at %v, want %v", got.TriggeredAt, testTime)
	}
	if got.Name != "<nightly> & más" || got.Previous != "before" || got.Tool != (Tool{"dump", "1.2"}) || got.Source.Host != "db1" || got.Status != "done" || got.Version != 1 {
		t.Errorf("%+v", got)
	}
	if got.Encryption.KeyID != testKey.ID() || got.Encryption.Derivation() != crypto.MD5 || got.Compression != (Compression{"gzip", DefaultLevel, DefaultFrameSize}) {
		t.Errorf("%+v, %+v", got.Encryption, got.Compression)
	}
	toc, err := backup.TOC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if toc.BackupID != testID.String() || !maps.Equal(toc.Settings, map[string]string{"TimeZone": "UTC"}) {
		t.Errorf("toc: %+v", toc)
	}
	// The toc, too, is read by stock tools.
	text := shell(t, contents(t, b), "openssl enc -d -aes256 -md md5 -pass file:key -in "+testID.String()+".toc | gunzip")
	if !strings.Contains(string(text), `"frames":[[`) {
		t.Errorf("toc: %s", text)
	}
	if json := contents(t, b)[testID.String()+".json"]; !strings.Contains(json, `"name": "<nightly> & más"`) {
		t.Error("people cannot read the metadata:", json)
	}
}
