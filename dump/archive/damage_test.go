package archive

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"encdump/crypto"
	"encdump/storage"
	"encdump/storage/storagetest"
)

// golden is a whole backup, which tests damage copies of.
type golden struct {
	sql []byte
	objects
}

func newGolden(seed byte, n int, o WriterOptions) golden {
	g := golden{sql: noiseOf(seed, n), objects: objects{}}
	b := storagetest.Mem()
	if _, err := backUp(context.Background(), bytes.NewReader(g.sql), options(o), b); err != nil {
		panic(err)
	}
	for o, err := range b.List(context.Background(), testID.String()) {
		if err != nil {
			panic(err)
		}
		r, err := b.Open(context.Background(), o.Key, 0, -1)
		if err != nil {
			panic(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			panic(err)
		}
		g.objects[o.Key] = string(data)
	}
	return g
}

const goldenPart = 5 << 20

// Two backups under one key with parts of the same sizes: segments of 4 MiB lie
// across the borders of parts of 5 MiB. And a small one.
var (
	goldenOne   = sync.OnceValue(func() golden { return newGolden(11, 13<<20, WriterOptions{PartSize: goldenPart, Jobs: 2}) })
	goldenTwo   = sync.OnceValue(func() golden { return newGolden(12, 13<<20, WriterOptions{PartSize: goldenPart, Jobs: 2}) })
	goldenSmall = sync.OnceValue(func() golden { return newGolden(13, 1000, WriterOptions{PartSize: 500, FrameSize: 300}) })
)

// full is the name of the object of that suffix.
func full(suffix string) string { return testID.String() + suffix }

// segmentObject names what holds the segment with that byte of the stream.
func (g golden) segmentObject(offset int) string {
	begin := offset / SegmentSize * SegmentSize
	end := begin + SegmentSize - 1
	if n := g.stored(); end >= n {
		end = n - 1
	}
	if begin/goldenPart == end/goldenPart {
		return fmt.Sprintf("ID-%d", begin/goldenPart)
	}
	return fmt.Sprintf("ID-%d to ID-%d", begin/goldenPart, end/goldenPart)
}

func (g golden) stored() int {
	n := 0
	for name, data := range g.objects {
		if strings.HasPrefix(name, full("-")) {
			n += len(data)
		}
	}
	return n
}

func flip(data string, at int, mask byte) string {
	b := []byte(data)
	b[at] ^= mask
	return string(b)
}

// damagedObject returns the object that a *DamageError names, with ID for the
// test's ID, or what the error is otherwise; empty for nil.
func damagedObject(err error) string {
	var e *DamageError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return strings.ReplaceAll(e.Object, testID.String(), "ID")
	}
	return "not damage: " + err.Error()
}

