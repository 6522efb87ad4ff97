package archive

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"encdump/crypto"
	"encdump/storage"
	"encdump/storage/storagetest"
)

func TestID(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		time string // empty: no ID
	}{
		{testGUID + "-1548967947154", "2019-01-31T20:52:27.154Z"},
		{testGUID + "-1548967947", "2019-01-31T20:52:27Z"},
		{testGUID + "-0", "1970-01-01T00:00:00Z"},
		{testGUID + "-99999999999", "5138-11-16T09:46:39Z"},
		{testGUID + "-100000000000", "1973-03-03T09:46:40Z"},
		{testGUID + "-253402300799999", "9999-12-31T23:59:59.999Z"},
		{testGUID + "-253402300800000", ""},
		{testGUID + "-99999999999999999999", ""},
		{testGUID + "-01548967947", ""},
		{testGUID + "-00", ""},
		{testGUID + "--1", ""},
		{testGUID + "-+1", ""},
		{testGUID + "-1e3", ""},
		{testGUID + "-1 ", ""},
		{testGUID + "-1-0", ""},
		{testGUID + "-1.json", ""},
		{testGUID + "-٣", ""},
		{testGUID + "-", ""},
		{testGUID, ""},
		{testGUID + "1548967947154", ""},
		{strings.ToUpper(testGUID) + "-1548967947154", ""},
		{"0d6f0c4e9a3b4f6e8f0e1f2a3b4c5d6e-1548967947154", ""},
		{"-1548967947154", ""},
		{"", ""},
		{" " + testGUID + "-1", ""},
		{"../" + testGUID + "-1", ""},
	} {
		id, err := ParseID(test.text)
		if (err == nil) != (test.time != "") {
			t.Errorf("%q: %v, %v", test.text, id, err)
			continue
		}
		if err != nil {
			if !id.IsZero() {
				t.Errorf("%q: an error, and %v", test.text, id)
			}
			continue
		}
		if got := id.Time().Format(time.RFC3339Nano); got != test.time || id.String() != test.text || id.IsZero() {
			t.Errorf("%q is %s at %s, want %s", test.text, id, got, test.time)
		}
	}

	// Whole seconds and milliseconds, in order of the instant; then by name.
	var ids []ID
	ordered := []string{
		otherGUID + "-1548967946999", testGUID + "-1548967947", testGUID + "-1548967947000", otherGUID + "-1548967947000",
		testGUID + "-1548967947001", otherGUID + "-1548967948", testGUID + "-15489679479",
	}
	for _, s := range ordered {
		id, err := ParseID(s)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	slices.SortFunc(ids, ID.Compare)
	for i, id := range ids {
		if id.String() != ordered[i] {
			t.Errorf("at %d is %s, want %s", i, id, ordered[i])
		}
	}
}

func TestPartIndex(t *testing.T) {
	t.Parallel()
	for rest, want := range map[string]int{
		"-0": 0, "-7": 7, "-10": 10, "-007": 7, "-00": 0, "-123456789": 123456789,
		"": -1, "-": -1, "-x": -1, "-1.tmp": -1, "--1": -1, "-+1": -1, "-1-1": -1, "-99999999999999999999": -1, ".json": -1, "0": -1, "- 1": -1,
	} {
		n, ok := partIndex(rest)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%q: %d, %v", rest, n, ok)
		}
	}
}

// logged is what a logger was told.
func logged() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

// damagedJSON is what can only be metadata of ours, and not such as were written.
const damagedJSON = `{"version": 1}`

// small makes a small backup at that time.
func small(t *testing.T, b storage.Bucket, guid string, at time.Time, key *crypto.Key) ID {
	t.Helper()
	return mustBackUp(t, clusterDump("-- "+at.String()+"\n"), WriterOptions{GUID: guid, TriggeredAt: at, Key: key}, b)
}

