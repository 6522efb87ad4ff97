package script

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
)

// Contents says what a dump holds and where.
type Contents struct {
	Databases []Database `json:"databases"`
}

// Database is what a dump holds of a database. A dump of one database that does
// not connect to it has one without name.
type Database struct {
	Name Name `json:"name"`
	// Encoding is that of CREATE DATABASE, empty where the dump has none for it.
	Encoding string `json:"encoding,omitempty"`
	// Range of all that belongs to the database: from the comment that begins its
	// dump, or its \connect if that comes first, to the next one's.
	Range
	Copies        []Copy         `json:"copies,omitempty"` // in order
	Sequences     []Sequence     `json:"sequences,omitempty"`
	LargeObjects  *LargeObjects  `json:"large_objects,omitempty"`
	Subscriptions []Subscription `json:"subscriptions,omitempty"`
}

// Copy is a block of COPY data. A table may have several.
type Copy struct {
	Schema  Name   `json:"schema"`
	Table   Name   `json:"table"`
	Columns []Name `json:"columns"`
	Block   Range  `json:"block"` // from COPY to the line that ends the data
	Data    Range  `json:"data"`  // the rows
	Rows    Number `json:"rows"`
	// Fingerprint is the sum modulo 2^64 of XXH64 (seed 0) of each row's bytes
	// without its newline; a carriage return before that counts.
	Fingerprint Fingerprint `json:"fingerprint"`
}

// Sequence is the state that a dump gives to a sequence.
type Sequence struct {
	Schema Name   `json:"schema"`
	Name   Name   `json:"name"`
	Value  Number `json:"value"`
	Called bool   `json:"called"` // the next value is the one after Value
}

// LargeObjects sums up the large objects that have contents or might have.
type LargeObjects struct {
	Objects Number `json:"objects"`
	Bytes   Number `json:"bytes"`
	// Fingerprint is that of a table with a row for each object: its OID in decimal,
	// a tab, and its contents as lower-case hex, which is what
	//
	//	COPY (SELECT oid, encode(lo_get(oid), 'hex') FROM pg_largeobject_metadata) TO STDOUT
	//
	// gives.
	Fingerprint Fingerprint `json:"fingerprint"`
}

// Subscription is one that a dump creates, without a connection.
type Subscription struct {
	Name Name `json:"name"`
}

// Range is a range of the plain script.
type Range struct {
	Offset Number `json:"offset"`
	Length Number `json:"length"`
}

// End is the offset behind the range.
func (r Range) End() int64 { return int64(r.Offset + r.Length) }

// Number is written to JSON as a string if it is over 2^53, where readers that
// take every number for a float lose digits.
type Number int64

const exact = 1 << 53

// MarshalJSON implements [json.Marshaler].
func (n Number) MarshalJSON() ([]byte, error) {
	b := strconv.AppendInt(nil, int64(n), 10)
	if n > exact || n < -exact {
		b = append(append([]byte{'"'}, b...), '"')
	}
	return b, nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (n *Number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseInt(string(bytes.Trim(b, `"`)), 10, 64)
	if err != nil {
		return fmt.Errorf("number %s: %w", b, err)
	}
	*n = Number(v)
	return nil
}

// Name is a name as the dump has it, in the dump's encoding. In JSON it is a
// string where it is UTF-8, otherwise {"base64": "…"}.
type Name string

type rawName struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON implements [json.Marshaler].
func (n Name) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(n)) {
		return json.Marshal(string(n))
	}
	return []byte(`{"base64":"` + base64.StdEncoding.EncodeToString([]byte(n)) + `"}`), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (n *Name) UnmarshalJSON(b []byte) error {
	if !bytes.HasPrefix(b, []byte("{")) {
		return json.Unmarshal(b, (*string)(n))
	}
	var raw rawName
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	*n = Name(raw.Base64)
	return nil
}

// Fingerprint is a sum over rows modulo 2^64: 16 hex digits as text.
type Fingerprint uint64

func (f Fingerprint) String() string { return fmt.Sprintf("%016x", uint64(f)) }

// MarshalText implements [encoding.TextMarshaler].
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (f *Fingerprint) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil || len(b) != 16 {
		return fmt.Errorf("fingerprint %q is not of 16 hex digits", b)
	}
	*f = Fingerprint(v)
	return nil
}

// Rows counts a run of rows and sums up their fingerprints. The last row may
// lack its newline.
func Rows(run []byte) (n int64, sum Fingerprint) {
	for len(run) > 0 {
		i := bytes.IndexByte(run, '\n')
		if i < 0 {
			i = len(run)
		}
		n++
		sum += Fingerprint(xxhash.Sum64(run[:i]))
		run = run[min(i+1, len(run)):]
	}
	return n, sum
}