func damagedObjects(errs []error) []string {
	out := []string{}
	for _, err := range errs {
		out = append(out, damagedObject(err))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// verdict is what is found out about a backup whose metadata are right. Objects
// are those that the errors name; empty stands for no error.
type verdict struct {
	check   []string // CheckObjects
	read    string   // Reader, and reading to the end
	most    int      // bytes of SQL that may come out before the error; -1: all
	digests []string // Digests
	decode  string   // Decode; empty: as read
	border  string   // what Digests may name besides: a segment that is lost in part
}

func (want verdict) compare(t *testing.T, b storage.Bucket, sql []byte) {
	t.Helper()
	for _, ref := range []string{testID.String(), Latest} {
		if backup := find(t, b, ref); backup.ID != testID || backup.Status != Complete || !backup.Authenticated {
			t.Fatalf("%s is %s, %s, authenticated %v: %v", ref, backup.ID, backup.Status, backup.Authenticated, backup.Problem)
		}
	}
	backup := find(t, b, Latest)
	if got := damagedObjects(backup.CheckObjects()); !slices.Equal(got, want.check) {
		t.Errorf("CheckObjects names %q, want %q", got, want.check)
	}
	for _, jobs := range []int{1, 3} {
		got, err := restore(t.Context(), backup, &ReadOptions{Jobs: jobs})
		if damagedObject(err) != want.read {
			t.Errorf("reading with %d jobs: %v; want damage of %q", jobs, err, want.read)
		}
		switch {
		case !bytes.HasPrefix(sql, got):
			t.Fatalf("reading with %d jobs released %d bytes, and not those that were written", jobs, len(got))
		case want.read == "" && len(got) != len(sql), want.read != "" && want.most >= 0 && len(got) > want.most, err != nil && want.most >= 0 && len(got) == len(sql):
			t.Errorf("reading with %d jobs released %d bytes of %d, want at most %d", jobs, len(got), len(sql), want.most)
		}
	}
	found, err := backup.Digests(t.Context(), nil)
	if err != nil {
		t.Errorf("Digests: %v", err)
	}
	got := slices.DeleteFunc(damagedObjects(found), func(s string) bool { return s == want.border })
	if !slices.Equal(got, want.digests) {
		t.Errorf("Digests names %q, want %q", got, want.digests)
	}
	if want.decode == "" {
		want.decode = want.read
	}
	if _, err := backup.Decode(t.Context(), &ReadOptions{Jobs: 2}); damagedObject(err) != want.decode {
		t.Errorf("Decode: %v; want damage of %q", err, want.decode)
	}
}

// TestDamage changes the objects that hold data, one way after the other.
func TestDamage(t *testing.T) {
	t.Parallel()
	g, other := goldenOne(), goldenTwo()
	none := []string{}
	type test struct {
		name   string
		change objects // nothing: missing
		want   verdict
	}
	var tests []test
	end := g.stored()
	for name, at := range map[string]int{
		"magic": 0, "end of the magic": 7, "salt": 8, "end of the salt": 15, "first block": 16, "second block": 32,
		"middle of a segment":           2<<20 + 3,
		"last block of the first one":   SegmentSize - 16,
		"last byte of the first one":    SegmentSize - 1,
		"first byte of the second one":  SegmentSize,
		"end of a block in it":          SegmentSize + 15,
		"second block of it":            SegmentSize + 16,
		"last byte of the first part":   goldenPart - 1,
		"first byte of the second part": goldenPart,
		"before the third segment":      2*SegmentSize - 1,
		"third segment":                 2 * SegmentSize,
		"before the last segment":       3*SegmentSize - 1,
		"last segment":                  3 * SegmentSize,
		"block before the last":         end - 17,
		"last block":                    end - 16,
		"padding":                       end - 1,
	} {
		part := fmt.Sprintf("-%d", at/goldenPart)
		digests := []string{"ID" + part, g.segmentObject(at)}
		slices.Sort(digests)
		tests = append(tests, test{
			"flip in " + name,
			objects{full(part): flip(g.objects[full(part)], at%goldenPart, 1<<(at%8))},
			verdict{none, g.segmentObject(at), at / SegmentSize * SegmentSize, slices.Compact(digests), "", ""},
		})
	}
	for i, part := range []string{"-0", "-1", "-2"} {
		data, object := g.objects[full(part)], "ID"+part
		lost := verdict{[]string{object}, object, 0, []string{object}, "", ""}
		if i < 2 {
			lost.border = fmt.Sprintf("ID-%d to ID-%d", i, i+1)
		}
		tests = append(
			tests,
			test{part + " missing", objects{full(part): ""}, lost},
			test{part + " truncated", objects{full(part): data[:len(data)-1]}, lost},
			test{part + " halved", objects{full(part): data[:len(data)/2]}, lost},
			// Its digest is right as far as it should go.
			test{part + " extended", objects{full(part): data + "x"}, verdict{[]string{object}, object, 0, none, "", ""}},
		)
	}
	tests = append(
		tests,
		test{"-0 of another backup", objects{full("-0"): other.objects[full("-0")]}, verdict{none, "ID-0", 0, []string{"ID-0", "ID-0 to ID-1"}, "", ""}},
		test{"-1 of another backup", objects{full("-1"): other.objects[full("-1")]}, verdict{none, "ID-0 to ID-1", SegmentSize, []string{"ID-0 to ID-1", "ID-1", "ID-1 to ID-2"}, "", ""}},
		test{"-2 of another backup", objects{full("-2"): other.objects[full("-2")]}, verdict{none, "ID-1 to ID-2", 2 * SegmentSize, []string{"ID-1 to ID-2", "ID-2"}, "", ""}},
		test{"parts swapped", objects{full("-0"): g.objects[full("-1")], full("-1"): g.objects[full("-0")]}, verdict{none, "ID-0", 0, []string{"ID-0", "ID-0 to ID-1", "ID-1", "ID-1 to ID-2"}, "", ""}},
		test{"part doubled", objects{full("-1"): g.objects[full("-0")]}, verdict{none, "ID-0 to ID-1", SegmentSize, []string{"ID-0 to ID-1", "ID-1", "ID-1 to ID-2"}, "", ""}},
		test{"part too many", objects{full("-3"): g.objects[full("-2")]}, verdict{[]string{"ID-3"}, "ID-3", 0, none, "", ""}},
		test{"part too many, far away", objects{full("-17"): "x"}, verdict{[]string{"ID-17"}, "ID-17", 0, none, "", ""}},
		test{"part under a second name", objects{full("-00"): g.objects[full("-0")]}, verdict{[]string{"ID-00"}, "ID-00", 0, none, "", ""}},
		test{"whole object beside", objects{testID.String(): "x"}, verdict{[]string{"ID"}, "ID", 0, none, "", ""}},
		test{"parts and sums of another backup", objects{
			full("-0"): other.objects[full("-0")], full("-1"): other.objects[full("-1")], full("-2"): other.objects[full("-2")],
			full(".sums"): other.objects[full(".sums")],
		}, verdict{none, "ID.sums", 0, []string{"ID-0", "ID-1", "ID-2", "ID.sums"}, "", ""}},
	)
	sums, toc := g.objects[full(".sums")], g.objects[full(".toc")]
	for name, data := range map[string]string{
		"missing": "", "emptied": "\x00", "truncated": "-", "extended": "+", "flipped": "~", "of another backup": "other",
	} {
		change := func(suffix, old string) objects {
			switch data {
			case "-":
				return objects{full(suffix): old[:len(old)-1]}
			case "+":
				return objects{full(suffix): old + "x"}
			case "~":
				return objects{full(suffix): flip(old, len(old)/2, 4)}
			case "other":
				return objects{full(suffix): other.objects[full(suffix)]}
			}
			return objects{full(suffix): data}
		}
		check := func(object, suffix, old string) []string {
			if len(change(suffix, old)[full(suffix)]) == len(old) {
				return none
			}
			return []string{object}
		}
		tests = append(
			tests,
			test{"sums " + name, change(".sums", sums), verdict{check("ID.sums", ".sums", sums), "ID.sums", 0, []string{"ID.sums"}, "", ""}},
			// The index is not needed to restore.
			test{"toc " + name, change(".toc", toc), verdict{check("ID.toc", ".toc", toc), "", -1, []string{"ID.toc"}, "ID.toc", ""}},
		)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			all := maps.Clone(g.objects)
			for name, data := range test.change {
				switch data {
				case "":
					delete(all, name)
				case "\x00":
					all[name] = ""
				default:
					all[name] = data
				}
			}
			b := all.bucket(t)
			test.want.compare(t, b, g.sql)

			// Without any word for the content only what is lost is let pass.
			got, err := restore(t.Context(), find(t, b, Latest), &ReadOptions{AllowUnauthenticated: true})
			if !bytes.HasPrefix(g.sql, got) {
				t.Error("wrong bytes are released where that is allowed, although the digests are there")
			}
			if want := test.want.read == "" || strings.HasPrefix(test.name, "sums "); want != (err == nil) {
				t.Errorf("where unauthenticated content is allowed: %v", err)
			}
		})
	}
}