// TestFind asks for backups in all ways.
func TestFind(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	hour := func(n int) time.Time { return testTime.Add(time.Duration(n) * time.Hour) }
	one := small(t, b, testGUID, hour(0), testKey)
	two := small(t, b, testGUID, hour(1), testKey)
	other := small(t, b, otherGUID, hour(2), testKey)
	put(t, b, testGUID+"-1600000000-0", "foreign, in seconds")
	put(t, b, testGUID+"-1600000000000-0", "foreign, in milliseconds, the name above is its beginning")
	put(t, b, testGUID+"-1600000000000-1", "more of it")
	put(t, b, NewID(testGUID, hour(3)).String()+".incomplete", "")
	put(t, b, NewID(testGUID, hour(3)).String()+"-0", "a part")
	put(t, b, NewID(testGUID, hour(4)).String()+".json", damagedJSON)
	// None of these is a backup, or belongs to one.
	for _, name := range []string{
		"hello", testGUID, testGUID + "-x", testGUID + "-", strings.ToUpper(testGUID) + "-1700000000000-0", "x" + one.String() + ".json",
		NewID(testGUID, hour(5)).String() + ".toc", NewID(testGUID, hour(5)).String() + ".txt", NewID(testGUID, hour(5)).String() + "-99999999999999999999",
	} {
		put(t, b, name, "none of ours")
	}
	c := OpenCatalog(b, testKeys, nil)

	var got []string
	for b, err := range c.Backups(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s %d", b.ID, b.Status, len(b.Parts)))
		if (b.Problem == nil) != (b.Status == Complete) || (b.Metadata == nil) != (b.Status != Complete) {
			t.Errorf("%s is %s: %v", b.ID, b.Status, b.Problem)
		}
	}
	want := []string{
		testGUID + "-1600000000 foreign 1",
		testGUID + "-1600000000000 foreign 2",
		one.String() + " complete 1",
		two.String() + " complete 1",
		other.String() + " complete 1",
		NewID(testGUID, hour(3)).String() + " incomplete 1",
		NewID(testGUID, hour(4)).String() + " damaged 0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	type test struct {
		ref       Ref
		want      string // an ID; empty: not found
		ambiguous bool
		choice    string // part of what there is to choose from
	}
	for _, test := range []test{
		{Ref{ID: one.String()}, one.String(), false, ""},
		{Ref{ID: strings.ToUpper(one.String())}, one.String(), false, ""},
		{Ref{ID: otherGUID[:1]}, other.String(), false, ""},
		{Ref{ID: two.String()[:len(two.String())-1]}, two.String(), false, ""},
		{Ref{ID: testGUID + "-1600000000"}, testGUID + "-1600000000", false, ""},
		{Ref{ID: testGUID + "-1600000000000"}, testGUID + "-1600000000000", false, ""},
		{Ref{ID: testGUID + "-160000000"}, "", true, testGUID + "-1600000000000"},
		{Ref{ID: testGUID}, "", true, one.String()},
		{Ref{ID: testGUID + "-17"}, "", true, two.String()},
		{Ref{ID: one.String() + "-0"}, "", false, other.String()},
		{Ref{ID: one.String() + ".json"}, "", false, other.String()},
		{Ref{ID: "hello"}, "", false, other.String()},
		{Ref{ID: testGUID + "-x"}, "", false, other.String()},
		{Ref{ID: one.String(), GUID: testGUID}, one.String(), false, ""},
		{Ref{ID: one.String(), GUID: otherGUID}, "", false, ""},
		{Ref{}, "", true, otherGUID},
		{Ref{ID: Latest}, "", true, testGUID},
		{Ref{ID: "LATEST", GUID: testGUID}, two.String(), false, ""},
		{Ref{GUID: testGUID}, two.String(), false, ""},
		{Ref{GUID: strings.ToUpper(testGUID[:3])}, two.String(), false, ""},
		{Ref{GUID: otherGUID[:1]}, other.String(), false, ""},
		{Ref{GUID: "no such"}, "", false, otherGUID},
		{Ref{GUID: testGUID, At: hour(1)}, two.String(), false, ""},
		{Ref{GUID: testGUID, At: hour(0)}, one.String(), false, ""},
		{Ref{GUID: testGUID, At: hour(0).Add(-time.Millisecond)}, "", false, ""},
		{Ref{GUID: testGUID, At: hour(100)}, two.String(), false, ""},
		{Ref{At: hour(100)}, "", true, otherGUID},
	} {
		if !test.ref.At.IsZero() {
			// What counts is when the dump began, and these all began just now.
			restamp(t, b, one, hour(0))
			restamp(t, b, two, hour(1))
		}
		found, err := c.Find(t.Context(), test.ref)
		var none *NotFoundError
		switch {
		case test.want != "":
			if err != nil || found.ID.String() != test.want {
				t.Errorf("%+v: %v, %v; want %s", test.ref, found, err, test.want)
			}
		case !errors.As(err, &none) || none.Ambiguous != test.ambiguous:
			// Damaged metadata under the GUID come first where nothing else is left.
			if test.ref.GUID == "" || test.ref.At.IsZero() {
				t.Errorf("%+v: %v, %v", test.ref, found, err)
			}
		case test.choice != "" && !slices.Contains(none.Choice, test.choice):
			t.Errorf("%+v: to choose from %q", test.ref, none.Choice)
		}
	}
	if _, err := c.Find(t.Context(), Ref{ID: one.String(), At: hour(1)}); err == nil {
		t.Error("a time and an ID are taken")
	}
	for _, test := range []struct{ guid, want string }{{testGUID, "damaged"}, {otherGUID, other.String()}, {"no such", ""}} {
		previous, _, err := c.Previous(t.Context(), test.guid)
		switch {
		case err != nil, test.want == "" && previous != nil, test.want != "" && previous == nil:
			t.Errorf("the one before, of %s: %v, %v", test.guid, previous, err)
		case test.want != "" && previous.ID.String() != test.want && string(previous.Status) != test.want:
			t.Errorf("the one before, of %s: %s, %s", test.guid, previous.ID, previous.Status)
		}
	}
}

