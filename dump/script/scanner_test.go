package script

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// whole is an item with the pieces that continue it.
type whole struct {
	Kind Kind
	Text string
	More bool
}

func (w whole) String() string { return fmt.Sprintf("%v(%q,%v)", w.Kind, w.Text, w.More) }

// wholes gathers whole items, and checks what holds for all items.
type wholes struct {
	list []whole
	end  int64
}

func (w *wholes) add(it Item) error {
	if it.Offset != w.end {
		return fmt.Errorf("%v at %d, but the last item ended at %d", it.Kind, it.Offset, w.end)
	}
	if len(it.Text) == 0 {
		return fmt.Errorf("%v at %d is empty", it.Kind, it.Offset)
	}
	w.end += int64(len(it.Text))
	if it.Kind == CopyRows && !it.More && it.Text[len(it.Text)-1] != '\n' {
		return fmt.Errorf("rows at %d end in %q", it.Offset, it.Text)
	}
	if n := len(w.list); n > 0 {
		if last := &w.list[n-1]; last.Kind == it.Kind && (last.More || it.Kind == CopyRows || it.Kind == Blank) {
			last.Text += string(it.Text)
			last.More = it.More
			return nil
		}
	}
	w.list = append(w.list, whole{it.Kind, string(it.Text), it.More})
	return nil
}

func (w *wholes) text() string {
	var b strings.Builder
	for _, i := range w.list {
		b.WriteString(i.Text)
	}
	return b.String()
}

// pull scans a script that comes from r.
func pull(r io.Reader, limit int) (wholes, State, error) {
	s := NewScanner(r)
	s.limit = limit
	var w wholes
	for {
		it, err := s.Next()
		if err == io.EOF {
			return w, s.State(), nil
		}
		if err == nil {
			err = w.add(it)
		}
		if err != nil {
			return w, s.State(), err
		}
	}
}

// push scans a script that is written in portions of the given sizes, in turn.
func push(script []byte, limit int, sizes ...int) (wholes, State, error) {
	var w wholes
	f := NewFeeder(w.add)
	f.limit = limit
	for i := 0; len(script) > 0; i++ {
		n := min(sizes[i%len(sizes)], len(script))
		p := bytes.Clone(script[:n])
		if _, err := f.Write(p); err != nil {
			return w, f.State(), err
		}
		clear(p) // nobody may read it any more
		script = script[n:]
	}
	err := f.Close()
	return w, f.State(), err
}

// smallLimit is one above which meta-commands and SET are not understood, for they are given in pieces.
const smallLimit = 1 << 10

// scanned scans a script in all ways, which must agree, and returns its items.
func scanned(t testing.TB, script []byte) ([]whole, State) {
	t.Helper()
	var want wholes
	var state State
	for i, way := range []struct {
		name  string
		scan  func() (wholes, State, error)
		small bool
	}{
		{"whole", func() (wholes, State, error) { return pull(bytes.NewReader(script), maxItem) }, false},
		{"byte by byte", func() (wholes, State, error) { return pull(iotest.OneByteReader(bytes.NewReader(script)), maxItem) }, false},
		{"halves", func() (wholes, State, error) { return pull(iotest.HalfReader(bytes.NewReader(script)), maxItem) }, false},
		{"error with data", func() (wholes, State, error) { return pull(iotest.DataErrReader(bytes.NewReader(script)), maxItem) }, false},
		{"pushed", func() (wholes, State, error) { return push(script, maxItem, len(script)+1) }, false},
		{"pushed byte by byte", func() (wholes, State, error) { return push(script, maxItem, 1) }, false},
		{"pushed in odd portions", func() (wholes, State, error) { return push(script, maxItem, 7, 1, 61, 4099, 3) }, false},
		{"small memory", func() (wholes, State, error) { return pull(iotest.HalfReader(bytes.NewReader(script)), smallLimit) }, true},
		{"small memory, pushed", func() (wholes, State, error) { return push(script, smallLimit, 5, 11) }, true},
	} {
		got, st, err := way.scan()
		if err != nil {
			t.Fatalf("%s: %v", way.name, err)
		}
		if got.text() != string(script) {
			t.Fatalf("%s: the items do not add up to the script: %v", way.name, got.list)
		}
		if i == 0 {
			want, state = got, st
		}
		if way.small && slices.ContainsFunc(bytes.Split(script, []byte("\n")), func(line []byte) bool { return len(line) >= smallLimit }) {
			continue
		}
		if !slices.Equal(got.list, want.list) {
			for i := range max(len(got.list), len(want.list)) {
				if i >= len(got.list) || i >= len(want.list) || got.list[i] != want.list[i] {
					t.Fatalf("%s: from item %d on\ngot  %v\nwant %v", way.name, i, got.list[i:min(i+3, len(got.list))], want.list[i:min(i+3, len(want.list))])
				}
			}
		}
		if st != state {
			t.Fatalf("%s: state %+v, want %+v", way.name, st, state)
		}
	}
	return want.list, state
}

