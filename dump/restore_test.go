package dump

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/dump/script"
	"encdump/storage"
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