// restamp makes a backup one that began at that time.
func restamp(t *testing.T, b storage.Bucket, id ID, at time.Time) {
	t.Helper()
	put(t, b, id.String()+".json", changed(t, contents(t, b)[id.String()+".json"], func(m *Metadata) { m.StartedAt = at.UTC() }))
}

// TestFindName asks for GUIDs by the name of their backups.
func TestFindName(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	named := func(guid, name string, n int) ID {
		w, err := NewWriter(t.Context(), []storage.Bucket{b}, options(WriterOptions{GUID: guid, TriggeredAt: testTime.Add(time.Duration(n))}))
		if err != nil {
			t.Fatal(err)
		}
		w.Metadata.Name = name
		w.Write(clusterDump(""))
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		return w.ID()
	}
	named(testGUID, "sales", 1)
	sales := named(testGUID, "sales", 2e6)
	staff := named(otherGUID, "staff", 3e6)
	c := OpenCatalog(b, testKeys, nil)
	for name, want := range map[string]ID{"sales": sales, "staff": staff, "Staff": {}, "sale": {}} {
		got, err := c.Find(t.Context(), Ref{GUID: name})
		var none *NotFoundError
		if want.IsZero() && !errors.As(err, &none) || !want.IsZero() && (err != nil || got.ID != want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	count := 0
	for b, err := range c.Backups(t.Context(), "sales") {
		if err != nil || b.ID.GUID != testGUID {
			t.Errorf("%v, %v", b, err)
		}
		count++
	}
	if count != 2 {
		t.Errorf("%d backups are of that name", count)
	}
	named(otherGUID, "sales", 4e6)
	var ambiguous *NotFoundError
	if _, err := c.Find(t.Context(), Ref{GUID: "sales"}); !errors.As(err, &ambiguous) || !ambiguous.Ambiguous || len(ambiguous.Choice) != 2 {
		t.Errorf("a name of two: %v", err)
	}
	for _, err := range c.Backups(t.Context(), "nobody") {
		if !errors.As(err, &ambiguous) || ambiguous.Ambiguous {
			t.Errorf("nobody: %v", err)
		}
	}
}

// TestLatestPassesOver has newer backups that cannot be taken.
func TestLatestPassesOver(t *testing.T) {
	t.Parallel()
	b := storagetest.Mem()
	good := small(t, b, testGUID, testTime, testKey)
	newer := NewID(testGUID, testTime.Add(time.Hour))
	all := contents(t, b)
	small(t, b, testGUID, newer.Time(), otherKey)
	otherKeys := contents(t, b)
	for name := range all {
		delete(otherKeys, name)
	}
	for name, test := range map[string]struct {
		more objects
		log  string // what the warning names; empty: none
	}{
		"damaged":     {objects{newer.String() + ".json": damagedJSON}, newer.String() + ".json"},
		"other key":   {otherKeys, "key " + otherKey.ID()},
		"incomplete":  {objects{newer.String() + ".incomplete": "", newer.String() + "-0": "x"}, ""},
		"foreign":     {objects{newer.String() + "-0": "x"}, ""},
		"other JSON":  {objects{newer.String() + "-0": "x", newer.String() + ".json": "{}"}, ""},
		"both":        {objects{newer.String() + ".json": damagedJSON, newer.String() + ".incomplete": ""}, newer.String() + ".json"},
		"nothing new": {nil, ""},
	} {
		with := maps.Clone(all)
		maps.Copy(with, test.more)
		log, text := logged()
		bucket := with.bucket(t)
		found, err := OpenCatalog(bucket, testKeys, log).Find(t.Context(), Ref{})
		if err != nil || found.ID != good {
			t.Errorf("%s: %v, %v", name, found, err)
		}
		if test.log != "" && !strings.Contains(text.String(), "level=WARN") || !strings.Contains(text.String(), test.log) || test.log == "" && text.Len() > 0 {
			t.Errorf("%s: the log says %q, want %q", name, text, test.log)
		}
		if newest, err := OpenCatalog(bucket, testKeys, nil).Find(t.Context(), Ref{Newest: true}); err != nil || (newest.ID == newer) != (test.log != "") {
			t.Errorf("%s: the newest is %v, %v", name, newest, err)
		}
		// Alone it is not taken, and the error says why.
		_, err = OpenCatalog(test.more.bucket(t), testKeys, nil).Find(t.Context(), Ref{})
		var none *NotFoundError
		var wrong *WrongKeyError
		if damaged := damagedObject(err) == newer.String()+".json"; err == nil || damaged != strings.HasSuffix(test.log, ".json") ||
			errors.As(err, &wrong) != strings.HasPrefix(test.log, "key") || errors.As(err, &none) != (test.log == "") {
			t.Errorf("%s alone: %v", name, err)
		}
	}
	t.Run("unreadable", func(t *testing.T) {
		small(t, b, testGUID, newer.Time().Add(time.Hour), testKey)
		faulty := storagetest.NewFaulty(b).Add(storagetest.Fault{Op: storagetest.Open, Nth: 1, Err: storage.ErrPermission})
		log, text := logged()
		found, err := OpenCatalog(faulty, crypto.Keyring{testKey, otherKey}, log).Find(t.Context(), Ref{})
		if err != nil || found.ID != newer || !strings.Contains(text.String(), "permission") {
			t.Errorf("%v, %v: %s", found, err, text)
		}
	})
	t.Run("listing fails", func(t *testing.T) {
		faulty := storagetest.NewFaulty(b).Add(storagetest.Fault{Op: storagetest.List, Err: errBoom})
		c := OpenCatalog(faulty, testKeys, nil)
		for _, ref := range []Ref{{}, {ID: good.String()}, {GUID: testGUID}} {
			if _, err := c.Find(t.Context(), ref); !errors.Is(err, errBoom) {
				t.Errorf("%v: %v", ref, err)
			}
		}
		for _, err := range c.Backups(t.Context(), "") {
			if !errors.Is(err, errBoom) {
				t.Error(err)
			}
		}
		if _, _, err := c.Previous(t.Context(), testGUID); !errors.Is(err, errBoom) {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := &recorder{Bucket: b, on: func(event string) error {
			if strings.HasPrefix(event, "open") {
				cancel(errBoom)
			}
			return nil
		}}
		if _, err := OpenCatalog(r, testKeys, nil).Find(ctx, Ref{}); !errors.Is(err, errBoom) {
			t.Error(err)
		}
	})
}

// TestDelete checks the order, and that a deletion that failed anywhere leaves
// what nobody takes for a backup and what can be deleted.
func TestDelete(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	all := maps.Clone(g.objects)
	all[full(".sig")] = "a signature"
	all[full(".verified-1700000000001")] = "a record"
	all[full("-x")] = "matches the glob"
	neighbour := testID.String() + "0-0" // another ID that begins with this one
	all[neighbour] = "of another backup"
	all["hello"] = "none of ours"
	want := []string{"ID0-0", "hello"}

	r := &recorder{Bucket: all.bucket(t)}
	if err := find(t, r.Bucket, testID.String()).remover(r).Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	order := []string{
		"list ID", "put ID.incomplete", "delete ID.json", "delete ID-2", "delete ID-1", "delete ID-0",
		"delete ID-x", "delete ID.sig", "delete ID.sums", "delete ID.toc", "delete ID.verified-1700000000001", "delete ID.incomplete",
	}
	wantEvents(t, r.events, order...)
	if got := contents(t, r.Bucket).names(); !slices.Equal(got, want) {
		t.Errorf("left: %q", got)
	}

	for _, at := range order {
		t.Run("failed at "+at, func(t *testing.T) {
			b := all.bucket(t)
			failing := &recorder{Bucket: b, on: func(event string) error {
				if event == at {
					return errBoom
				}
				return nil
			}}
			if err := find(t, b, testID.String()).remover(failing).Delete(t.Context()); !errors.Is(err, errBoom) {
				t.Fatalf("error %v", err)
			}
			backup := find(t, b, testID.String())
			if _, err := restore(t.Context(), backup, nil); (err == nil) != (backup.Status == Complete) {
				t.Errorf("%s, and reads as %v", backup.Status, err)
			}
			if untouched := slices.Index(order, at) <= 2; untouched != (backup.Status == Complete) || !untouched && backup.Status != Incomplete {
				t.Errorf("%s", backup.Status)
			}
			if err := backup.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := contents(t, b).names(); !slices.Equal(got, want) {
				t.Errorf("left after the second time: %q", got)
			}
			if err := backup.Delete(t.Context()); err != nil { // what is gone is no error
				t.Error(err)
			}
		})
	}
}

// remover returns the backup as one of another bucket.
func (b *Backup) remover(bucket storage.Bucket) *Backup {
	c := *b
	c.bucket = bucket
	return &c
}

// foreignBackup encrypts what other programs compressed, in parts named by names.
func foreignBackup(t testing.TB, zipped []byte, d crypto.Derivation, partSize int, name func(i int) string) objects {
	t.Helper()
	var stored bytes.Buffer
	w, err := crypto.NewWriter(&stored, testKey.Passphrase(), &crypto.Options{Derivation: d})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(zipped)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all := objects{}
	for i := 0; stored.Len() > 0; i++ {
		all[testID.String()+name(i)] = string(stored.Next(partSize))
	}
	return all
}

func zip(members ...[]byte) []byte {
	var b bytes.Buffer
	for _, m := range members {
		z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		z.Write(m)
		z.Close()
	}
	return b.Bytes()
}

func numbered(first int) func(i int) string {
	return func(i int) string { return "-" + strconv.Itoa(first+i) }
}

// TestForeign reads what other programs made.
func TestForeign(t *testing.T) {
	t.Parallel()
	text := append(sqlOf(1, 20_000), noiseOf(2, 9<<20)...)
	whole := func(int) string { return "" }
	bubble(t, "layouts", func(t *testing.T) {
		sql := sqlOf(1, 20_000)
		pbkdf2 := crypto.NewPBKDF2(77)
		for name, test := range map[string]struct {
			objects
			o ReadOptions
		}{
			"one object":      {foreignBackup(t, zip(sql), crypto.MD5, 1e9, whole), ReadOptions{}},
			"one part":        {foreignBackup(t, zip(sql), crypto.MD5, 1e9, numbered(0)), ReadOptions{}},
			"parts from 0":    {foreignBackup(t, zip(sql), crypto.MD5, 100, numbered(0)), ReadOptions{Jobs: 3}},
			"parts from 1":    {foreignBackup(t, zip(sql), crypto.MD5, 100, numbered(1)), ReadOptions{}},
			"zeros":           {foreignBackup(t, zip(sql), crypto.MD5, 1000, func(i int) string { return fmt.Sprintf("-%04d", i) }), ReadOptions{}},
			"SHA-256":         {foreignBackup(t, zip(sql), crypto.SHA256, 1e9, whole), ReadOptions{}},
			"PBKDF2":          {foreignBackup(t, zip(sql), crypto.NewPBKDF2(crypto.OpenSSLIterations), 1e9, whole), ReadOptions{}},
			"PBKDF2, 77":      {foreignBackup(t, zip(sql), pbkdf2, 1e9, whole), ReadOptions{Derivation: &pbkdf2}},
			"members":         {foreignBackup(t, zip(sql[:1], sql[1:9000], nil, sql[9000:]), crypto.MD5, 1e9, whole), ReadOptions{}},
			"many members":    {foreignBackup(t, zip(append(make([][]byte, 300), sql)...), crypto.MD5, 1e9, whole), ReadOptions{Jobs: 2}},
			"empty first":     {foreignBackup(t, zip(nil, sql), crypto.MD5, 1e9, whole), ReadOptions{}},
			"frame, then not": {foreignBackup(t, append(mustFrame(t, sql[:500]), zip(sql[500:])...), crypto.MD5, 1e9, whole), ReadOptions{Jobs: 2}},
			"zeros behind":    {foreignBackup(t, append(zip(sql), make([]byte, 10_000)...), crypto.MD5, 1e9, whole), ReadOptions{}},
			"members, zeros":  {foreignBackup(t, append(zip(sql[:1], sql[1:]), 0), crypto.MD5, 1e9, whole), ReadOptions{}},
			"frames, zeros":   {foreignBackup(t, append(append(mustFrame(t, sql[:500]), mustFrame(t, sql[500:])...), make([]byte, 100)...), crypto.MD5, 1e9, whole), ReadOptions{Jobs: 2}},
			"not, then frame": {foreignBackup(t, append(zip(sql[:500]), mustFrame(t, sql[500:])...), crypto.MD5, 1e9, whole), ReadOptions{Jobs: 2}},
		} {
			backup := find(t, test.bucket(t), testID.String(), otherKey, testKey)
			if backup.Status != Foreign || !errors.Is(backup.Problem, ErrForeign) {
				t.Errorf("%s: %s, %v", name, backup.Status, backup.Problem)
			}
			if _, err := backup.Reader(t.Context(), &test.o); !errors.Is(err, ErrForeign) {
				t.Errorf("%s: read without being asked for: %v", name, err)
			}
			test.o.AllowUnauthenticated = true
			if got, err := restore(t.Context(), backup, &test.o); err != nil || !bytes.Equal(got, sql) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
			if n, err := backup.Decode(t.Context(), &test.o); err != nil || n != int64(len(sql)) {
				t.Errorf("%s: decoded %d, %v", name, n, err)
			}
		}
	})
	bubble(t, "borders of segments", func(t *testing.T) {
		for _, n := range []int{SegmentSize - 32, SegmentSize - 16, SegmentSize, SegmentSize + 16, 2 * SegmentSize, 2*SegmentSize + 16} {
			// As many bytes of noise as make the stored stream that long, within a block.
			var all objects
			for size := n; ; size -= 8 {
				if all = foreignBackup(t, zip(text[:size]), crypto.MD5, 1e9, whole); len(all[testID.String()]) <= n {
					break
				}
				if over := len(all[testID.String()]) - n; over > 64 {
					size -= over - 64
				}
			}
			got, err := restore(t.Context(), find(t, all.bucket(t), testID.String()), &ReadOptions{AllowUnauthenticated: true, Jobs: 2})
			if err != nil || !bytes.HasPrefix(text, got) {
				t.Errorf("stored in %d bytes, want %d: %d bytes, %v", len(all[testID.String()]), n, len(got), err)
			}
		}
	})
	bubble(t, "zeros", func(t *testing.T) {
		// So many that the look at the start leaves most of them unread.
		sql := append(sqlOf(1, 10_000), bytes.Repeat([]byte("0"), 30<<20)...)
		backup := find(t, foreignBackup(t, zip(sql), crypto.MD5, 1e9, whole).bucket(t), testID.String())
		got, err := restore(t.Context(), backup, &ReadOptions{AllowUnauthenticated: true})
		if err != nil || !bytes.Equal(got, sql) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	bubble(t, "closed early", func(t *testing.T) {
		backup := find(t, foreignBackup(t, zip(text), crypto.MD5, 1e6, numbered(0)).bucket(t), testID.String())
		for _, n := range []int{0, 1, 1 << 20, 5 << 20} {
			r, err := backup.Reader(t.Context(), &ReadOptions{AllowUnauthenticated: true, Jobs: 2})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
				t.Error(err)
			}
			r.Close()
		}
	})
	bubble(t, "cut", func(t *testing.T) {
		sql := sqlOf(1, 600)
		all := foreignBackup(t, zip(sql), crypto.MD5, 1e9, whole)
		stored := all[testID.String()]
		for n := range stored {
			backup := find(t, objects{testID.String(): stored[:n]}.bucket(t), testID.String())
			got, err := restore(t.Context(), backup, &ReadOptions{AllowUnauthenticated: true})
			var wrong *WrongKeyError
			if err == nil || !errors.As(err, &wrong) && damagedObject(err) != "ID" || !bytes.HasPrefix(sql, got) {
				t.Errorf("cut after %d bytes of %d: %d bytes, %v", n, len(stored), len(got), err)
			}
		}
	})
	bubble(t, "refused", func(t *testing.T) {
		sql := sqlOf(1, 20_000)
		right := foreignBackup(t, zip(sql), crypto.MD5, 1000, numbered(0))
		change := func(f func(o objects)) objects {
			o := maps.Clone(right)
			f(o)
			return o
		}
		sha := crypto.SHA256
		for name, test := range map[string]struct {
			objects
			o      ReadOptions
			keys   crypto.Keyring
			object string // damaged; "key": the key is wrong
		}{
			"gap":              {change(func(o objects) { delete(o, full("-3")) }), ReadOptions{}, testKeys, "ID-3"},
			"first missing":    {change(func(o objects) { delete(o, full("-0")) }), ReadOptions{}, testKeys, "key"}, // may be parts from 1
			"two missing":      {change(func(o objects) { delete(o, full("-0")); delete(o, full("-1")) }), ReadOptions{}, testKeys, "ID-0"},
			"twice":            {change(func(o objects) { o[full("-03")] = o[full("-3")] }), ReadOptions{}, testKeys, "ID-3"},
			"whole and parts":  {change(func(o objects) { o[testID.String()] = "x" }), ReadOptions{}, testKeys, "ID"},
			"empty":            {objects{testID.String(): ""}, ReadOptions{}, testKeys, "ID"},
			"not encrypted":    {objects{testID.String(): string(zip(sql))}, ReadOptions{}, testKeys, "ID"},
			"wrong key":        {right, ReadOptions{}, crypto.Keyring{otherKey}, "key"},
			"wrong derivation": {right, ReadOptions{Derivation: &sha}, testKeys, "key"},
			"not gzip":         {foreignBackup(t, sql, crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "key"},
			"not text":         {foreignBackup(t, zip(bytes.Repeat([]byte{0}, 40<<20)), crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "key"},
			"nothing":          {foreignBackup(t, nil, crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "key"},
			"checksum":         {foreignBackup(t, []byte(flip(string(zip(sql)), len(zip(sql))-7, 1)), crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "ID"},
			"sum of a frame":   {foreignBackup(t, []byte(flip(string(mustFrame(t, sql)), len(mustFrame(t, sql))-7, 1)), crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "ID"},
			"garbage, zeros":   {foreignBackup(t, append(zip(sql), "\x00\x00garbage"...), crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "ID"},
			"only zeros":       {foreignBackup(t, make([]byte, 100), crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "key"},
			"garbage behind":   {foreignBackup(t, append(zip(sql), "garbage"...), crypto.MD5, 1e9, whole), ReadOptions{}, testKeys, "ID"},
		} {
			backup, err := OpenCatalog(test.bucket(t), test.keys, nil).Find(t.Context(), Ref{ID: testID.String()})
			if err != nil {
				t.Fatal(err)
			}
			test.o.AllowUnauthenticated = true
			got, err := restore(t.Context(), backup, &test.o)
			var wrong *WrongKeyError
			if name == "first missing" && damagedObject(err) == "ID-1" {
				continue
			}
			if errors.As(err, &wrong) != (test.object == "key") || test.object != "key" && damagedObject(err) != test.object || !bytes.HasPrefix(sql, got) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		if _, err := restore(t.Context(), mustFind(t, right.bucket(t), nil), &ReadOptions{AllowUnauthenticated: true}); !errors.Is(err, ErrNoKey) {
			t.Errorf("no key: %v", err)
		}
	})
}

func mustFind(t testing.TB, b storage.Bucket, keys crypto.Keyring) *Backup {
	t.Helper()
	found, err := OpenCatalog(b, keys, nil).Find(t.Context(), Ref{ID: testID.String()})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func mustFrame(t testing.TB, plain []byte) []byte {
	t.Helper()
	b, err := (&compressors{level: 1}).frame(nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRecord: only a record that the key of the backup made, for this backup, counts.
func TestRecord(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	bucket := maps.Clone(g.objects).bucket(t)
	at := time.UnixMilli(1_700_000_000_000).UTC()
	names := map[string]string{}
	for i, result := range []string{DrillPassed, DrillFailed} {
		b := find(t, bucket, testID.String())
		name, err := b.AddRecord(t.Context(), &Record{VerifiedAt: at.Add(time.Duration(i)*time.Second + time.Microsecond), Result: result, Rows: 1 << 60})
		if err != nil {
			t.Fatal(err)
		}
		names[result] = name
	}
	b := find(t, bucket, testID.String())
	if b.Drill == nil || b.Drill.Passed() || !b.Verified.IsZero() {
		t.Errorf("the newest record is %+v", b.Drill)
	}
	if err := bucket.Delete(t.Context(), names[DrillFailed]); err != nil {
		t.Fatal(err)
	}
	b = find(t, bucket, testID.String())
	if b.Drill == nil || !b.Drill.Passed() || !b.Verified.Equal(at) || b.Drill.Rows != 1<<60 {
		t.Errorf("the newest record is %+v", b.Drill)
	}
	text, err := readObject(t.Context(), bucket, names[DrillPassed], maxRecord)
	if err != nil {
		t.Fatal(err)
	}
	for what, put := range map[string]struct{ name, text string }{
		"another time":   {testID.String() + verifiedSuffix + "1700000005000", string(text)},
		"another result": {names[DrillPassed], strings.Replace(string(text), "1152921504606846976", "1152921504606846975", 1)},
		"nothing":        {names[DrillPassed], ""},
		"another MAC":    {names[DrillPassed], string(text[:len(text)-6]) + "00\"\n}\n"},
		"too much":       {names[DrillPassed], string(text) + strings.Repeat(" ", maxRecord)},
	} {
		if err := bucket.Delete(t.Context(), names[DrillPassed]); err != nil {
			t.Fatal(err)
		}
		if err := bucket.Put(t.Context(), put.name, strings.NewReader(put.text), nil); err != nil {
			t.Fatal(err)
		}
		if b := find(t, bucket, testID.String()); b.Drill != nil || !b.Verified.IsZero() {
			t.Errorf("%s: counts: %+v", what, b.Drill)
		}
		if err := bucket.Delete(t.Context(), put.name); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody can make one without the key.
	nobody, err := OpenCatalog(bucket, nil, nil).Find(t.Context(), Ref{ID: testID.String()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nobody.AddRecord(t.Context(), &Record{}); err == nil {
		t.Error("a record without a key")
	}
}