func TestScanner(t *testing.T) {
	for _, test := range []struct {
		script string
		items  string // the items, with the initials of their kinds, with + if they go on
		state  string
	}{
		{"", "", "between statements"},
		{" \n-- c;\n", "B: \n-- c;\n", "between statements"},
		{"SELECT 1;SELECT 2", "S:SELECT 1;|S+:SELECT 2", "in a statement"},
		{"SELECT ';', \";\", E'\\';', $$;$$, $a$;$$;$a$;", "S:SELECT ';', \";\", E'\\';', $$;$$, $a$;$$;$a$;", "between statements"},
		{"SELECT '\\';';", "S:SELECT '\\';|S+:';", "in a quoted string"},
		{"SET standard_conforming_strings = off;\nSELECT '\\';';", "S:SET standard_conforming_strings = off;|B:\n|S:SELECT '\\';';", "between statements"},
		{"SET standard_conforming_strings = off;\\c x\nSELECT '\\';", "S:SET standard_conforming_strings = off;|M:\\c x\n|S:SELECT '\\';", "between statements"},
		{"SELECT U&'\\';U&\"a;\"\"\";b'0;'x';';", "S:SELECT U&'\\';|S:U&\"a;\"\"\";|S:b'0;'x';';", "between statements"},
		{"SELECT e'a' -- ;\n 'b\\';", "S:SELECT e'a' -- ;\n 'b\\';", "between statements"},
		{"SELECT /* ; /* */ ; */ 1;", "S:SELECT /* ; /* */ ; */ 1;", "between statements"},
		{"/* a */ SELECT 1;", "S:/* a */ SELECT 1;", "between statements"},
		{"SELECT (1;(2;)); - --;\n/2;", "S:SELECT (1;(2;));|B: |S:- --;\n/2;", "between statements"},
		{"--a\r;", "B:--a\r|S:;", "between statements"},
		{"SELECT a$b$;$b$;", "S:SELECT a$b$;|S+:$b$;", "in a string quoted by $b$"},
		{"SELECT $1$;", "S:SELECT $1$;", "between statements"},
		{"SELECT $a b$;", "S:SELECT $a b$;", "between statements"},
		{
			"CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE WHEN 1 THEN 2 END; END;SELECT 1;",
			"S:CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE WHEN 1 THEN 2 END; END;|S:SELECT 1;", "between statements",
		},
		{
			"create or replace procedure f() begin atomic; end;begin;end;",
			"S:create or replace procedure f() begin atomic; end;|S:begin;|S:end;", "between statements",
		},
		{"CREATE TABLE f (); BEGIN;", "S:CREATE TABLE f ();|B: |S:BEGIN;", "between statements"},
		{"COPY a (b) FROM stdin;\n1;\n\\.x\n\\.\nSELECT 1;", "S:COPY a (b) FROM stdin;|B:\n|R:1;\n\\.x\n|E:\\.\n|S:SELECT 1;", "between statements"},
		{"COPY a FROM stdin; -- b\r\n\r\n\\.\r\n", "S:COPY a FROM stdin;|B: -- b\r\n|R:\r\n|E:\\.\r\n", "between statements"},
		{"copy a from STDIN;\n\\.\n", "S:copy a from STDIN;|B:\n|E:\\.\n", "between statements"},
		{"COPY a FROM stdin;\n1\n2", "S:COPY a FROM stdin;|B:\n|R+:1\n2", "within a row of COPY data"},
		{"COPY a FROM stdin;\n1\n", "S:COPY a FROM stdin;|B:\n|R:1\n", "in COPY data"},
		{"COPY a FROM stdin;\n\\.", "S:COPY a FROM stdin;|B:\n|R+:\\.", "within a row of COPY data"},
		{"COPY a FROM stdin;", "S:COPY a FROM stdin;", "between statements"},
		{
			"COPY a FROM stdin; COPY b FROM stdin\\; SELECT\n1\n\\.\n2\n\\.\n 3;",
			"S:COPY a FROM stdin;|B: |S+:COPY b FROM stdin\\; SELECT\n|R:1\n|E:\\.\n|S+:2\n|M:\\.|S:\n 3;", "between statements",
		},
		{"COPY a FROM stdin; COPY b FROM stdin;\n1\n\\.\n2\n\\.\n", "S:COPY a FROM stdin;|B: |S:COPY b FROM stdin;|B:\n|R:1\n|E:\\.\n|R:2\n|E:\\.\n", "between statements"},
		{"COPY a FROM 'stdin';\nCOPY a TO stdout;\nCOPY (SELECT from stdin) TO stdout;\n", "S:COPY a FROM 'stdin';|B:\n|S:COPY a TO stdout;|B:\n|S:COPY (SELECT from stdin) TO stdout;|B:\n", "between statements"},
		{"\\connect a\n\\set b 'c\\\\' \\\\ SELECT 1;\\d\\e\n", "M:\\connect a\n|M:\\set b 'c\\\\' \\\\|B: |S:SELECT 1;|M:\\d|M:\\e\n", "between statements"},
		{"SELECT 1 \\set a b\n+ 2\\;3;\n", "S+:SELECT 1 |M:\\set a b|S:\n+ 2\\;3;|B:\n", "between statements"},
		{"SELECT (1 \\g\nSELECT 2;", "S+:SELECT (1 |M:\\g\n|S:SELECT 2;", "between statements"},
		{"\\restrict k\n\\set a \\\\ b;\n\\unrestrict k\n\\set a \\\\ b;", "M:\\restrict k\n|M:\\set a \\\\ b;\n|M:\\unrestrict k\n|M:\\set a \\\\|B: |S:b;", "between statements"},
		{"\xef\xbb\xbf-- a\n;", "B:\xef\xbb\xbf-- a\n|S:;", "between statements"},
		{"SELECT :a::begin, :'b;', :\"c;\" \\:;", "S:SELECT :a::begin, :'b;', :\"c;\" \\:;", "between statements"},
		{"SET client_encoding = 'SJIS';\nSELECT E'\x95\\', \x95\\ ;", "S:SET client_encoding = 'SJIS';|B:\n|S:SELECT E'\x95\\', \x95\\ ;", "between statements"},
		{"SET client_encoding TO gb18030;\nSELECT E'\x81\x30\x81\x30\\';';", "S:SET client_encoding TO gb18030;|B:\n|S:SELECT E'\x81\x30\x81\x30\\';';", "between statements"},
	} {
		list, state := scanned(t, []byte(test.script))
		var got []string
		for _, i := range list {
			plus := ""
			if i.More {
				plus = "+"
			}
			got = append(got, map[Kind]string{Blank: "B", Statement: "S", Meta: "M", CopyRows: "R", CopyEnd: "E"}[i.Kind]+plus+":"+i.Text)
		}
		if got := strings.Join(got, "|"); got != test.items {
			t.Errorf("%q\ngot  %q\nwant %q", test.script, got, test.items)
		}
		if state.String() != test.state {
			t.Errorf("%q ends %s, want %s", test.script, state, test.state)
		}
	}
}

