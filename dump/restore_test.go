package dump

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/script"
	"encdump/storage"
	"encdump/storage/file"
	"encdump/storage/storagetest"
)

// clusterDump is a dump of one database with a small table between two large
// ones, whose rows do not compress well.
func clusterDump(large int) []byte {
	var b bytes.Buffer
	random := rand.New(rand.NewPCG(5, 6))
	b.WriteString("--\n-- PostgreSQL database cluster dump\n--\n\nSET standard_conforming_strings = on;\n\n" +
		"--\n-- Databases\n--\n\n--\n-- Database \"shop\" dump\n--\n\n--\n-- PostgreSQL database dump\n--\n\n" +
		"CREATE DATABASE shop WITH TEMPLATE = template0 ENCODING = 'UTF8';\n\n\\connect shop\n\n")
	tables := []string{"before", "small", "after"}
	for _, t := range tables {
		fmt.Fprintf(&b, "--\n-- Name: %s; Type: TABLE; Schema: public; Owner: postgres\n--\n\nCREATE TABLE public.%s (\n    x text\n);\n\n\n", t, t)
	}
	for _, t := range tables {
		fmt.Fprintf(&b, "--\n-- Data for Name: %s; Type: TABLE DATA; Schema: public; Owner: postgres\n--\n\nCOPY public.%s (x) FROM stdin;\n", t, t)
		n := large
		if t == "small" {
			n = 1000
		}
		for size := 0; size < n; size += 64 {
			for range 8 {
				fmt.Fprintf(&b, "%08x", random.Uint32())
			}
			b.WriteByte('\n')
		}
		b.WriteString("\\.\n\n\n")
	}
	b.WriteString("--\n-- PostgreSQL database dump complete\n--\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n")
	return b.Bytes()
}

// TestRestoreReadsLittle counts what is read to restore one small table: metadata,
// sums, toc, and the segments that hold its frames; no more.
func TestRestoreReadsLittle(t *testing.T) {
	sql := clusterDump(40 << 20)
	key := crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for this test")), "test")
	mem := storagetest.Mem()
	report, err := Create(t.Context(), &CreateOptions{
		Stores: []storage.Bucket{mem}, Stdin: bytes.NewReader(sql), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11",
		Key:     func(context.Context, string, bool) (*crypto.Key, error) { return key, nil },
		Archive: archive.WriterOptions{Jobs: 2, PartSize: 10_000_000},
	})
	if err != nil {
		t.Fatal(err)
	}
	bucket := storagetest.NewFaulty(mem)
	b, err := archive.OpenCatalog(bucket, crypto.Keyring{key}, nil).Find(t.Context(), archive.Ref{})
	if err != nil {
		t.Fatal(err)
	}
	restore := func(s *script.Selection) (string, int64) {
		t.Helper()
		before := bucket.BytesRead()
		var out strings.Builder
		left, err := RestoreSelected(t.Context(), b, &out, s, archive.ReadOptions{Jobs: 2}, nil, nil)
		if err != nil || len(left) > 0 {
			t.Fatalf("%v, left out %q", err, left)
		}
		return out.String(), bucket.BytesRead() - before
	}
	small := &script.Selection{Tables: []script.TableName{{Database: "shop", Schema: "public", Table: "small"}}}
	got, read := restore(small)
	at := bytes.Index(sql, []byte("COPY public.small"))
	rows := sql[at : at+bytes.Index(sql[at:], []byte("\\.\n"))]
	if !strings.Contains(got, string(rows)) || strings.Contains(got, "public.before") || strings.Contains(got, "public.after") {
		t.Errorf("the selection is not the table:\n%.2000s", got)
	}
	m := report.Metadata
	// Its rows lie in one frame or two; these, in one segment or two, perhaps with
	// the one before for the sake of one cipher block.
	if limit := 2*int64(archive.SegmentSize) + m.TOC.Size + m.Sums.Size; read > limit {
		t.Errorf("%d bytes were read of %d, at most %d are needed", read, m.Sizes.Stored, limit)
	}
	if _, read := restore(&script.Selection{SchemaOnly: true}); read > m.TOC.Size+m.Sums.Size {
		t.Errorf("%d bytes were read for the schema, at most %d are needed", read, m.TOC.Size+m.Sums.Size)
	}
	whole, read := restore(&script.Selection{})
	if whole != string(sql) || read < m.Sizes.Stored {
		t.Error("without a selection it is not the whole")
	}
}

