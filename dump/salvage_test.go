package dump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"encdump/dump/archive"
	"encdump/dump/script"
	"encdump/storage"
)

// noise is a text that hardly compresses.
func noise(r *rand.Rand, n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return string(b)
}

// salvageScript is a dump of some 30 MB stored: tables of short rows, of rows larger than a segment, and small ones between.
func salvageScript() string {
	r := rand.New(rand.NewPCG(1, 2))
	var s strings.Builder
	s.WriteString("--\n-- PostgreSQL database cluster dump\n--\n\nSET client_encoding = 'UTF8';\n\\connect postgres\n")
	for i, row := range []int{100, 6 << 20, 1000, 3 << 20} {
		fmt.Fprintf(&s, "CREATE TABLE public.t%d (id int, t text);\nCREATE TABLE public.small%d (id int);\n", i, i)
		fmt.Fprintf(&s, "COPY public.t%d (id, t) FROM stdin;\n", i)
		for id := 0; id*row < 9<<20; id++ {
			fmt.Fprintf(&s, "%d\t%s\n", id, noise(r, row))
		}
		fmt.Fprintf(&s, "\\.\n\n\nCOPY public.small%d (id) FROM stdin;\n1\n2\n\\.\n\n\n", i)
	}
	s.WriteString("--\n-- PostgreSQL database cluster dump complete\n--\n\n")
	return s.String()
}

// rewrite changes an object of a backup.
func rewrite(t *testing.T, b storage.Bucket, name string, change func([]byte) []byte) {
	t.Helper()
	r, err := b.Open(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	r.Close()
	if err == nil {
		err = b.Put(t.Context(), name, bytes.NewReader(change(text)), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSalvage(t *testing.T) {
	plain := salvageScript()
	target := startCluster(t)
	// rowsOf are the rows of a script by table.
	rowsOf := func(script string) map[string][]string {
		out := map[string][]string{}
		table := ""
		for line := range strings.Lines(script) {
			switch {
			case strings.HasPrefix(line, "COPY "):
				table = strings.Fields(line)[1]
			case line == "\\.\n":
				table = ""
			case table != "":
				out[table] = append(out[table], line)
			}
		}
		return out
	}
	want := rowsOf(plain)
	for name, damage := range map[string]struct {
		do     func(t *testing.T, b *archive.Backup)
		tables string // of which rows are missing, in order
	}{
		"a bit":         {func(t *testing.T, b *archive.Backup) { rewrite(t, b.Bucket(), b.Parts[0].Name, flipAt(1<<20)) }, "t0 of"},
		"the beginning": {func(t *testing.T, b *archive.Backup) { rewrite(t, b.Bucket(), b.Parts[0].Name, flipAt(3)) }, "t0 of"},
		"the end": {func(t *testing.T, b *archive.Backup) {
			last := b.Parts[len(b.Parts)-1]
			rewrite(t, b.Bucket(), last.Name, flipAt(int(last.Size)-1))
		}, "t3 small3 of"},
		"a part missing": {func(t *testing.T, b *archive.Backup) {
			if err := b.Bucket().Delete(t.Context(), b.Parts[1].Name); err != nil {
				t.Fatal(err)
			}
		}, "t0 small0 t1 of"},
		"a part cut": {func(t *testing.T, b *archive.Backup) {
			rewrite(t, b.Bucket(), b.Parts[2].Name, func(p []byte) []byte { return p[:len(p)-5] })
		}, ""},
		"two segments": {func(t *testing.T, b *archive.Backup) {
			rewrite(t, b.Bucket(), b.Parts[0].Name, flipAt(5<<20))
			rewrite(t, b.Bucket(), b.Parts[3].Name, flipAt(100))
		}, ""},
		"a byte too much": {func(t *testing.T, b *archive.Backup) {
			rewrite(t, b.Bucket(), b.Parts[1].Name, func(p []byte) []byte { return append(p, 0) })
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := backupOf(t, &CreateOptions{
				Stdin: strings.NewReader(plain), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Archive: archive.WriterOptions{PartSize: 5_500_000},
			})
			damage.do(t, b)
			b = find(t, b.Bucket(), b.ID.String())
			var out bytes.Buffer
			r, err := Salvage(t.Context(), b, &out, archive.ReadOptions{Jobs: 2}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Damage) == 0 {
				t.Error("no damage reported")
			}
			got := rowsOf(out.String())
			var missing []string
			for _, m := range r.Missing {
				missing = append(missing, string(m.Table))
				table := "public." + string(m.Table)
				if n := len(want[table]) - len(got[table]); int64(n) != m.Rows || m.Of != int64(len(want[table])) {
					t.Errorf("%v: really missing are %d of %d", &m, n, len(want[table]))
				}
				if !strings.Contains(out.String(), "\\.\n-- MISSING here, since the backup is damaged: "+m.String()) {
					t.Errorf("no comment on %v", &m)
				}
			}
			t.Log(missing)
			for table, rows := range want {
				i := 0
				for _, row := range got[table] { // a subsequence
					for i < len(rows) && rows[i] != row {
						i++
					}
					if i++; i > len(rows) {
						t.Fatalf("%s has a row that the dump does not have: %.60q", table, row)
					}
				}
				if m := strings.Contains(strings.Join(missing, " ")+" ", table[len("public."):]+" "); !m && len(got[table]) != len(rows) {
					t.Errorf("%s has %d of %d rows, and nothing is said", table, len(got[table]), len(rows))
				}
			}
			if names := strings.TrimSuffix(damage.tables, " of"); damage.tables != "" && strings.Join(missing, " ") != names {
				t.Errorf("missing are rows of %v, not of %s", missing, names)
			}
			var whole script.Completeness
			f := script.NewFeeder(func(it script.Item) error { whole.Add(it); return nil })
			f.Write(out.Bytes())
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if _, err := whole.Kind(); err != nil {
				t.Error(err)
			}
			if name == "two segments" {
				on(t, target, out.Bytes(), "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
				if n := sql(t, target, "postgres", "SELECT count(*) FROM t0"); n != fmt.Sprint(len(got["public.t0"])) {
					t.Errorf("psql made %s rows", n)
				}
			}
			// verify tells the same places.
			v, err := Verify(t.Context(), b, &VerifyOptions{Level: LevelDigest})
			if err != nil {
				t.Fatal(err)
			}
			var hit []string
			for _, l := range v.Lost {
				for _, x := range l.Tables {
					if n := len(hit); n == 0 || hit[n-1] != string(x.Table) {
						hit = append(hit, string(x.Table))
					}
				}
			}
			if strings.Join(hit, " ") != strings.Join(missing, " ") {
				t.Errorf("verify says %v, salvage %v", hit, missing)
			}
		})
	}
	t.Run("without the index", func(t *testing.T) {
		b := backupOf(t, &CreateOptions{Stdin: strings.NewReader(plain), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11"})
		rewrite(t, b.Bucket(), b.Parts[0].Name, flipAt(100))
		b.Bucket().Delete(t.Context(), b.Metadata.TOC.Name)
		b = find(t, b.Bucket(), b.ID.String())
		var out bytes.Buffer
		_, err := Salvage(t.Context(), b, &out, archive.ReadOptions{}, nil)
		var damage *archive.DamageError
		if !errors.As(err, &damage) || out.Len() > 0 {
			t.Errorf("%v, %d bytes", err, out.Len())
		}
	})
}

func flipAt(i int) func([]byte) []byte {
	return func(p []byte) []byte { p[i] ^= 1; return p }
}
