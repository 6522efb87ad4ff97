package dump

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/dump/script"
	"encdump/storage"
	"encdump/storage/storagetest"
)

// check is something that reads a backup and must not be deceived.
type check string

// All checks of the fault table, in the order of their columns.
var checks = []check{"metadata", "digest", "decode", "fetch", "restore"}

// blind lists, for each kind of fault, the checks that cannot see it by design.
// Where one of them does see it, or another does not, the table is wrong.
var blind = map[string][]check{
	// The metadata level compares names and sizes, and reads no content.
	"part, same size":  {"metadata"},
	"part, other size": nil,
	"sums, same size":  {"metadata"},
	"sums, other size": nil,
	// SQL that is read from the beginning to the end needs no index.
	"toc, same size":  {"metadata", "fetch", "restore"},
	"toc, other size": {"fetch", "restore"},
	// Who has the key can make an index that has the right digest; it must fit the stream when it is used.
	"toc by the owner of the key": {"metadata", "digest", "fetch", "restore"},
	"metadata":                    nil,
	"metadata by the owner":       nil,
	"another ID":                  nil,
	"key":                         nil,
	// Nothing of the backup is changed: what lies beside it is read by none of these.
	"beside": checks,
}

// fault is one row of the table.
type fault struct {
	kind, name string
	objects    map[string]string // the whole store
	ref        string            // ID of the backup that is read; empty: the golden one's
	keys       crypto.Keyring    // empty: the right one; nil is given as noKeys
}

// noKeys stands for a reader without keys.
var noKeys = crypto.Keyring{}

// faultTable makes the rows.
type faultTable struct {
	key, otherKey *crypto.Key
	sql           []byte
	id, otherID   string
	gold, other   map[string]string // a backup, and another one with the same key
	parts         []string          // names in gold
	frames        []int             // offsets in the stored stream at which frames begin
	rows          []fault
}

// randomDump is a dump of n bytes of COPY data that hardly compress.
func randomDump(seed byte, n int) []byte {
	var b bytes.Buffer
	b.WriteString("--\n-- PostgreSQL database cluster dump\n--\n\n\\connect postgres\n\nCOPY public.t (x) FROM stdin;\n")
	random := rand.NewChaCha8([32]byte{seed})
	row := make([]byte, 100)
	for ; n > 0; n -= len(row) {
		random.Read(row)
		for i := range row {
			row[i] |= 0x80 // no control character, backslash or dollar
		}
		row[len(row)-1] = '\n'
		b.Write(row)
	}
	b.WriteString("\\.\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n")
	return b.Bytes()
}

// backUpFault makes a backup and returns its ID and objects.
func backUpFault(t testing.TB, sql []byte, key *crypto.Key) (string, map[string]string) {
	t.Helper()
	b := storagetest.Mem()
	report, err := Create(t.Context(), &CreateOptions{
		Stores: []storage.Bucket{b}, Stdin: bytes.NewReader(sql), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11",
		Key:     func(context.Context, string, bool) (*crypto.Key, error) { return key, nil },
		Archive: archive.WriterOptions{Jobs: 2, PartSize: 3_000_000},
	})
	if err != nil {
		t.Fatal(err)
	}
	return report.Metadata.BackupID, objectsOf(t, b)
}