// Gatherer gathers the contents of a dump from its items. The zero Gatherer is
// ready for the first one.
type Gatherer struct {
	// Defer, if set, may take runs of rows away from Add, which otherwise calls
	// [Rows] at once: it is called with an item of whole rows and the number of their
	// block, and returns true if it takes them. Who takes them gives to Counted what
	// Rows returned, before Contents is called. The text of such an item is valid as
	// said there.
	Defer func(block int, it Item) bool

	contents  Contents
	blocks    []place
	encodings map[string]string
	escapes   bool  // standard_conforming_strings is off
	section   int64 // where the dump of a database began whose \connect is still to come, or -1
	end       int64

	whole    bool // the item before was one to its end
	midRow   bool
	row      *xxhash.Digest // of the row under way
	objectOK bool           // a large object is open
	object   xxhash.Digest
}

// place is where a block's Copy is.
type place struct{ database, copy int }

// Add takes the next item.
func (g *Gatherer) Add(it Item) {
	g.end = it.Offset + int64(len(it.Text))
	if it.Offset == 0 {
		g.section, g.whole = -1, true
	}
	switch it.Kind {
	case Statement:
		if g.whole && !it.More {
			g.statement(it)
		}
	case Meta:
		if name, ok := ParseConnect(it.Text); ok {
			g.connect(name, it.Offset)
		}
	case Blank:
		g.comments(it)
	case CopyRows:
		g.rows(it)
	case CopyEnd:
		if b := g.block(); b != nil {
			b.Block.Length = Number(g.end) - b.Block.Offset
			g.endRow(b)
		}
	}
	g.whole = !it.More
}

// Counted adds rows that Defer has taken.
func (g *Gatherer) Counted(block int, rows int64, sum Fingerprint) {
	p := g.blocks[block]
	b := &g.contents.Databases[p.database].Copies[p.copy]
	b.Rows += Number(rows)
	b.Fingerprint += sum
}

// Contents returns what was gathered, when the last item was added.
func (g *Gatherer) Contents() *Contents {
	g.endRow(g.block())
	g.endDatabase(g.end)
	return &g.contents
}

// comments looks for the comments that pg_dumpall and pg_dump write at the
// beginning and at the end of a database.
func (g *Gatherer) comments(it Item) {
	rule := it.Offset // the line of two dashes above
	for line, at := range commentLines(it) {
		switch {
		case string(line) == "--":
			rule = at
		case string(line) == "-- PostgreSQL database dump",
			bytes.HasPrefix(line, []byte(`-- Database "`)) && bytes.HasSuffix(line, []byte(`" dump`)):
			if g.section < 0 {
				g.section = rule
			}
		case string(line) == "-- PostgreSQL database dump complete":
			g.section = -1
		}
	}
}

func (g *Gatherer) connect(name string, at int64) {
	dbs := g.contents.Databases
	if len(dbs) > 0 && string(dbs[len(dbs)-1].Name) == name {
		return
	}
	if g.section >= 0 {
		at = g.section
		g.section = -1
	}
	g.begin(name, at)
}

func (g *Gatherer) begin(name string, at int64) {
	g.endDatabase(at)
	g.contents.Databases = append(g.contents.Databases, Database{
		Name: Name(name), Encoding: g.encodings[name], Range: Range{Offset: Number(at)},
	})
}

func (g *Gatherer) endDatabase(at int64) {
	if n := len(g.contents.Databases); n > 0 {
		g.endObject()
		d := &g.contents.Databases[n-1]
		d.Length = Number(at) - d.Offset
	}
}

// database is the one that the script is connected to.
func (g *Gatherer) database() *Database {
	if len(g.contents.Databases) == 0 {
		g.begin("", max(g.section, 0))
	}
	return &g.contents.Databases[len(g.contents.Databases)-1]
}

// block is the last one.
func (g *Gatherer) block() *Copy {
	if len(g.blocks) == 0 {
		return nil
	}
	p := g.blocks[len(g.blocks)-1]
	return &g.contents.Databases[p.database].Copies[p.copy]
}