// TestDamageBetweenReads has a store that answers with other bytes whenever it
// is asked for the same ones again.
func TestDamageBetweenReads(t *testing.T) {
	t.Parallel()
	g := goldenOne()
	for _, suffix := range []string{"-0", "-1", "-2", ".sums", ".toc", ".json"} {
		for _, jobs := range []int{1, 3} {
			b := &fickle{Bucket: g.bucket(t), key: full(suffix)}
			backup := find(t, b, testID.String())
			for round := range 2 {
				got, err := restore(t.Context(), backup, &ReadOptions{Jobs: jobs})
				if !bytes.HasPrefix(g.sql, got) || err == nil && len(got) != len(g.sql) {
					t.Fatalf("%s: round %d released %d bytes, and not those that were written", suffix, round, len(got))
				}
				if bad := strings.HasPrefix(suffix, "-") || suffix == ".sums"; round == 1 && bad != (err != nil) {
					t.Errorf("%s: round %d: %v", suffix, round, err)
				}
				if round == 0 && err != nil {
					t.Errorf("%s: something is read twice: %v", suffix, err)
				}
			}
			if _, err := backup.TOC(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := backup.TOC(t.Context()); (err != nil) != (suffix == ".toc") {
				t.Errorf("%s: second reading of the toc: %v", suffix, err)
			}
		}
	}
}

// fickle changes the bytes of one object from the second time on that each is
// read; one byte of each cipher block is enough.
type fickle struct {
	storage.Bucket
	key string

	mu   sync.Mutex
	read []bool // blocks
}

func (f *fickle) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := f.Bucket.Open(ctx, key, offset, length)
	if err != nil || key != f.key {
		return r, err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	const block = crypto.BlockSize
	if blocks := (int(offset)+len(data))/block + 1; len(f.read) < blocks {
		f.read = append(f.read, make([]bool, blocks-len(f.read))...)
	}
	for i := 0; i < len(data); {
		at := (int(offset) + i) / block
		if f.read[at] {
			data[i] ^= 1
		}
		f.read[at] = true
		i += block - (int(offset)+i)%block
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// TestUnauthenticated reads a backup whose sums are lost, because someone said
// that it may be: other damage shows as far as gzip sees it.
func TestUnauthenticated(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	for name, test := range map[string]struct {
		at   int // of the first part
		want string
	}{
		"nothing else":  {-1, ""},
		"magic":         {3, "ID-0"},
		"salt":          {9, "ID-0"},
		"first block":   {16, "ID"},
		"compressed":    {100, "ID"},
		"second frame":  {400, "ID"},
		"end of a part": {499, "ID"},
	} {
		all := maps.Clone(g.objects)
		delete(all, full(".sums"))
		if test.at >= 0 {
			all[full("-0")] = flip(all[full("-0")], test.at, 1)
		}
		backup := find(t, all.bucket(t), testID.String())
		if got, err := restore(t.Context(), backup, nil); damagedObject(err) != "ID.sums" || len(got) > 0 {
			t.Errorf("%s: %d bytes without being asked for, %v", name, len(got), err)
		}
		got, err := restore(t.Context(), backup, &ReadOptions{AllowUnauthenticated: true})
		if damagedObject(err) != test.want || !bytes.HasPrefix(g.sql, got) || err == nil && len(got) != len(g.sql) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestTruncatedReads has a store that lists an object in its size and yields
// less, or fails in the middle.
func TestTruncatedReads(t *testing.T) {
	t.Parallel()
	g := goldenOne()
	for _, part := range []string{"-0", "-1", "-2"} {
		for name, fault := range map[string]storagetest.Fault{
			"cut at once":      {Cut: -1},
			"cut":              {Cut: 1000},
			"fails to open":    {Err: errBoom},
			"fails at once":    {Err: errBoom, After: -1},
			"fails":            {Err: errBoom, After: 1000},
			"permission":       {Err: storage.ErrPermission},
			"is gone":          {Err: storage.ErrNotFound},
			"short reads only": {MaxRead: 100_003},
		} {
			fault.Op, fault.Key = storagetest.Open, full(part)
			backup := find(t, storagetest.NewFaulty(g.bucket(t)).Add(fault), Latest)
			for _, jobs := range []int{1, 2} {
				got, err := restore(t.Context(), backup, &ReadOptions{Jobs: jobs})
				if !bytes.HasPrefix(g.sql, got) {
					t.Fatalf("%s %s: wrong bytes", part, name)
				}
				switch {
				case fault.MaxRead > 0:
					if err != nil || len(got) != len(g.sql) {
						t.Errorf("%s %s: %d bytes, %v", part, name, len(got), err)
					}
				case err == nil || len(got) == len(g.sql) || !strings.Contains(err.Error(), full(part)):
					t.Errorf("%s %s: %d bytes, %v; want an error that names the part", part, name, len(got), err)
				case fault.Err == errBoom && !errors.Is(err, errBoom):
					t.Errorf("%s %s: %v", part, name, err)
				case (fault.Cut != 0 || fault.Err == storage.ErrNotFound) && damagedObject(err) != "ID"+part:
					t.Errorf("%s %s: %v, want a *DamageError", part, name, err)
				}
			}
		}
	}
	for _, suffix := range []string{".json", ".sums"} {
		for name, fault := range map[string]storagetest.Fault{
			"cut":   {Cut: 10},
			"fails": {Err: errBoom, After: 10},
		} {
			fault.Op, fault.Key = storagetest.Open, full(suffix)
			backup := find(t, storagetest.NewFaulty(g.bucket(t)).Add(fault), testID.String())
			got, err := restore(t.Context(), backup, nil)
			if err == nil || len(got) > 0 || !strings.Contains(err.Error(), full(suffix)) {
				t.Errorf("%s %s: %d bytes, %v", suffix, name, len(got), err)
			}
			if suffix == ".json" && backup.Status != map[string]Status{"cut": Damaged, "fails": Unreadable}[name] {
				t.Errorf("%s %s: %s", suffix, name, backup.Status)
			}
		}
	}
}

// sign completes the text of a metadata object, which lacks its MAC, with the
// right one.
func sign(text string, key *crypto.Key, salt string) string {
	text += `"mac": "`
	s, err := hex.DecodeString(salt)
	if err != nil {
		panic(err)
	}
	mac := key.MetadataMAC(s)
	io.WriteString(mac, text)
	return text + hex.EncodeToString(mac.Sum(nil)) + "\"\n}\n"
}

// resign gives a changed metadata object the right MAC.
func resign(text string) string {
	i := strings.LastIndex(text, `"mac": "`)
	return sign(text[:i], testKey, saltOf(text))
}

var saltPattern = regexp.MustCompile(`"salt": "([0-9a-f]{16})"`)

func saltOf(text string) string { return saltPattern.FindStringSubmatch(text)[1] }

// wantDamagedMetadata checks that nothing gets at the backup any more, and that
// everything says why.
func wantDamagedMetadata(t *testing.T, b storage.Bucket) {
	t.Helper()
	backup := find(t, b, testID.String())
	if backup.Status != Damaged || backup.Authenticated || backup.Metadata != nil || damagedObject(backup.Problem) != "ID.json" {
		t.Fatalf("%s, authenticated %v: %v", backup.Status, backup.Authenticated, backup.Problem)
	}
	if b, err := OpenCatalog(b, testKeys, nil).Find(t.Context(), Ref{}); damagedObject(err) != "ID.json" {
		t.Errorf("latest is %v, %v", b, err)
	}
	for _, allow := range []bool{false, true} {
		if got, err := restore(t.Context(), backup, &ReadOptions{AllowUnauthenticated: allow}); damagedObject(err) != "ID.json" || len(got) > 0 {
			t.Errorf("%d bytes are restored: %v", len(got), err)
		}
	}
	if _, err := backup.Digests(t.Context(), nil); damagedObject(err) != "ID.json" {
		t.Errorf("Digests: %v", err)
	}
	if _, err := backup.Decode(t.Context(), nil); damagedObject(err) != "ID.json" {
		t.Errorf("Decode: %v", err)
	}
	if _, err := backup.TOC(t.Context()); damagedObject(err) != "ID.json" {
		t.Errorf("TOC: %v", err)
	}
	if _, err := backup.CopyTo(t.Context(), storagetest.Mem(), nil); damagedObject(err) != "ID.json" {
		t.Errorf("CopyTo: %v", err)
	}
}

// hostileMetadata are texts that are no metadata of the test's backup.
func hostileMetadata(text string) map[string]string {
	replace := func(old, new string) string {
		if !strings.Contains(text, old) {
			panic(old)
		}
		return strings.Replace(text, old, new, 1)
	}
	mac := text[strings.LastIndex(text, `"mac": "`)+8:][:64]
	beforeMAC := text[:strings.LastIndex(text, `"mac"`)]
	otherText := strings.ReplaceAll(text, testID.String(), NewID(testGUID, testTime.AddDate(0, 0, 1)).String())
	out := map[string]string{
		"empty":                         "",
		"half":                          text[:len(text)/2],
		"not JSON":                      "x" + text,
		"array":                         "[" + text + "]",
		"string":                        `"` + mac + `"`,
		"truncated":                     text[:len(text)-1],
		"extended by a newline":         text + "\n",
		"extended by a space":           text + " ",
		"extended by a NUL":             text + "\x00",
		"something follows":             text + "{}",
		"other white space at the end":  text[:len(text)-4] + "\"\t}\n",
		"white space moved":             text[:len(text)-4] + "\"}\n\n",
		"twice":                         text + text,
		"space in front":                " " + text,
		"byte order mark":               "\ufeff" + text,
		"mac removed":                   strings.TrimRight(beforeMAC, ", \n") + "\n}\n",
		"mac empty":                     replace(mac, ""),
		"mac zero":                      replace(mac, strings.Repeat("0", 64)),
		"mac in upper case":             replace(mac, strings.ToUpper(mac[:63])+"A"),
		"mac short":                     replace(mac, mac[:62]),
		"mac long":                      replace(mac, mac+"00"),
		"mac null":                      replace(`"mac": "`+mac+`"`, `"mac": null`),
		"MAC":                           replace(`"mac"`, `"MAC"`),
		"member behind mac":             strings.Replace(text, mac+"\"\n", mac+"\",\n  \"name\": \"x\"\n", 1),
		"parts behind mac":              strings.Replace(text, mac+"\"\n", mac+"\",\n  \"parts\": []\n", 1),
		"second mac":                    strings.Replace(text, mac+"\"\n", mac+"\",\n  \"mac\": \""+mac+"\"\n", 1),
		"version 0":                     replace(`"version": 1`, `"version": 0`),
		"version 2":                     replace(`"version": 1`, `"version": 2`),
		"version -1":                    replace(`"version": 1`, `"version": -1`),
		"version 1.0":                   replace(`"version": 1`, `"version": 1.0`),
		"version 1e0":                   replace(`"version": 1`, `"version": 1e0`),
		"version 18446744073709551617":  replace(`"version": 1`, `"version": 18446744073709551617`),
		"version string":                replace(`"version": 1`, `"version": "1"`),
		"version true":                  replace(`"version": 1`, `"version": true`),
		"version null":                  replace(`"version": 1`, `"version": null`),
		"version missing":               replace("\"version\": 1,\n", ""),
		"Version":                       replace(`"version"`, `"Version"`),
		"version twice":                 replace(`"version": 1`, `"version": 1, "version": 1`),
		"Parts in addition":             replace(`"parts"`, `"Parts": [], "parts"`),
		"parts twice":                   replace(`"parts"`, `"parts": [], "parts"`),
		"Size in a part":                replace(`"size"`, `"Size": 1, "size"`),
		"escaped duplicate":             replace(`"parts"`, `"\u0070arts": [], "parts"`),
		"unknown member in upper case":  replace(`"parts"`, `"X": 1, "parts"`),
		"member with a fold":            replace(`"status"`, `"ſtatus": "done", "status"`),
		"other backup":                  otherText,
		"other backup_id":               replace(testID.String(), NewID(testGUID, testTime.AddDate(0, 0, 1)).String()),
		"other salt":                    replace(saltOf(text), "0123456789abcdef"),
		"salt too short":                replace(saltOf(text), "01234567"),
		"salt not hex":                  replace(saltOf(text), "0123456789abcdeg"),
		"salt in upper case":            replace(saltOf(text), "0123456789ABCDEF"),
		"negative size":                 replace(`"size": 500`, `"size": -500`),
		"size too large for a number":   replace(`"size": 500`, `"size": 1000000000000000000000`),
		"size that is none":             replace(`"size": 500`, `"size": "500"`),
		"fraction":                      replace(`"size": 500`, `"size": 500.5`),
		"size of 10^18":                 replace(`"size": 500`, `"size": 1000000000000000000`),
		"parts that are none":           replace(`"parts": [`, `"parts": {}, "x": [`),
		"path in a name":                replace(full("-0"), "../"+full("-0")),
		"absolute path":                 replace(full("-0"), "/etc/passwd"),
		"huge iterations":               replace(`"iterations": 1`, `"iterations": 1000000000000`),
		"unknown kdf":                   replace(crypto.BytesToKey, "none"),
		"invalid UTF-8":                 replace(`"status": "done"`, "\"status\": \"done\xff\""),
		"invalid UTF-8 in a name":       replace(`"status"`, "\"x\xff\": 1, \"status\""),
		"deeply nested":                 replace(`"parts"`, `"x": `+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`, "parts"`),
		"very deeply nested":            replace(`"parts"`, `"x": `+strings.Repeat("[", 1_000_000)+strings.Repeat("]", 1_000_000)+`, "parts"`),
		"very deeply nested and open":   `{"version": 1, "x": ` + strings.Repeat(`{"x":`, 1_000_000),
		"only version and mac":          "{\"version\": 1, \"mac\": \"" + mac + "\"\n}\n",
		"only mac":                      "{\"mac\": \"" + mac + "\"\n}\n",
		"only version":                  `{"version": 1}`,
		"mac from the middle of a text": text[:len(text)-3] + `, "name": "` + `"mac": "` + mac + "\"\n}\n",
	}
	return out
}

// TestHostileMetadata replaces the metadata, first with the old MAC or none,
// then, where a text takes one, with the right one: which only the owner of the
// key could make, and a careless program of the owner.
func TestHostileMetadata(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	text := g.objects[full(".json")]
	for name, hostile := range hostileMetadata(text) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := maps.Clone(g.objects)
			all[full(".json")] = hostile
			wantDamagedMetadata(t, all.bucket(t))
			if saltPattern.MatchString(hostile) && strings.Contains(hostile, `"mac": "`) && strings.HasPrefix(hostile, "{") && !strings.Contains(name, "mac") {
				switch name {
				case "truncated", "extended by a newline", "extended by a space", "extended by a NUL", "something follows", "other white space at the end", "white space moved":
					return // the end is what resign mends
				case "invalid UTF-8 in a name", "other salt":
					// harmless where the owner of the key says so, but for the stream
					return
				}
				all[full(".json")] = resign(hostile)
				wantDamagedMetadata(t, all.bucket(t))
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		all := maps.Clone(g.objects)
		all[full(".json")] = strings.Repeat(" ", 65<<20-len(text)) + text
		backup := find(t, all.bucket(t), testID.String())
		if _, err := backup.Reader(t.Context(), nil); backup.Authenticated || damagedObject(err) != "ID.json" {
			t.Errorf("%s: %v", backup.Status, err)
		}
	})
	t.Run("every bit", func(t *testing.T) {
		for i := range text {
			for _, mask := range []byte{1 << (i % 8), 0x20} { // the second changes the case of letters
				m, key, err := parseMetadata(testID, []byte(flip(text, i, mask)), crypto.Keyring{testKey, otherKey})
				var wrongKey *WrongKeyError
				switch {
				case errors.As(err, &wrongKey) && key == nil && wrongKey.Needed != testKey.ID():
					// The key ID was changed; such metadata are nobody's word.
				case m != nil || key != nil || damagedObject(err) != "ID.json":
					t.Fatalf("%#x at byte %d (…%s…): %v, %v", mask, i, text[max(0, i-10):min(len(text), i+10)], key, err)
				}
			}
		}
	})
	t.Run("every length", func(t *testing.T) {
		for i := range text {
			if m, key, err := parseMetadata(testID, []byte(text[:i]), testKeys); m != nil || key != nil || damagedObject(err) != "ID.json" {
				t.Fatalf("the first %d bytes: %v", i, err)
			}
			longer := text[:i] + " " + text[i:]
			if m, key, err := parseMetadata(testID, []byte(longer), testKeys); m != nil && key != nil || err == nil {
				t.Fatalf("a space at %d: %v, %v", i, m, err)
			}
		}
	})
	t.Run("replayed", func(t *testing.T) {
		// Yesterday's backup under a newer name: the objects are all right, but not these.
		newer := NewID(testGUID, testTime.AddDate(0, 0, 1)).String()
		all := maps.Clone(g.objects)
		for name, data := range g.objects {
			all[strings.Replace(name, testID.String(), newer, 1)] = data
		}
		b := all.bucket(t)
		backup := find(t, b, newer)
		if _, err := restore(t.Context(), backup, nil); backup.Status != Damaged || !strings.Contains(fmt.Sprint(err), newer+".json") {
			t.Errorf("%s: %v", backup.Status, err)
		}
		if latest := find(t, b, Latest); latest.ID != testID {
			t.Errorf("latest is %s", latest.ID)
		}
	})
}

// TestForeignMetadata has JSON of other programs, and none.
func TestForeignMetadata(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	for name, text := range map[string]string{
		"other program":  `{"backup_guid": "x", "parts": 3}`,
		"string version": `{"version": "1.2"}`,
		"no members":     `{}`,
		"no JSON":        `hello`,
	} {
		all := maps.Clone(g.objects)
		all[full(".json")] = text
		if name == "no JSON" {
			// Beside objects that only this program makes it would be damage.
			delete(all, full(".sums"))
			delete(all, full(".toc"))
		}
		backup := find(t, all.bucket(t), testID.String())
		if backup.Status != Foreign || !errors.Is(backup.Problem, ErrForeign) || backup.Authenticated {
			t.Errorf("%s: %s, %v", name, backup.Status, backup.Problem)
		}
		if _, err := backup.Reader(t.Context(), nil); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: read as %v", name, err)
		}
		var none *NotFoundError
		if _, err := OpenCatalog(all.bucket(t), testKeys, nil).Find(t.Context(), Ref{ID: Latest, Unauthenticated: true}); !errors.As(err, &none) {
			t.Errorf("%s: latest is %v", name, err)
		}
	}
}

// recipients returns n that are allowed.
func recipients(n int) []Recipient {
	var out []Recipient
	for i := range n {
		out = append(out, Recipient{fmt.Sprintf("%064x", i), "c2VhbGVk"})
	}
	return out
}

// TestInconsistentMetadata has metadata that someone with the key wrote, and
// that say what cannot be.
func TestInconsistentMetadata(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	hash := strings.Repeat("0", 64)
	for name, change := range map[string]func(m *Metadata){
		"version":                func(m *Metadata) { m.Version = 2 },
		"version 0":              func(m *Metadata) { m.Version = 0 },
		"backup_id":              func(m *Metadata) { m.BackupID = NewID(testGUID, testTime.Add(1e9)).String() },
		"backup_guid":            func(m *Metadata) { m.BackupGUID = otherGUID },
		"status":                 func(m *Metadata) { m.Status = "running" },
		"compression":            func(m *Metadata) { m.Compression.Algorithm = "zstd" },
		"cipher":                 func(m *Metadata) { m.Encryption.Cipher = "none" },
		"salt":                   func(m *Metadata) { m.Encryption.Salt += "00" },
		"key_id of another key":  func(m *Metadata) { m.Encryption.KeyID = otherKey.ID() },
		"key_id":                 func(m *Metadata) { m.Encryption.KeyID = "x" },
		"kdf":                    func(m *Metadata) { m.Encryption.KDF = "scrypt" },
		"digest":                 func(m *Metadata) { m.Encryption.Digest = "sha512" },
		"no iterations":          func(m *Metadata) { m.Encryption.Iterations = 0 },
		"negative iterations":    func(m *Metadata) { m.Encryption.KDF, m.Encryption.Iterations = crypto.PBKDF2, -1 },
		"iterations":             func(m *Metadata) { m.Encryption.KDF, m.Encryption.Iterations = crypto.PBKDF2, crypto.MaxIterations+1 },
		"recipients":             func(m *Metadata) { m.Encryption.Recipients = recipients(101) },
		"recipient twice":        func(m *Metadata) { m.Encryption.Recipients = append(recipients(2), recipients(1)...) },
		"recipient without name": func(m *Metadata) { m.Encryption.Recipients = []Recipient{{"", "c2VhbGVk"}} },
		"nothing sealed":         func(m *Metadata) { m.Encryption.Recipients = []Recipient{{strings.Repeat("0", 64), ""}} },
		"sealed, no base64":      func(m *Metadata) { m.Encryption.Recipients = []Recipient{{strings.Repeat("0", 64), "$(id)"}} },
		"sealed on two lines":    func(m *Metadata) { m.Encryption.Recipients = []Recipient{{strings.Repeat("0", 64), "c2Vh\nbGVk"}} },
		"too much sealed": func(m *Metadata) {
			m.Encryption.Recipients = []Recipient{{strings.Repeat("0", 64), strings.Repeat("AAAA", 700)}}
		},
		"no parts":                  func(m *Metadata) { m.Parts = nil },
		"part left out":             func(m *Metadata) { m.Parts = m.Parts[:2] },
		"part left out, sizes too":  func(m *Metadata) { m.Sizes.Stored -= m.Parts[0].Size; m.Parts = m.Parts[1:] },
		"parts swapped":             func(m *Metadata) { m.Parts[0], m.Parts[1] = m.Parts[1], m.Parts[0] },
		"part twice":                func(m *Metadata) { m.Parts[1] = m.Parts[0] },
		"part with a path":          func(m *Metadata) { m.Parts[0].Name = "../" + m.Parts[0].Name },
		"part of another backup":    func(m *Metadata) { m.Parts[0].Name = NewID(otherGUID, testTime).String() + "-0" },
		"part with zeros":           func(m *Metadata) { m.Parts[0].Name = full("-00") },
		"whole object and parts":    func(m *Metadata) { m.Parts[0].Name = testID.String() },
		"part's digest":             func(m *Metadata) { m.Parts[0].SHA256 = "x" },
		"digest in upper case":      func(m *Metadata) { m.Parts[0].SHA256 = strings.Repeat("A", 64) },
		"part without bytes":        func(m *Metadata) { m.Parts[1].Size += m.Parts[0].Size; m.Parts[0].Size = 0 },
		"negative part":             func(m *Metadata) { m.Parts[1].Size += m.Parts[0].Size + 16; m.Parts[0].Size = -16 },
		"sizes that overflow":       func(m *Metadata) { m.Parts[0].Size, m.Parts[1].Size = 1<<63-1, 1<<63-1 },
		"stored":                    func(m *Metadata) { m.Sizes.Stored += 16 },
		"plain":                     func(m *Metadata) { m.Sizes.Plain = -1 },
		"compressed":                func(m *Metadata) { m.Sizes.Compressed = -1 },
		"half a block":              func(m *Metadata) { m.Parts[0].Size += 8; m.Sizes.Stored += 8 },
		"too short":                 func(m *Metadata) { m.Parts = m.Parts[:1]; m.Parts[0].Size, m.Sizes.Stored = 16, 16 },
		"10^18 bytes":               func(m *Metadata) { m.Parts[0].Size += 1e18; m.Sizes.Stored += 1e18 },
		"toc's name":                func(m *Metadata) { m.TOC.Name = full(".sums") },
		"toc with a path":           func(m *Metadata) { m.TOC.Name = "../" + m.TOC.Name },
		"toc's size":                func(m *Metadata) { m.TOC.Size = -1 },
		"toc's digest":              func(m *Metadata) { m.TOC.SHA256 = hash + "0" },
		"no sums":                   func(m *Metadata) { m.Sums = nil },
		"sums' name":                func(m *Metadata) { m.Sums.Name = "/etc/passwd" },
		"sums' digest":              func(m *Metadata) { m.Sums.SHA256 = "" },
		"sums' size":                func(m *Metadata) { m.Sums.Size += 32 },
		"segment_size":              func(m *Metadata) { m.Sums.SegmentSize = 1 },
		"segment_size 0":            func(m *Metadata) { m.Sums.SegmentSize = 0 },
		"negative segment_size":     func(m *Metadata) { m.Sums.SegmentSize = -1 },
		"stored size, and sums' as": func(m *Metadata) { m.Sizes.Stored += 16; m.Sums.Size += 32 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := maps.Clone(g.objects)
			all[full(".json")] = changed(t, g.objects[full(".json")], change)
			wantDamagedMetadata(t, all.bucket(t))
		})
	}
	// What they say of the content shows when that is read.
	for name, test := range map[string]struct {
		change func(m *Metadata)
		want   verdict
	}{
		"plain too small":      {func(m *Metadata) { m.Sizes.Plain-- }, verdict{[]string{}, "ID", 999, []string{}, "", ""}},
		"plain too large":      {func(m *Metadata) { m.Sizes.Plain++ }, verdict{[]string{}, "ID", -1, []string{}, "", ""}},
		"compressed too large": {func(m *Metadata) { m.Sizes.Compressed++ }, verdict{[]string{}, "", -1, []string{}, "ID.toc", ""}},
		"part's digest":        {func(m *Metadata) { m.Parts[1].SHA256 = hash }, verdict{[]string{}, "", -1, []string{"ID-1"}, "", ""}},
		"sums' digest":         {func(m *Metadata) { m.Sums.SHA256 = hash }, verdict{[]string{}, "ID.sums", 0, []string{"ID.sums"}, "", ""}},
		"toc's digest":         {func(m *Metadata) { m.TOC.SHA256 = hash }, verdict{[]string{}, "", -1, []string{"ID.toc"}, "ID.toc", ""}},
		"other kdf":            {func(m *Metadata) { m.Encryption.Digest = "sha256" }, verdict{[]string{}, "ID", 0, []string{}, "", ""}},
		"borders of parts": {func(m *Metadata) { m.Parts[0].Size--; m.Parts[1].Size++ }, verdict{
			[]string{"ID-0", "ID-1"}, "ID-0", 0, []string{"ID-0", "ID-1"}, "", "ID-0 to ID-2",
		}},
		"no toc": {func(m *Metadata) { m.TOC = nil }, verdict{[]string{}, "", -1, []string{}, "", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := maps.Clone(g.objects)
			all[full(".json")] = changed(t, g.objects[full(".json")], test.change)
			test.want.compare(t, all.bucket(t), g.sql)
		})
	}
	t.Run("later members", func(t *testing.T) {
		// A later program may know more.
		all := maps.Clone(g.objects)
		all[full(".json")] = resign(strings.Replace(all[full(".json")], `"parts"`, `"x_1": {"y": [null]}, "parts"`, 1))
		wantRestored(t, all.bucket(t), testID, g.sql)
	})
}

// changed changes metadata and gives them the right MAC.
func changed(t *testing.T, text string, change func(m *Metadata)) string {
	t.Helper()
	m := new(Metadata)
	if err := json.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	change(m)
	b, err := m.encode(testKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// manyParts makes metadata list n parts of 16 bytes.
func manyParts(m *Metadata, n int) {
	m.Parts = nil
	for i := range n {
		m.Parts = append(m.Parts, Part{full(fmt.Sprintf("-%d", i)), 16, strings.Repeat("0", 64)})
	}
	m.Sizes.Stored = int64(n) * 16
	m.Sums.Size = segments(m.Sizes.Stored) * 32
}

// TestMostParts checks that the metadata of as many parts as are allowed can be
// read, and of one more cannot. They are large, so it looks only at the parser,
// which all reading of metadata goes through.
func TestMostParts(t *testing.T) {
	t.Parallel()
	for _, n := range []int{maxParts, maxParts + 1} {
		text := changed(t, goldenSmall().objects[full(".json")], func(m *Metadata) { manyParts(m, n) })
		m, key, err := parseMetadata(testID, []byte(text), testKeys)
		if n == maxParts && (err != nil || key == nil || len(m.Parts) != n) {
			t.Error(err)
		}
		if n > maxParts && (err == nil || !strings.Contains(err.Error(), "parts")) {
			t.Errorf("%d parts: %v", n, err)
		}
	}
}

// TestDamagedTOC has a toc that someone with the key wrote.
func TestDamagedTOC(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	zipped := func(text string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, text)
		z.Close()
		return b.Bytes()
	}
	head := `{"version": 1, "backup_id": "` + testID.String() + `", `
	for name, plain := range map[string][]byte{
		"empty":           {},
		"not gzip":        []byte("hello"),
		"not JSON":        zipped("hello"),
		"cut":             zipped(head + `"frames": []}`)[:40],
		"version":         zipped(`{"version": 2, "backup_id": "` + testID.String() + `"}`),
		"other backup":    zipped(`{"version": 1, "backup_id": "x"}`),
		"negative frame":  zipped(head + `"frames": [[-1, 100]]}`),
		"huge frame":      zipped(head + `"frames": [[1, 1000000000000]]}`),
		"impossible":      zipped(head + `"frames": [[1, 27]]}`),
		"frames missing":  zipped(head + `"frames": []}`),
		"frames too many": zipped(head + `"frames": [[1000, 1100], [1, 100]]}`),
	} {
		var toc bytes.Buffer
		w, err := crypto.NewWriter(&toc, testKey.Passphrase(), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(plain)
		w.Close()
		all := maps.Clone(g.objects)
		all[full(".toc")] = toc.String()
		all[full(".json")] = changed(t, all[full(".json")], func(m *Metadata) { m.TOC = describe(full(".toc"), toc.Bytes()) })
		t.Run(name, func(t *testing.T) {
			verdict{[]string{}, "", -1, []string{}, "ID.toc", ""}.compare(t, all.bucket(t), g.sql)
		})
	}
}

// TestKeys reads with a wrong key, with none, and with several.
func TestKeys(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	b := g.bucket(t)
	for name, test := range map[string]struct {
		keys crypto.Keyring
		ok   bool
	}{
		"right":     {crypto.Keyring{testKey}, true},
		"among two": {crypto.Keyring{otherKey, testKey}, true},
		"wrong":     {crypto.Keyring{otherKey}, false},
		"none":      {nil, false},
	} {
		c := OpenCatalog(b, test.keys, nil)
		backup, err := c.Find(t.Context(), Ref{ID: testID.String()})
		if err != nil {
			t.Fatal(err)
		}
		if backup.Status != Complete || backup.Metadata == nil || backup.Authenticated != test.ok {
			t.Errorf("%s: %s, authenticated %v", name, backup.Status, backup.Authenticated)
		}
		_, latestErr := c.Find(t.Context(), Ref{})
		if test.ok {
			if got, err := restore(t.Context(), backup, nil); err != nil || !bytes.Equal(got, g.sql) || latestErr != nil {
				t.Errorf("%s: %d bytes, %v; latest: %v", name, len(got), err, latestErr)
			}
			continue
		}
		_, readErr := restore(t.Context(), backup, &ReadOptions{AllowUnauthenticated: true})
		_, decodeErr := backup.Decode(t.Context(), nil)
		_, tocErr := backup.TOC(t.Context())
		for what, err := range map[string]error{"find": backup.Problem, "latest": latestErr, "read": readErr, "decode": decodeErr, "toc": tocErr} {
			var wrong *WrongKeyError
			if !errors.As(err, &wrong) || wrong.Object != testID.String() || wrong.Needed != testKey.ID() || errors.Is(err, ErrNoKey) != (test.keys == nil) {
				t.Errorf("%s key, %s: %v", name, what, err)
			}
		}
		// Without any key the newest can be named all the same, and its digests checked.
		latest, latestErr := c.Find(t.Context(), Ref{Unauthenticated: true})
		if test.keys == nil && (latestErr != nil || latest.ID != testID) || test.keys != nil && latestErr == nil {
			t.Errorf("%s key, unauthenticated: %v", name, latestErr)
		}
		if damage, err := backup.Digests(t.Context(), nil); len(damage) > 0 || err != nil {
			t.Errorf("%s key, digests: %v, %v", name, damage, err)
		}
	}
}

// TestDigestsUnauthenticated checks digests without a key: then the metadata are
// whatever the store says, and still must neither stop the program nor make it
// run for ever.
func TestDigestsUnauthenticated(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	for name, test := range map[string]struct {
		change func(m *Metadata)
		more   objects
	}{
		"sums shorter than they should be": {func(m *Metadata) {
			const size = 17 * SegmentSize
			m.Parts = []Part{{testID.String(), size, strings.Repeat("0", 64)}}
			m.Sizes.Stored = size
			m.Sums.Object = *describe(full(".sums"), nil)
			m.Sums.Size = 17 * 32
		}, objects{full(".sums"): "", testID.String(): strings.Repeat("0", 17*SegmentSize)}},
		"a part of 10^18 bytes": {func(m *Metadata) {
			m.Parts[2].Size += 1e18
			m.Sizes.Stored += 1e18
			m.Sums.Size = segments(m.Sizes.Stored) * 32
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			all := maps.Clone(g.objects)
			all[full(".json")] = changed(t, all[full(".json")], test.change)
			maps.Copy(all, test.more)
			backup, err := OpenCatalog(all.bucket(t), nil, nil).Find(t.Context(), Ref{ID: testID.String()})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() {
					if r := recover(); r != nil {
						t.Errorf("panic: %v", r)
					}
				}()
				read := 0
				damage, err := backup.Digests(t.Context(), &ReadOptions{Progress: func(n int) {
					if read += n; read > 1<<30 {
						t.Error("it goes on for ever")
						runtime.Goexit()
					}
				}})
				if len(damage) == 0 && err == nil {
					t.Error("no damage found")
				}
			}()
			<-done
		})
	}
}