// TestRestoreReadsOnce: tables that lie in the same segments are read at once.
func TestRestoreReadsOnce(t *testing.T) {
	var b bytes.Buffer
	random := rand.New(rand.NewPCG(7, 8))
	b.WriteString("--\n-- PostgreSQL database cluster dump\n--\n\n\\connect many\n\n")
	const tables = 300
	for i := range tables {
		fmt.Fprintf(&b, "CREATE TABLE public.t%d (\n    x text\n);\n\n", i)
	}
	for i := range tables {
		fmt.Fprintf(&b, "COPY public.t%d (x) FROM stdin;\n", i)
		for range random.IntN(2000) {
			fmt.Fprintf(&b, "%016x%016x\n", random.Uint64(), random.Uint64())
		}
		b.WriteString("\\.\n\n")
	}
	b.WriteString("--\n-- PostgreSQL database cluster dump complete\n--\n\n")
	key := crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for this test")), "test")
	mem := storagetest.Mem()
	report, err := Create(t.Context(), &CreateOptions{
		Stores: []storage.Bucket{mem}, Stdin: bytes.NewReader(b.Bytes()), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11",
		Key: func(context.Context, string, bool) (*crypto.Key, error) { return key, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	bucket := storagetest.NewFaulty(mem)
	backup, err := archive.OpenCatalog(bucket, crypto.Keyring{key}, nil).Find(t.Context(), archive.Ref{})
	if err != nil {
		t.Fatal(err)
	}
	m := report.Metadata
	if m.Sizes.Stored < archive.SegmentSize*3/2 {
		t.Fatalf("%d bytes are too few", m.Sizes.Stored)
	}
	all := &script.Selection{Databases: []string{"many"}, NoOwner: true} // nothing in the dump has an owner
	some := &script.Selection{}
	for i := 0; i < tables; i += 7 {
		some.Tables = append(some.Tables, script.TableName{Database: "many", Schema: "public", Table: fmt.Sprintf("t%d", i)})
	}
	for _, s := range []*script.Selection{all, some} {
		before := bucket.BytesRead()
		var out strings.Builder
		if _, err := RestoreSelected(t.Context(), backup, &out, s, archive.ReadOptions{}, nil, nil); err != nil {
			t.Fatal(err)
		}
		if read, limit := bucket.BytesRead()-before, m.Sizes.Stored+m.TOC.Size+m.Sums.Size; read > limit {
			t.Errorf("%d bytes were read, at most %d are needed", read, limit)
		}
		var want strings.Builder
		sel := script.NewSelector(s, func(text []byte) error { want.Write(text); return nil })
		f := script.NewFeeder(sel.Item)
		f.Write(b.Bytes())
		f.Close()
		if err := sel.Close(); err != nil || out.String() != want.String() {
			t.Errorf("%d bytes, want %d, %v", out.Len(), want.Len(), err)
		}
	}
}

// TestRestoreReadsLittleOfShop counts the same for a small table of the data set
// bench/shop.sql beside its large ones, out of a real dump: metadata, sums, toc
// and the segments of the table's own frames. TEST_SHOP_SCALE is the size of
// the data set; at 1 that is 1.1 GB, of which less than 2 % is read.
func TestRestoreReadsLittleOfShop(t *testing.T) {
	scale := cmp.Or(os.Getenv("TEST_SHOP_SCALE"), "0.03")
	c, err := postgres.StartCluster(t.Context(), postgres.ClusterOptions{Settings: map[string]string{"max_wal_size": "4GB", "autovacuum": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	psql := func(database string, in io.Reader, args ...string) string {
		t.Helper()
		cmd := exec.Command("psql", append([]string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", c.DSN(database)}, args...)...)
		cmd.Stdin = in
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("psql: %v\n%s", err, errs.String())
		}
		return string(out)
	}
	data, err := os.Open("../bench/shop.sql")
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	// shop.sql connects to its database by name alone, as users have it.
	psql("postgres", io.MultiReader(data, strings.NewReader("CREATE TABLE rates (id integer PRIMARY KEY, name text);\nINSERT INTO rates SELECT i, md5(i::text) FROM generate_series(1, 5000) i;\n")), "-v", "scale="+scale)

	key := crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for this test")), "test")
	store := file.New(t.TempDir())
	report, err := Create(t.Context(), &CreateOptions{
		Stores: []storage.Bucket{store}, Source: postgres.Config{DSN: c.DSN("postgres")},
		Key: func(context.Context, string, bool) (*crypto.Key, error) { return key, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	m := report.Metadata

	bucket := storagetest.NewFaulty(store)
	b, err := archive.OpenCatalog(bucket, crypto.Keyring{key}, nil).Find(t.Context(), archive.Ref{})
	if err != nil {
		t.Fatal(err)
	}
	rates := &script.Selection{NoGlobals: true, Tables: []script.TableName{{Database: "shop", Schema: "public", Table: "rates"}}, Rename: map[string]string{"shop": "rescue"}}
	var out bytes.Buffer
	if _, err := RestoreSelected(t.Context(), b, &out, rates, archive.ReadOptions{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	read := bucket.BytesRead()
	psql("postgres", &out)
	const sum = "SELECT count(*), sum(hashtext(rates::text)) FROM rates"
	if got, want := psql("rescue", nil, "-c", sum), psql("shop", nil, "-c", sum); got != want {
		t.Errorf("the table has %s, the source %s", got, want)
	}

	toc, err := b.TOC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := store.Open(t.Context(), b.ID.String()+".json", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	metadata, err := io.Copy(io.Discard, info)
	info.Close()
	if err != nil {
		t.Fatal(err)
	}
	limit := metadata + m.TOC.Size + m.Sums.Size + segmentsOf(t, toc, m.Sizes.Stored, "shop", "rates")
	percent := 100 * float64(read) / float64(m.Sizes.Stored)
	t.Logf("%d bytes of SQL, %d stored; %d read (%.2f %%), of these %d metadata, %d toc, %d sums", m.Sizes.Plain, m.Sizes.Stored, read, percent, metadata, m.TOC.Size, m.Sums.Size)
	if read > limit {
		t.Errorf("%d bytes were read, %d are needed", read, limit)
	}
	if m.Sizes.Plain > 1e9 && percent >= 2 {
		t.Errorf("%.2f %% of the backup were read", percent)
	}
}

// segmentsOf returns the size of the segments that a table's rows lie in, by the
// index: its frames, and the cipher block before them.
func segmentsOf(t *testing.T, toc *archive.TOC, stored int64, database, table string) (size int64) {
	t.Helper()
	for _, d := range toc.Contents.Databases {
		for _, c := range d.Copies {
			if string(d.Name) != database || string(c.Table) != table {
				continue
			}
			var plain, compressed, first, last int64
			first = -1
			for _, f := range toc.Frames {
				if plain+int64(f[0]) > int64(c.Data.Offset) && plain < c.Data.End() {
					if first < 0 {
						first = compressed
					}
					last = compressed + int64(f[1])
				}
				plain += int64(f[0])
				compressed += int64(f[1])
			}
			// 16 bytes of header stand before the frames, and a cipher block is 16 bytes,
			// which need not begin where the frame does.
			for s := max((first+16)/16*16-16, 0) / archive.SegmentSize; s <= (last+16-1)/archive.SegmentSize; s++ {
				size += min(archive.SegmentSize, stored-s*archive.SegmentSize)
			}
		}
	}
	if size == 0 {
		t.Fatalf("no table %s in the index", table)
	}
	return size
}