func (g *Gatherer) statement(it Item) {
	switch text := it.Text; {
	case bytes.HasPrefix(text, []byte("COPY ")):
		t, ok := ParseCopy(text)
		if !ok {
			return
		}
		c := Copy{Schema: Name(t.Schema), Table: Name(t.Table), Columns: []Name{}, Block: Range{Offset: Number(it.Offset)}}
		for _, name := range t.Columns {
			c.Columns = append(c.Columns, Name(name))
		}
		d := g.database()
		d.Copies = append(d.Copies, c)
		g.blocks = append(g.blocks, place{len(g.contents.Databases) - 1, len(d.Copies) - 1})
	case bytes.HasPrefix(text, []byte("SELECT pg_catalog.lo")):
		g.largeObject(text)
	case bytes.HasPrefix(text, []byte("SELECT pg_catalog.setval(")):
		g.sequence(text)
	case bytes.HasPrefix(text, []byte("SET standard_conforming_strings ")):
		_, value, _ := ParseSet(text)
		g.escapes = value == "off"
	case bytes.HasPrefix(text, []byte("CREATE DATABASE ")):
		g.createDatabase(text)
	case bytes.HasPrefix(text, []byte("CREATE SUBSCRIPTION ")):
		p := tokens{text: text[len("CREATE SUBSCRIPTION "):]}
		if name, ok := p.name(); ok {
			d := g.database()
			d.Subscriptions = append(d.Subscriptions, Subscription{Name(name)})
		}
	}
}

func (g *Gatherer) createDatabase(text []byte) {
	p := tokens{text: text[len("CREATE DATABASE "):]}
	name, ok := p.name()
	for ok {
		kind, v := p.next()
		if kind == 0 {
			return
		}
		if kind == 'w' && v == "encoding" {
			p.is("=")
			if kind, v = p.next(); kind == '\'' {
				if g.encodings == nil {
					g.encodings = map[string]string{}
				}
				g.encodings[name] = v
			}
			return
		}
	}
}

// sequence reads SELECT pg_catalog.setval('schema.name', value, called);
func (g *Gatherer) sequence(text []byte) {
	p := tokens{text: text[len("SELECT pg_catalog.setval("):], backslashes: g.escapes}
	kind, literal := p.next()
	if kind != '\'' || !p.is(",") {
		return
	}
	_, digits := p.next()
	value, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !p.is(",") {
		return
	}
	s := Sequence{Value: Number(value), Called: p.word("true")}
	n := tokens{text: []byte(literal)}
	name, ok := n.name()
	if ok && n.is(".") {
		s.Schema = Name(name)
		name, ok = n.name()
	}
	if !ok {
		return
	}
	s.Name = Name(name)
	d := g.database()
	d.Sequences = append(d.Sequences, s)
}

// largeObject reads the calls that pg_dump writes for the contents of a large
// object: lo_open('oid', mode), lowrite(0, '\x…') as often as needed, lo_close(0).
func (g *Gatherer) largeObject(text []byte) {
	call := text[len("SELECT pg_catalog."):]
	if args, ok := bytes.CutPrefix(call, []byte("lo_open(")); ok {
		g.endObject()
		p := tokens{text: args}
		_, oid := p.next()
		d := g.database()
		if d.LargeObjects == nil {
			d.LargeObjects = new(LargeObjects)
		}
		d.LargeObjects.Objects++
		g.objectOK = true
		g.object.Reset()
		g.object.WriteString(oid)
		g.object.WriteString("\t")
		return
	}
	args, ok := bytes.CutPrefix(call, []byte("lowrite("))
	if !ok {
		g.endObject()
		return
	}
	if _, hex, ok := bytes.Cut(args, []byte(`\x`)); ok && g.objectOK {
		if i := bytes.IndexByte(hex, '\''); i >= 0 {
			g.object.Write(hex[:i])
			g.database().LargeObjects.Bytes += Number(i / 2)
		}
	}
}

func (g *Gatherer) endObject() {
	if g.objectOK {
		g.objectOK = false
		g.database().LargeObjects.Fingerprint += Fingerprint(g.object.Sum64())
	}
}

// rows takes COPY data: runs of whole rows, and rows in pieces.
func (g *Gatherer) rows(it Item) {
	b := g.block()
	if b == nil || b.Block.Length > 0 {
		return // the data of a COPY that is not of a dump's form
	}
	if b.Data.Offset == 0 {
		b.Data.Offset = Number(it.Offset)
	}
	b.Data.Length = Number(g.end) - b.Data.Offset
	if g.midRow {
		i := bytes.IndexByte(it.Text, '\n')
		if i < 0 {
			g.row.Write(it.Text)
			return
		}
		g.row.Write(it.Text[:i])
		g.endRow(b)
		it.Text = it.Text[i+1:]
		it.Offset += int64(i + 1)
	}
	if it.More {
		if g.midRow = true; g.row == nil {
			g.row = xxhash.New()
		}
		g.row.Reset()
		g.row.Write(it.Text)
		return
	}
	if len(it.Text) == 0 || g.Defer != nil && g.Defer(len(g.blocks)-1, it) {
		return
	}
	n, sum := Rows(it.Text)
	b.Rows += Number(n)
	b.Fingerprint += sum
}

// endRow ends a row that came in pieces.
func (g *Gatherer) endRow(b *Copy) {
	if g.midRow {
		g.midRow = false
		b.Rows++
		b.Fingerprint += Fingerprint(g.row.Sum64())
	}
}