func TestReaderError(t *testing.T) {
	broken := errors.New("broken")
	s := NewScanner(io.MultiReader(strings.NewReader("SELECT 1;SELECT"), iotest.ErrReader(broken)))
	it, err := s.Next()
	if err != nil || string(it.Text) != "SELECT 1;" {
		t.Errorf("got %q, %v", it.Text, err)
	}
	for range 2 {
		if it, err = s.Next(); err != broken {
			t.Errorf("got %q, %v", it.Text, err)
		}
	}
}

func TestFeederError(t *testing.T) {
	broken := errors.New("broken")
	f := NewFeeder(func(Item) error { return broken })
	if _, err := f.Write([]byte(";")); err != broken {
		t.Errorf("Write: %v", err)
	}
	if err := f.Close(); err != broken {
		t.Errorf("Close: %v", err)
	}
	f = NewFeeder(func(Item) error { return nil })
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Write([]byte(";")); err == nil {
		t.Error("written after Close")
	}
}

// TestMemory scans a statement, a comment and a row that are larger than what a
// scanner holds.
func TestMemory(t *testing.T) {
	big := strings.Repeat("x", maxItem+12345)
	script := "SELECT '" + big + ";';\n-- " + big + "\n" + "COPY a FROM stdin;\n" + big + "\n" + big + "\n\\.\n\\" + big + "\n" +
		"SELECT " + big + " $" + big + "$;"
	var w wholes
	largest := 0
	f := NewFeeder(func(it Item) error {
		largest = max(largest, len(it.Text))
		return w.add(it)
	})
	for p := []byte(script); len(p) > 0; p = p[min(len(p), 1<<20):] {
		if _, err := f.Write(p[:min(len(p), 1<<20)]); err != nil {
			t.Fatal(err)
		}
		if held := cap(f.held); held > 3*maxItem {
			t.Fatalf("%d bytes are held", held)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var kinds []Kind
	for _, i := range w.list {
		kinds = append(kinds, i.Kind)
	}
	if want := []Kind{Statement, Blank, Statement, Blank, CopyRows, CopyEnd, Meta, Statement}; !slices.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
	if largest > 2*maxItem {
		t.Errorf("an item has %d bytes", largest)
	}
	if w.text() != script {
		t.Error("the items do not add up to the script")
	}
}

// TestRowsInPieces counts rows that are given in pieces.
func TestRowsInPieces(t *testing.T) {
	script := "COPY a FROM stdin;\n" + strings.Repeat("a row of some length\nb\n\n", 50) + strings.Repeat("c", 100) + "\n\\.\n"
	var want string
	for _, limit := range []int{maxItem, 20, 25, 50} {
		for _, size := range []int{1, 3, 16, 100, 10000} {
			var g Gatherer
			f := NewFeeder(func(it Item) error { g.Add(it); return nil })
			f.limit = limit
			for p := []byte(script); len(p) > 0; p = p[min(size, len(p)):] {
				if _, err := f.Write(p[:min(size, len(p))]); err != nil {
					t.Fatal(err)
				}
			}
			f.Close()
			got := fmt.Sprintf("%+v", g.Contents())
			if want == "" {
				want = got
			}
			if got != want || !strings.Contains(got, "Rows:151 ") {
				t.Errorf("limit %d, portions of %d\ngot  %s\nwant %s", limit, size, got, want)
			}
		}
	}
}

// TestNoAllocation scans rows without an allocation for them.
func TestNoAllocation(t *testing.T) {
	data := shopCopy(1 << 20)
	f := NewFeeder(func(Item) error { return nil })
	if n := testing.AllocsPerRun(10, func() { f.Write(data) }); n > 4 {
		t.Errorf("%v allocations for %d rows", n, bytes.Count(data, []byte("\n")))
	}
}

func FuzzScanner(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.sql")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for len(b) > 0 {
			n := min(1000, len(b))
			f.Add(b[:n])
			b = b[n:]
		}
	}
	for _, s := range []string{
		"COPY a FROM stdin;\n1\n\\.\n\\restrict a\n\\x\n\\unrestrict a\n",
		"CREATE FUNCTION f() BEGIN ATOMIC SELECT 'a'; END; E'\\''U&'' $a$ $a$ /* /* */ */ -- \r\n \\; :a ::b",
		"SET standard_conforming_strings = off; SET client_encoding = 'sjis';\n E'\x95\\' \x95\\",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		list, _ := scanned(t, script)
		var g Gatherer
		var c Completeness
		s := NewScanner(bytes.NewReader(script))
		for {
			it, err := s.Next()
			if err != nil {
				break
			}
			g.Add(it)
			c.Add(it)
			ParseCopy(it.Text)
			ParseConnect(it.Text)
			ParseSet(it.Text)
		}
		g.Contents()
		c.Kind()
		// Nothing is hidden in an item that psql would see.
		for _, i := range list {
			if i.Kind == Blank && strings.ContainsAny(strings.ReplaceAll(strings.Trim(i.Text, byteOrderMark), "-", ""), ";") && !strings.Contains(i.Text, "--") {
				t.Errorf("blank: %q", i.Text)
			}
		}
	})
}

// TestSplits scans a script cut into two writes at every place.
func TestSplits(t *testing.T) {
	script := []byte("SET x = E'\\'' $a$;$a$ -- c\n/* */;\nCOPY \"a\" FROM stdin;\r\n1\t\\N\r\n\\.\r\n\\set a b \\\\ SELECT 1\\;2 :: x;\nCREATE FUNCTION a() BEGIN ATOMIC ; END;\n-- c\n")
	want, _, err := pull(bytes.NewReader(script), maxItem)
	if err != nil {
		t.Fatal(err)
	}
	for i := range script {
		got, _, err := push(script, maxItem, i+1, len(script))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.list, want.list) {
			t.Errorf("cut at %d\ngot  %v\nwant %v", i+1, got.list, want.list)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		sizes := []int{1 + r.IntN(9), 1 + r.IntN(90), 1 + r.IntN(5)}
		got, _, err := push(script, smallLimit, sizes...)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.list, want.list) {
			t.Errorf("portions of %v\ngot  %v\nwant %v", sizes, got.list, want.list)
		}
	}
}