func storeOf(t testing.TB, objects map[string]string) storage.Bucket {
	t.Helper()
	b := storagetest.Mem()
	for name, data := range objects {
		if err := b.Put(t.Context(), name, strings.NewReader(data), nil); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (f *faultTable) add(kind, name string, objects map[string]string) {
	f.rows = append(f.rows, fault{kind: kind, name: name, objects: objects})
}

// put is a row with one object changed.
func (f *faultTable) put(what, object, data string) {
	all := maps.Clone(f.gold)
	all[object] = data
	f.add(f.kindOf(object, len(data) == len(f.gold[object])), what+" "+f.short(object), all)
}

// kindOf tells the kind of a fault in an object.
func (f *faultTable) kindOf(object string, sameSize bool) string {
	kind := map[string]string{".toc": "toc", ".sums": "sums", ".json": "metadata"}[filepath.Ext(object)]
	switch {
	case kind == "metadata":
		return kind
	case kind == "":
		kind = "part"
	}
	if sameSize {
		return kind + ", same size"
	}
	return kind + ", other size"
}

func (f *faultTable) short(object string) string { return strings.ReplaceAll(object, f.id, "ID") }

// all returns the names of the objects in order.
func (f *faultTable) all() []string { return slices.Sorted(maps.Keys(f.gold)) }

// stream returns the offset in the stored stream of a part, and 0 for other objects.
func (f *faultTable) offset(object string) (n int) {
	for _, p := range f.parts {
		if p == object {
			return n
		}
		n += len(f.gold[p])
	}
	return 0
}

// within returns the places of an object where something ends or begins: itself, cipher blocks, segments, frames.
func (f *faultTable) within(object string) []int {
	n := len(f.gold[object])
	at := []int{0, 8, 16, 32, n / 4 / 16 * 16, n / 2 / 16 * 16, n - 32, n - 16, n}
	if slices.Contains(f.parts, object) {
		from := f.offset(object)
		for s := archive.SegmentSize; s < from+n; s += archive.SegmentSize {
			at = append(at, s-from)
		}
		frames := 0
		for _, frame := range f.frames {
			if frame > from && frame < from+n && frames < 2 {
				at = append(at, frame-from)
				frames++
			}
		}
	}
	at = slices.DeleteFunc(at, func(i int) bool { return i < 0 || i > n })
	slices.Sort(at)
	return slices.Compact(at)
}

func flipped(data string, at int, mask byte) string {
	b := []byte(data)
	b[at] ^= mask
	return string(b)
}

// bytes changes single bits and overwrites blocks, everywhere.
func (f *faultTable) bytes() {
	for _, object := range f.all() {
		data := f.gold[object]
		seen := map[int]bool{}
		for _, border := range f.within(object) {
			for i, at := range []int{border - 1, border} {
				if at < 0 || at >= len(data) || seen[at] {
					continue
				}
				seen[at] = true
				f.put(fmt.Sprintf("bit at %d of", at), object, flipped(data, at, []byte{1, 0x80}[i]))
			}
		}
		middle := len(data) / 2 / 16 * 16
		f.put("zeros in", object, data[:middle]+strings.Repeat("\x00", 16)+data[middle+16:])
		f.put("block doubled in", object, data[:middle]+data[middle-16:middle]+data[middle+16:])
		f.put("blocks swapped in", object, data[:middle-16]+data[middle:middle+16]+data[middle-16:middle]+data[middle+16:])
	}
}

// sizes cuts, lengthens, empties and loses objects.
func (f *faultTable) sizes() {
	for _, object := range f.all() {
		data := f.gold[object]
		for _, border := range f.within(object) {
			for _, at := range []int{border - 1, border, border + 1} {
				if at >= 0 && at < len(data) {
					f.put(fmt.Sprintf("cut to %d:", at), object, data[:at])
				}
			}
		}
		middle := len(data) / 2 / 16 * 16
		f.put("block lost from", object, data[:middle]+data[middle+16:])
		f.put("block put into", object, data[:middle]+data[:16]+data[middle:])
		f.put("first byte lost from", object, data[1:])
		f.put("byte in front of", object, "\x00"+data)
		for name, more := range map[string]string{
			"byte": "\n", "block": strings.Repeat("\x10", 16), "megabyte": strings.Repeat("\x00", 1<<20), "itself": data,
		} {
			f.put(name+" behind", object, data+more)
		}
		all := maps.Clone(f.gold)
		delete(all, object)
		f.add(f.kindOf(object, false), "missing "+f.short(object), all)
	}
}

// order swaps what is right in itself.
func (f *faultTable) order() {
	swap := func(a, b string) {
		all := maps.Clone(f.gold)
		all[a], all[b] = all[b], all[a]
		f.add(f.kindOf(a, len(all[a]) == len(all[b])), "swapped "+f.short(a)+" and "+f.short(b), all)
	}
	for i, a := range f.parts {
		for _, b := range f.parts[i+1:] {
			swap(a, b)
		}
		f.put("doubled into", f.parts[(i+1)%len(f.parts)], f.gold[a])
		f.put("whole stream as", a, f.streamOf(f.gold))
		for _, name := range []string{fmt.Sprintf("-%d", len(f.parts)+i), fmt.Sprintf("-0%d", i), fmt.Sprintf("-%d", 1000+i), ""} {
			if name != "" || i == 0 {
				all := maps.Clone(f.gold)
				all[f.id+name] = f.gold[a]
				f.add("part, other size", "copy of "+f.short(a)+" as ID"+name, all)
			}
		}
	}
	swap(f.id+".sums", f.id+".toc")
	stream := f.streamOf(f.gold)
	// Segments and frames in another order, in parts of the right size.
	for name, at := range map[string][3]int{
		"segments swapped": {0, archive.SegmentSize, 2 * archive.SegmentSize},
		"blocks swapped":   {16, 32, 48},
		"frames swapped":   {f.frames[0], f.frames[1], f.frames[2]},
	} {
		f.streamed(name, stream[:at[0]]+stream[at[1]:at[2]]+stream[at[0]:at[1]]+stream[at[2]:])
	}
	f.streamed("turned by a block", stream[16:]+stream[:16])
	f.streamed("turned by a segment", stream[archive.SegmentSize:]+stream[:archive.SegmentSize])
	other := f.streamOf(f.other)
	f.streamed("spliced with another backup", stream[:archive.SegmentSize]+other[archive.SegmentSize:min(len(stream), len(other))]+stream[min(len(stream), len(other)):])
}

func (f *faultTable) streamOf(objects map[string]string) string {
	var b strings.Builder
	for i := 0; ; i++ {
		for name, data := range objects {
			if strings.HasSuffix(name, fmt.Sprintf("-%d", i)) {
				b.WriteString(data)
			}
		}
		if i == len(f.parts) {
			return b.String()
		}
	}
}

// streamed is a row whose stream is another one of the same length.
func (f *faultTable) streamed(name, stream string) {
	all := maps.Clone(f.gold)
	for _, p := range f.parts {
		n := len(f.gold[p])
		all[p], stream = stream[:n], stream[n:]
	}
	f.add("part, same size", name, all)
}

// foreign takes objects of other backups, and replays this one's under other names.
func (f *faultTable) foreign(t *testing.T) {
	for _, object := range f.all() {
		f.put("of another backup:", object, f.other[strings.Replace(object, f.id, f.otherID, 1)])
	}
	renamed := func(objects map[string]string, from, to string, but ...string) map[string]string {
		out := maps.Clone(f.gold)
		for name, data := range objects {
			if suffix := strings.TrimPrefix(name, from); !slices.Contains(but, suffix) {
				out[to+suffix] = data
			}
		}
		return out
	}
	f.add("metadata", "all of another backup", renamed(f.other, f.otherID, f.id))
	f.add("sums, other size", "all of another backup but metadata", renamed(f.other, f.otherID, f.id, ".json"))
	if len(f.other[f.otherID+".sums"]) == len(f.gold[f.id+".sums"]) {
		f.rows[len(f.rows)-1].kind = "sums, same size"
		for suffix := range map[string]bool{"-0": true, "-1": true, "-2": true, ".toc": true} {
			if len(f.other[f.otherID+suffix]) != len(f.gold[f.id+suffix]) {
				f.rows[len(f.rows)-1].kind = "sums, other size"
			}
		}
	}
	f.add("metadata", "metadata of another backup with all it lists", renamed(f.other, f.otherID, f.otherID))
	f.rows[len(f.rows)-1].objects[f.id+".json"] = f.other[f.otherID+".json"]

	// Yesterday's backup as that of today.
	guid := f.id[:36]
	for name, ms := range map[string]int64{"newer": 4_000_000_000_000, "older": 1_000_000_000_000} {
		id := fmt.Sprintf("%s-%d", guid, ms)
		f.rows = append(f.rows, fault{kind: "another ID", name: "replayed as a " + name + " one", objects: renamed(f.gold, f.id, id), ref: id})
	}
	id := "b6f4c071-ef44-4af2-9608-531b4ce4823f" + f.id[36:]
	f.rows = append(f.rows, fault{kind: "another ID", name: "replayed as one of another cluster", objects: renamed(f.gold, f.id, id), ref: id})

	// Keys.
	otherID, otherKeys := backUpFault(t, f.sql, f.otherKey)
	for _, suffix := range []string{"-0", "-1", "-2", ".toc", ".sums", ".json"} {
		f.put("under another key:", f.id+suffix, otherKeys[otherID+suffix])
	}
	f.rows = append(
		f.rows,
		fault{kind: "key", name: "wrong key", objects: f.gold, keys: crypto.Keyring{f.otherKey}},
		fault{kind: "key", name: "no key", objects: f.gold, keys: noKeys},
		fault{kind: "key", name: "made with a key that is not at hand", objects: otherKeys, ref: otherID},
		fault{kind: "key", name: "metadata of a thief's key", objects: with(f.gold, f.id+".json", resigned(f.gold[f.id+".json"], f.otherKey))},
		fault{kind: "key", name: "metadata and key ID of a thief", objects: with(f.gold, f.id+".json", resigned(strings.Replace(f.gold[f.id+".json"], f.key.ID(), f.otherKey.ID(), 1), f.otherKey))},
		fault{kind: "key", name: "key ID of a thief, both keys at hand", keys: crypto.Keyring{f.key, f.otherKey}, objects: with(f.gold, f.id+".json", strings.Replace(f.gold[f.id+".json"], f.key.ID(), f.otherKey.ID(), 1))},
	)

	// What nobody needs.
	for name, data := range map[string]string{
		".incomplete": "", ".sig": "x", ".verified-1": "{}", ".verified-4000000000000": `{"result": "passed"}`, ".bak": f.gold[f.id+".json"],
	} {
		f.add("beside", "ID"+name, with(f.gold, f.id+name, data))
	}
	f.add("beside", "another backup", renamed(f.other, f.otherID, f.otherID))
}

func with(objects map[string]string, name, data string) map[string]string {
	all := maps.Clone(objects)
	all[name] = data
	return all
}

var saltOfMetadata = regexp.MustCompile(`"salt": "([0-9a-f]{16})"`)

const macMember = `"mac": "`

// resigned gives metadata a MAC that is right under the key.
func resigned(text string, key *crypto.Key) string {
	text = text[:strings.LastIndex(text, macMember)+len(macMember)]
	salt, err := hex.DecodeString(saltOfMetadata.FindStringSubmatch(text)[1])
	if err != nil {
		panic(err)
	}
	mac := key.MetadataMAC(salt)
	io.WriteString(mac, text)
	return text + hex.EncodeToString(mac.Sum(nil)) + "\"\n}\n"
}

// hostile returns texts that a store may answer with instead of metadata. Of those under true not even the MAC makes
// anything of; the others have ends that a MAC would mend.
func (f *faultTable) hostile() map[bool]map[string]string {
	text := f.gold[f.id+".json"]
	part := f.id + "-0"
	size := fmt.Sprintf(`"size": %d`, len(f.gold[part]))
	stored := fmt.Sprintf(`"stored": %d`, len(f.streamOf(f.gold)))
	replace := func(old, new string) string {
		if !strings.Contains(text, old) {
			panic("metadata have no " + old)
		}
		return strings.Replace(text, old, new, 1)
	}
	member := func(s string) string { return replace(`"parts": [`, s+`, "parts": [`) }
	named := func(name string) string { b, _ := json.Marshal(name); return replace(`"`+part+`"`, string(b)) }
	mac := text[strings.LastIndex(text, macMember)+len(macMember):][:64]
	lies := map[string]string{}
	for i, name := range []string{
		"../" + part, "../../../etc/passwd", "/etc/passwd", part + "/../x", ".", "", "-", f.id + "-1", f.id + "-00", f.id + ".json", f.id, f.otherID + "-0",
		part + "\x00", part + "\n", "\u202e" + part, strings.Repeat("x", 1<<20), "C:\\x", "https://example.com/" + part, "$(touch x)",
	} {
		lies[fmt.Sprintf("name %d of a part", i)] = named(name)
	}
	for _, n := range []string{"-1", "0", "1", "1e18", "1000000000000000000", "9223372036854775807", "9223372036854775808", "9007199254740993", "1.5", `"7"`, "null", "true", "[]"} {
		lies["part of size "+n] = replace(size, `"size": `+n)
		lies["stored "+n] = replace(stored, `"stored": `+n)
	}
	for name, s := range map[string]string{
		"nested arrays": `"x": ` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000), "nested objects": `"x": ` + strings.Repeat(`{"x":`, 5000) + "1" + strings.Repeat("}", 5000),
		"nested a little": `"x": ` + strings.Repeat("[", 40) + strings.Repeat("]", 40), "version twice": `"version": 1`, "parts twice": `"parts": []`, "Parts": `"Parts": []`,
		"PARTS": `"PARTS": []`, "Mac": `"Mac": ""`, "mac in the middle": macMember + mac + `"`, "escaped parts": `"\u0070arts": []`, "Version": `"Version": 2`, "folded": `"ſums": 1`,
	} {
		lies[name] = member(s)
	}
	for name, s := range map[string][2]string{
		"version 2": {`"version": 1`, `"version": 2`}, "version 1.0": {`"version": 1`, `"version": 1.0`}, "version of 2^64+1": {`"version": 1`, `"version": 18446744073709551617`},
		"null cipher": {`"aes-256-cbc"`, `"null"`}, "unknown status": {`"done"`, `"running"`}, "10^12 rounds": {`"iterations": 1`, `"iterations": 1000000000000`},
		"0 rounds": {`"iterations": 1`, `"iterations": 0`}, "segments of 1 byte": {`"segment_size": 4194304`, `"segment_size": 1`}, "segments of 2^62": {`"segment_size": 4194304`, `"segment_size": 4611686018427387904`},
		"no parts": {`"parts": [`, `"parts": [], "old": [`}, "parts that are no list": {`"parts": [`, `"parts": {"length": 1e18}, "old": [`}, "path for sums": {f.id + `.sums"`, `../` + f.id + `.sums"`},
		"path for toc": {f.id + `.toc"`, `/` + f.id + `.toc"`},
	} {
		lies[name] = replace(s[0], s[1])
	}
	var many strings.Builder
	for i := range 250_000 {
		fmt.Fprintf(&many, `{"name": "%s-%d", "size": 16, "sha256": "%064d"},`, f.id, i, 0)
	}
	lies["250,000 parts"] = replace(`"parts": [`, `"parts": [`+many.String())
	return map[bool]map[string]string{true: lies, false: {
		"100 MB of spaces": strings.Repeat(" ", 100<<20) + text, "60 MB of spaces": strings.Repeat(" ", 60<<20) + text, "spaces before the MAC": replace(macMember, strings.Repeat(" ", 1<<20)+macMember),
		"open arrays": strings.Repeat("[", 10<<20), "open objects": strings.Repeat(`{"version":`, 1<<20), "a long string": `{"version": 1, "x": "` + strings.Repeat("x", 10<<20), "a long number": `{"version": 1` + strings.Repeat("0", 1<<20) + "}",
		"two MACs": text[:len(text)-3] + ",\n  " + macMember + mac + "\"\n}\n", "twice": text + text, "something behind": text + "{}", "no MAC": text[:strings.LastIndex(text, ",")] + "\n}\n", "MAC of zeros": replace(mac, strings.Repeat("0", 64)),
		"MAC in upper case": replace(mac, strings.ToUpper(mac)), "short MAC": replace(mac, mac[:62]), "member behind the MAC": text[:len(text)-3] + ",\n  \"x\": 1\n}\n", "byte order mark": "\ufeff" + text, "null": "null", "empty object": "{}", "list": "[" + text + "]",
	}}
}

func (f *faultTable) metadata() {
	for signable, texts := range f.hostile() {
		for name, text := range texts {
			f.add("metadata", name, with(f.gold, f.id+".json", text))
			if signable {
				f.add("metadata by the owner", name+", with the right MAC", with(f.gold, f.id+".json", resigned(text, f.key)))
			}
		}
	}
}

// tocs has indexes that only the owner of the key can make, as by a fault of a program.
func (f *faultTable) tocs(t *testing.T) {
	open := func(objects map[string]string, id string) (toc map[string]any) {
		if err := json.Unmarshal(f.tocText(t, objects, id), &toc); err != nil {
			t.Fatal(err)
		}
		return toc
	}
	own := open(f.gold, f.id)
	at := float64(crypto.HeaderSize)
	for _, frame := range own["frames"].([]any) {
		f.frames = append(f.frames, int(at))
		at += frame.([]any)[1].(float64)
	}
	rollback := open(f.other, f.otherID)
	f.owned(t, "rolled back", rollback)
	for name, change := range map[string]func(toc map[string]any){
		"no frames":         func(toc map[string]any) { toc["frames"] = []any{} },
		"a frame too many":  func(toc map[string]any) { toc["frames"] = append(toc["frames"].([]any), []any{1, 100}) },
		"a negative frame":  func(toc map[string]any) { toc["frames"] = append(toc["frames"].([]any), []any{-1, 100}) },
		"a frame of 10^18":  func(toc map[string]any) { toc["frames"] = []any{[]any{1e18, 1e18}} },
		"version 2":         func(toc map[string]any) { toc["version"] = 2 },
		"of another backup": func(toc map[string]any) { toc["backup_id"] = f.otherID },
	} {
		toc := maps.Clone(own)
		change(toc)
		f.owned(t, name, toc)
	}
}

func digestOf(data string) string {
	sum := sha256.Sum256([]byte(data))
	return hex.EncodeToString(sum[:])
}

// owned is a row with an index that is encrypted and described as it should be.
func (f *faultTable) owned(t *testing.T, name string, toc map[string]any) {
	text, err := json.Marshal(toc)
	if err != nil {
		t.Fatal(err)
	}
	f.add("toc by the owner of the key", "toc: "+name, f.withTOC(t, text))
}

// tocText is what an index holds.
func (f *faultTable) tocText(t testing.TB, objects map[string]string, id string) []byte {
	r, err := crypto.NewReader(strings.NewReader(objects[id+".toc"]), f.key.Passphrase(), nil)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// withTOC returns the backup with another index.
func (f *faultTable) withTOC(t testing.TB, toc []byte) map[string]string {
	var b bytes.Buffer
	w, err := crypto.NewWriter(&b, f.key.Passphrase(), nil)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(w)
	_, err = z.Write(toc)
	if err := errors.Join(err, z.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	all := with(f.gold, f.id+".toc", b.String())
	old := f.gold[f.id+".toc"]
	text := f.gold[f.id+".json"]
	for before, after := range map[string]string{
		fmt.Sprintf(`"size": %d`, len(old)): fmt.Sprintf(`"size": %d`, b.Len()), digestOf(old): digestOf(b.String()),
	} {
		if strings.Count(text, before) != 1 {
			t.Fatalf("metadata have %q not once", before)
		}
		text = strings.Replace(text, before, after, 1)
	}
	all[f.id+".json"] = resigned(text, f.key)
	return all
}

// FuzzTOC reads a backup by an index that is what the owner of the key, or a fault of a program, made of it: all of it, one
// table, and its contents. The index is trusted, so that other rows may come, but there is an end to it.
func FuzzTOC(fz *testing.F) {
	f := &faultTable{key: crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for this test")), "test"), sql: randomDump(1, 100_000)}
	f.id, f.gold = backUpFault(fz, f.sql, f.key)
	own := string(f.tocText(fz, f.gold, f.id))
	fz.Add([]byte(own))
	for _, n := range []string{"-1", "1e30", "99999999999", "null", "[]", `"x"`} {
		for _, name := range []string{"offset", "length", "rows", "version"} {
			fz.Add([]byte(regexp.MustCompile(`"`+name+`":[0-9]+`).ReplaceAllString(own, `"`+name+`":`+n)))
		}
	}
	fz.Fuzz(func(t *testing.T, text []byte) {
		b, err := archive.OpenCatalog(storeOf(t, f.withTOC(t, text)), crypto.Keyring{f.key}, nil).Find(t.Context(), archive.Ref{ID: f.id})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.TOC(t.Context()); err != nil {
			return
		}
		read := archive.ReadOptions{Jobs: 1, Connections: 1}
		Verify(t.Context(), b, &VerifyOptions{Level: "decode", Read: read})
		for _, sel := range []script.Selection{{Tables: []script.TableName{{Table: "t"}}}, {SchemaOnly: true}, {DataOnly: true, Databases: []string{"postgres"}}} {
			Select(t.Context(), b, io.Discard, &sel, read, nil)
		}
	})
}

// TestFaultTable damages and attacks a backup in memory in every way that loops can think of. Each check sees each fault,
// but for what it is blind to by design; whatever it says, no wrong byte comes out.
func TestFaultTable(t *testing.T) {
	f := &faultTable{
		key:      crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for this test")), "test"),
		otherKey: crypto.NewKey(crypto.NewPassphrase([]byte("another passphrase altogether")), "other"),
		sql:      randomDump(1, 8_800_000),
	}
	f.id, f.gold = backUpFault(t, f.sql, f.key)
	f.otherID, f.other = backUpFault(t, randomDump(2, 8_800_000), f.key)
	for i := range len(f.gold) - 3 {
		f.parts = append(f.parts, fmt.Sprintf("%s-%d", f.id, i))
	}
	if len(f.parts) != 3 || f.offset(f.parts[2]) < archive.SegmentSize {
		t.Fatalf("%d parts", len(f.parts))
	}
	f.add("beside", "nothing", f.gold) // that the checks can pass
	f.tocs(t)
	f.bytes()
	f.sizes()
	f.order()
	f.foreign(t)
	f.metadata()

	var seen, passed, prefixes atomic.Int64
	kinds := map[string]int{}
	start := time.Now()
	t.Run("rows", func(t *testing.T) {
		for _, row := range f.rows {
			if _, ok := blind[row.kind]; !ok {
				t.Fatalf("kind %q is not in the list", row.kind)
			}
			kinds[row.kind]++
			t.Run(row.kind+": "+row.name, func(t *testing.T) {
				t.Parallel()
				s, p := f.run(t, row)
				seen.Add(int64(s))
				passed.Add(int64(len(checks) - s))
				prefixes.Add(int64(p))
			})
		}
	})
	for kind := range blind {
		if kinds[kind] == 0 {
			t.Errorf("no fault of kind %q", kind)
		}
	}
	if len(f.rows) < 200 {
		t.Errorf("only %d faults", len(f.rows))
	}
	t.Logf("kinds: %v", kinds)
	if !t.Failed() {
		fmt.Printf("fault table: %d faults of %d kinds, %d checks: %d saw the fault, %d passed as the list of exceptions says; 0 wrong bytes (%d restores ended a prefix so that psql fails), in %v\n",
			len(f.rows), len(kinds), len(f.rows)*len(checks), seen.Load(), passed.Load(), prefixes.Load(), time.Since(start).Round(time.Second/10))
	}
}

// endless answers every reading of metadata with spaces that do not end.
type endless struct {
	storage.Bucket
	read int64
}

func (e *endless) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if !strings.HasSuffix(key, ".json") {
		return e.Bucket.Open(ctx, key, offset, length)
	}
	return io.NopCloser(e), nil
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read += int64(len(p))
	return len(p), nil
}

// TestHostileMemory counts what is allocated for metadata that a store made up, with and without a MAC, garbage included.
func TestHostileMemory(t *testing.T) {
	f := &faultTable{key: crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for this test")), "test"), sql: randomDump(1, 100_000)}
	f.id, f.gold = backUpFault(t, f.sql, f.key)
	f.otherID = "5" + f.id[1:]
	f.metadata()
	toc := fmt.Sprintf(`"size": %d`, len(f.gold[f.id+".toc"]))
	for _, n := range []string{"1000000000000", "9223372036854775807"} {
		text := strings.Replace(f.gold[f.id+".json"], toc, `"size": `+n, 1)
		f.add("metadata", "toc of "+n, with(f.gold, f.id+".json", text))
		f.add("metadata by the owner", "toc of "+n, with(f.gold, f.id+".json", resigned(text, f.key)))
	}
	allocated := func(name string, b storage.Bucket, keys crypto.Keyring) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		b1, err := archive.OpenCatalog(b, keys, nil).Find(t.Context(), archive.Ref{ID: f.id})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := Verify(t.Context(), b1, &VerifyOptions{Level: "digest", Read: archive.ReadOptions{Jobs: 1, Connections: 1}}); err == nil && r.OK() && r.Authenticated {
			t.Errorf("%s: passed", name)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	for _, row := range f.rows {
		b := storeOf(t, row.objects)
		size := uint64(len(row.objects[f.id+".json"]))
		for _, keys := range []crypto.Keyring{{f.key}, nil} {
			if n := allocated(row.name, b, keys); n > 32<<20+16*size {
				t.Errorf("%s, %s: %d bytes allocated for %d", row.kind, row.name, n, size)
			}
		}
	}
	e := &endless{Bucket: storeOf(t, f.gold)}
	if n := allocated("endless", e, crypto.Keyring{f.key}); n > 512<<20 || e.read > 128<<20 {
		t.Errorf("%d bytes allocated, %d read, of metadata without end", n, e.read)
	}
}

// run has all checks look at a row. It returns how many saw the fault, and how many wrote the beginning of the SQL.
func (f *faultTable) run(t *testing.T, row fault) (seen, prefixes int) {
	keys, ref := row.keys, row.ref
	if keys == nil {
		keys = crypto.Keyring{f.key}
	}
	if ref == "" {
		ref = f.id
	}
	bucket := storeOf(t, row.objects)
	read := archive.ReadOptions{Jobs: 2, Connections: 2}
	b, err := archive.OpenCatalog(bucket, keys, nil).Find(t.Context(), archive.Ref{ID: ref})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		saw := ""
		switch c {
		case "fetch":
			path := filepath.Join(t.TempDir(), "sql")
			if err := FetchSQL(t.Context(), b, path, read, nil); err != nil {
				saw = err.Error()
			}
			got, err := os.ReadFile(path)
			if (saw == "") != (err == nil) || err == nil && !bytes.Equal(got, f.sql) {
				t.Errorf("fetch left %d bytes, and not the SQL: %v; it said %q", len(got), err, saw)
			}
		case "restore":
			var out bytes.Buffer
			err := Restore(t.Context(), b, &out, read, nil)
			switch {
			case err == nil && !bytes.Equal(out.Bytes(), f.sql):
				t.Errorf("restore wrote %d bytes, and not the SQL", out.Len())
			case err != nil:
				saw = err.Error()
				if out.Len() > 0 {
					prefixes++
					f.wantEnding(t, out.Bytes())
				}
			}
		default:
			r, err := Verify(t.Context(), b, &VerifyOptions{Level: Level(c), Read: read})
			switch {
			case err != nil:
				saw = err.Error()
			case !r.OK():
				saw = fmt.Sprint(r.Damage)
			case !r.Authenticated:
				saw = "not authenticated"
			}
		}
		if saw != "" {
			seen++
		}
		if want := !slices.Contains(blind[row.kind], c); want != (saw != "") {
			t.Errorf("%s: saw %q, want it seen: %v", c, saw, want)
		}
	}
	return seen, prefixes
}

// wantEnding checks that out is the beginning of the SQL, in whole rows, and then what makes psql fail.
func (f *faultTable) wantEnding(t *testing.T, out []byte) {
	t.Helper()
	at := bytes.Index(out, []byte("\n"+strings.Repeat("\t", 1700)+"\n\\.\n"))
	if at < 0 || !bytes.HasPrefix(f.sql, out[:at]) || at > 0 && out[at-1] != '\n' {
		t.Fatalf("restore wrote %d bytes that are not the beginning of the SQL and an ending", len(out))
	}
	ending := string(out[at:])
	if !strings.Contains(ending, "\\set ON_ERROR_STOP on\nDO $dump$BEGIN RAISE EXCEPTION") || !strings.Contains(ending, "the restore failed") || !strings.HasSuffix(ending, ";\n") {
		t.Errorf("the ending does not make psql fail:\n%.3000s", ending)
	}
}
