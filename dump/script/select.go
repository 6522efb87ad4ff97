package script

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Selection says which parts of a script are wanted. The zero value wants all.
type Selection struct {
	// Databases are the only ones wanted, if there are any; ExcludeDatabases are not
	// wanted.
	Databases, ExcludeDatabases []string
	// Rename gives databases other names: old to new.
	Rename map[string]string
	// Tables are the only ones wanted, if there are any: tables, partitions, views,
	// materialized views, foreign tables or sequences. With one comes what is its
	// own: columns' defaults, sequences that its columns own, indexes, constraints,
	// triggers, rules, policies, statistics, comments, privileges, data. And there
	// come, since a table may need them, the database itself and those of its objects
	// that are of no table: schemas, extensions, types, functions, sequences that no
	// column owns, foreign servers and so on, but neither large objects,
	// publications, subscriptions, event triggers nor commands that drop one.
	//
	// A foreign key or a partition's place that refers to a table that is not wanted is left
	// out, and so is a function or a type that does; see [Selector.Skipped]. A wanted
	// view, rule or policy that refers to one stays, and psql fails at it.
	Tables []TableName
	// GlobalsOnly wants roles, tablespaces and what else is of no database;
	// NoGlobals wants none of it.
	GlobalsOnly, NoGlobals bool
	// SchemaOnly wants no data, DataOnly nothing but data.
	SchemaOnly, DataOnly bool
	// NoOwner leaves out who owns what, and NoPrivileges who may do what;
	// memberships of roles stay.
	NoOwner, NoPrivileges bool
	// KeepRoles creates and sets only roles that do not exist.
	KeepRoles bool
	// NoTablespaces leaves out tablespaces and what is put into them;
	// NoSubscriptions leaves out subscriptions.
	NoTablespaces, NoSubscriptions bool
}

// TableName is the name of a table. In a script of pg_dump the database may, and
// where the script does not name it must, be empty. Names are compared as bytes,
// in the encoding of the script.
type TableName struct{ Database, Schema, Table string }

func (t TableName) String() string {
	r := relation{t.Schema, t.Table}.String()
	if t.Database == "" {
		return r
	}
	return quoteName(t.Database) + "." + r
}

// ParseTableName reads database.schema.table, or schema.table. Parts may be in
// double quotes, and must be where they hold dots or quotes. No part is folded to
// lower case.
func ParseTableName(s string) (TableName, error) {
	var parts []string
	for rest := s; ; {
		part, after, ok := cutPart(rest)
		if !ok || part == "" || len(parts) == 3 {
			return TableName{}, fmt.Errorf("%q is not the name of a table: database.schema.table", s)
		}
		parts = append(parts, part)
		if after == "" {
			break
		}
		rest = after[1:]
	}
	switch len(parts) {
	case 2:
		return TableName{"", parts[0], parts[1]}, nil
	case 3:
		return TableName{parts[0], parts[1], parts[2]}, nil
	}
	return TableName{}, fmt.Errorf("%q is not the name of a table: database.schema.table", s)
}

// cutPart takes a part of a name; after is empty or begins with a dot.
func cutPart(s string) (part, after string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexByte(s, '.')
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:], !strings.Contains(s[:i], `"`)
	}
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			i++
			continue
		}
		after = s[i+1:]
		return strings.ReplaceAll(s[1:i], `""`, `"`), after, after == "" || after[0] == '.'
	}
	return "", "", false
}

// IsZero tells whether all is wanted, as it is.
func (s *Selection) IsZero() bool {
	return len(s.Databases) == 0 && len(s.ExcludeDatabases) == 0 && len(s.Rename) == 0 && len(s.Tables) == 0 &&
		!s.GlobalsOnly && !s.NoGlobals && !s.SchemaOnly && !s.DataOnly && !s.NoOwner && !s.NoPrivileges &&
		!s.KeepRoles && !s.NoTablespaces && !s.NoSubscriptions
}

// Check finds contradictions.
func (s *Selection) Check() error {
	switch {
	case s.GlobalsOnly && s.NoGlobals:
		return errors.New("globals only and no globals leave nothing")
	case s.SchemaOnly && s.DataOnly:
		return errors.New("schema only and data only leave nothing")
	case s.GlobalsOnly && s.DataOnly:
		return errors.New("globals have no data")
	case s.GlobalsOnly && (len(s.Databases) > 0 || len(s.Tables) > 0 || len(s.Rename) > 0):
		return errors.New("globals only contradicts a choice of databases or tables")
	}
	for _, d := range s.Databases {
		if slices.Contains(s.ExcludeDatabases, d) {
			return fmt.Errorf("database %q is both chosen and excluded", d)
		}
		if len(s.Tables) > 0 && !s.wants(d, true) {
			return fmt.Errorf("database %q is chosen, but tables only of others", d)
		}
	}
	for _, t := range s.Tables {
		if t.Database != "" && !s.chosen(t.Database) {
			return fmt.Errorf("table %s is of a database that is not chosen", t)
		}
	}
	from := map[string]string{}
	for _, old := range slices.Sorted(maps.Keys(s.Rename)) {
		name := s.Rename[old]
		if name == "" || len(name) > 63 || strings.ContainsAny(name, "\x00\r\n") {
			return fmt.Errorf("%q cannot be the name of a database", name)
		}
		if other, ok := from[name]; ok {
			return fmt.Errorf("databases %q and %q cannot both become %q", other, old, name)
		}
		from[name] = old
		if !s.wants(old, true) {
			return fmt.Errorf("database %q has a new name, but is not chosen", old)
		}
	}
	return nil
}

// chosen tells whether a database is wanted as far as databases are named.
func (s *Selection) chosen(database string) bool {
	return (len(s.Databases) == 0 || slices.Contains(s.Databases, database)) &&
		!slices.Contains(s.ExcludeDatabases, database) && !s.GlobalsOnly
}

// wants tells whether anything of a database is wanted. Tables without database
// are of the only one of a script of pg_dump.
func (s *Selection) wants(database string, single bool) bool {
	return s.chosen(database) && (len(s.Tables) == 0 ||
		slices.ContainsFunc(s.Tables, func(t TableName) bool { return t.in(database, single) }))
}

func (t TableName) in(database string, single bool) bool {
	return t.Database == database || t.Database == "" && single
}

// maxHeld bounds the comments that are held until a statement follows.
const maxHeld = 1 << 20

// Selector passes on the wanted parts of a script, in one pass. Statements that
// are no longer than the scanner's pieces are decided and changed as a whole,
// longer ones are decided by their first piece.
type Selector struct {
	sel     Selection
	all     bool
	emit    func([]byte) error
	err     error
	cluster bool // a script of pg_dumpall

	// section is what the script is at: the globals, or the head of a script of one
	// database, or a database.
	section struct {
		database string
		inside   bool // in a database
		pass     bool // wanted
		begun    bool // it is known that another one has begun
		pending  bool // of a database whose name is still to come
	}
	schema string            // of names without one
	names  map[string]string // of databases, as they are written, to those in the script
	made   map[string]bool   // databases with a CREATE DATABASE
	key    string            // of \restrict, where that passed and \unrestrict did not yet

	keep, more bool   // the last statement or command is wanted; it goes on
	line       bool   // the rest of its line is still to come
	held       []byte // comments and the like before a statement
	wait       waiting

	tables  *tables
	misses  []*miss
	skipped []string
}

// waiting is a statement that others decide on.
type waiting struct {
	kind string // "sequence", "role", or empty
	name relation
	text []byte
	sql  []byte // CREATE ROLE
}

// NewSelector makes a selector that calls emit with text that is wanted. The
// text is valid until emit returns. The selection is one that passes Check.
func NewSelector(s *Selection, emit func(text []byte) error) *Selector {
	sel := &Selector{sel: *s, all: s.IsZero(), emit: emit, names: map[string]string{}, made: map[string]bool{}}
	sel.section.pass = true
	sel.expect()
	return sel
}

// WantsData tells, after a COPY statement, whether its rows are wanted. Where
// they are not, they may be left out: the next item is then the end of the data.
func (s *Selector) WantsData() bool { return s.all || s.keep }

// Skipped describes what was left out although its kind is wanted, because it
// refers to a table that is not.
func (s *Selector) Skipped() []string { return s.skipped }

// Item takes the next item.
func (s *Selector) Item(it Item) error {
	switch {
	case s.err != nil:
	case s.all:
		s.write(it.Text)
	case it.Kind == Blank:
		s.blank(it.Text)
	case it.Kind == CopyRows || it.Kind == CopyEnd:
		if s.keep {
			s.write(it.Text)
		}
	default:
		if s.more {
			if s.keep {
				s.write(it.Text)
			}
		} else if it.Kind == Meta {
			s.meta(it)
		} else {
			s.statement(it)
		}
		s.more, s.line = it.More, it.Kind == Statement
	}
	return s.err
}

// Close ends the script. The error is or joins a [*NameError] for each name of
// the selection that was not met.
func (s *Selector) Close() error {
	if s.err != nil {
		return s.err
	}
	s.resolve()
	if s.section.pass {
		s.flush()
	}
	if s.err != nil {
		return s.err
	}
	s.err = errClosed
	return s.missed()
}

func (s *Selector) write(text []byte) {
	if s.err == nil && len(text) > 0 {
		s.err = s.emit(text)
	}
}

// flush writes what was held.
func (s *Selector) flush() {
	s.write(s.held)
	s.held = s.held[:0]
}

// put writes what was held and a text, or keeps both with a sequence that waits.
func (s *Selector) put(text []byte) {
	if s.wait.kind == "sequence" {
		s.wait.text = append(append(s.wait.text, s.held...), text...)
		s.held = s.held[:0]
		return
	}
	s.flush()
	s.write(text)
}

// blank takes white space and comments. The first line ends what stands before.
func (s *Selector) blank(text []byte) {
	if s.line && s.wait.kind != "role" && !s.section.pending {
		i := bytes.IndexByte(text, '\n') + 1
		if i == 0 {
			i = len(text)
		}
		if s.keep {
			s.put(text[:i])
		}
		text = text[i:]
	}
	s.line = false
	for len(text) > 0 {
		block := text[:blockLen(text)]
		text = text[len(block):]
		s.block(block)
	}
	if len(s.held) > maxHeld {
		if s.resolve(); s.section.pass {
			s.flush()
		}
		s.held = nil
	}
}

// blockLen is the length of the first lines of comment with the empty lines
// behind them.
func blockLen(text []byte) (n int) {
	ended := false
	for line := range bytes.Lines(text) {
		comment := bytes.HasPrefix(line, []byte("--"))
		if comment && ended {
			break
		}
		ended = !comment
		n += len(line)
	}
	return n
}

// entry is in the comment before each entry of pg_dump's table of contents.
var entry = []byte("Name: ")

// block takes comments that stand together.
func (s *Selector) block(text []byte) {
	for line := range commentLines(Item{Text: text}) {
		name, database := bytes.CutPrefix(line, []byte(`-- Database "`))
		switch {
		case database && bytes.HasSuffix(name, []byte(`" dump`)):
			s.resolve()
			if s.section.pass {
				s.flush()
			}
			s.held = s.held[:0]
			old := string(name[:len(name)-len(`" dump`)])
			s.cluster = true
			s.enter(old)
			s.section.begun = true
			if name, ok := s.sel.Rename[old]; ok {
				text = bytes.Replace(text, []byte(`"`+old+`"`), []byte(`"`+name+`"`), 1)
			}
		case s.tables != nil && bytes.Contains(line, entry) && bytes.Contains(s.held, entry):
			s.held = s.held[:0] // of an entry without statements
		case string(line) == "-- PostgreSQL database cluster dump":
			s.cluster = true
		case string(line) == "-- PostgreSQL database cluster dump complete":
			s.resolve()
			s.section.inside, s.section.pending, s.section.pass = false, false, true
			s.held = append(s.held, text...)
			s.flush()
			return
		case string(line) == "-- PostgreSQL database dump":
			if s.cluster && !s.section.begun {
				s.resolve()
				if s.section.pass {
					s.flush()
				}
				s.held = s.held[:0]
				s.section.pending = true
			}
		case string(line) == "-- PostgreSQL database dump complete":
			s.section.begun = false
			if s.resolve(); s.section.pass || !s.cluster {
				s.held = append(s.held, text...)
				s.flush()
				return
			}
		}
	}
	s.held = append(s.held, text...)
}

// enter begins a database.
func (s *Selector) enter(database string) {
	s.met(database)
	sec := &s.section
	if !sec.pending && sec.inside && sec.database == database {
		return
	}
	sec.database, sec.inside, sec.pending = database, true, false
	sec.pass = s.sel.wants(database, !s.cluster)
	s.schema = ""
	s.beginTables(database)
	if sec.pass {
		s.claim(database)
	}
}

// claim notes the name under which a database is written.
func (s *Selector) claim(database string) {
	name := s.newName(database)
	if other, ok := s.names[name]; ok && other != database && s.err == nil {
		s.err = fmt.Errorf("databases %q and %q would both become %q", other, database, name)
	}
	s.names[name] = database
}

func (s *Selector) newName(database string) string {
	if name, ok := s.sel.Rename[database]; ok {
		return name
	}
	return database
}

// meta takes a meta-command.
func (s *Selector) meta(it Item) {
	s.resolve()
	sec := &s.section
	text := it.Text
	command, argument, _ := strings.Cut(strings.TrimRight(string(text), "\r\n"), " ")
	s.keep = sec.pass
	if name, ok := ParseConnect(text); ok && !it.More {
		s.enter(name)
		sec.begun = true
		if s.keep = sec.pass; !s.keep {
			s.held = s.held[:0]
			return
		}
		if to := s.newName(name); to != name {
			text = []byte(connectCommand(to))
			if !s.made[name] && (name == "postgres" || name == "template1") && !s.sel.DataOnly {
				s.made[name] = true
				text = append([]byte("CREATE DATABASE "+quoteNew(to)+" WITH TEMPLATE = template0;\n"), text...)
			}
		}
	} else if command == `\unrestrict` {
		if s.keep = s.key == argument && argument != ""; s.keep {
			s.key = ""
		}
	} else if sec.pending {
		s.held = append(s.held, text...)
		return
	} else if command == `\restrict` && s.keep {
		s.key = argument
	}
	if s.keep {
		s.put(text)
	}
	s.held = s.held[:0]
}

// quoteNew writes a name that the script does not have.
func quoteNew(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// statement takes a statement, or its first piece.
func (s *Selector) statement(it Item) {
	h := parseHead(it.Text, s.schema)
	text := it.Text
	switch {
	case s.waited(&h, it):
		return
	case h.kind == "database" || h.kind == KindInDatabase:
		s.keep, text = s.database(&h)
	case h.kind == kindSetting:
		s.setting(&h)
		if s.section.pending {
			s.held, s.keep = append(s.held, text...), false
			return
		}
	case !s.cluster && !s.section.inside:
		// A script of pg_dump that does not name its database.
		s.section.inside = true
		s.section.pass = s.sel.wants("", true)
		s.beginTables("")
		fallthrough
	case s.section.inside:
		s.keep = s.inside(&h, it)
		if s.sel.NoOwner && h.verb == "create" && h.kind == "schema" {
			text = cut(text, "authorization")
		}
	default:
		s.keep, text = s.global(&h, it)
	}
	if s.keep {
		s.put(text)
	}
	s.held = s.held[:0]
}

// database decides on a statement about a database, and changes it.
func (s *Selector) database(h *head) (keep bool, text []byte) {
	name, text := h.name.name, h.text
	s.met(name)
	if h.verb == "create" {
		s.made[name] = true
		if !s.cluster || s.section.pending {
			held := s.section.pending
			s.enter(name)
			if held && !s.section.pass {
				s.held = s.held[:0]
			}
		}
	}
	keep = s.sel.wants(name, !s.cluster) && !s.sel.DataOnly && s.allowed(h) && (h.verb != "drop" || len(s.sel.Tables) == 0)
	if !keep {
		return false, nil
	}
	if h.verb == "create" {
		s.claim(name)
	}
	rest := text[h.at.to:]
	if h.verb == "create" && s.sel.NoOwner {
		rest = cut(rest, "owner")
	}
	if h.verb == "create" && s.sel.NoTablespaces {
		rest = cut(rest, "tablespace")
	}
	written := text[h.at.from:h.at.to]
	if to, ok := s.sel.Rename[name]; ok {
		if written = []byte(quoteNew(to)); h.verb == "update" {
			written = []byte(quoteString(to))
		}
	}
	return true, slices.Concat(text[:h.at.from], written, rest)
}

// setting decides on SET and the like.
func (s *Selector) setting(h *head) {
	name, value, _ := ParseSet(h.text)
	p := h.list
	session := p.word("session") && p.word("authorization")
	switch {
	case name == "search_path":
		p := tokens{text: []byte(value)}
		s.schema, _ = p.name()
	case h.verb == "select":
		s.schema = ""
	}
	s.keep = s.section.pass && (!session || !s.sel.NoOwner) &&
		(name != "default_tablespace" || !s.sel.NoTablespaces)
}

// allowed tells whether a statement is of a sort that is wanted, whatever it is
// about.
func (s *Selector) allowed(h *head) bool {
	data := h.kind == kindData || h.kind == kindValue || h.kind == kindObjectData || h.kind == "large object" || h.allTriggers()
	switch {
	case data && s.sel.SchemaOnly, !data && s.sel.DataOnly,
		s.sel.NoTablespaces && h.kind == "tablespace",
		s.sel.NoSubscriptions && h.kind == "subscription",
		s.sel.NoOwner && h.verb == "alter" && h.ownerTo(),
		s.sel.NoPrivileges && (h.verb == "grant" || h.verb == "revoke") && h.kind != kindMembership,
		s.sel.NoPrivileges && h.kind == "default privileges":
		return false
	}
	return true
}

// global decides on a statement that is of no database.
func (s *Selector) global(h *head, it Item) (keep bool, text []byte) {
	if s.sel.NoGlobals || !s.allowed(h) || s.sel.KeepRoles && h.verb == "drop" && h.kind == "role" {
		return false, nil
	}
	if s.sel.KeepRoles && h.verb == "create" && h.kind == "role" && !it.More {
		s.flush()
		s.wait = waiting{kind: "role", name: h.name, sql: bytes.Clone(it.Text)}
		return true, nil
	}
	return true, it.Text
}

// inside decides on a statement of a database.
func (s *Selector) inside(h *head, it Item) bool {
	if !s.section.pass {
		s.hint(h)
		return false
	}
	allowed := s.allowed(h)
	if s.tables == nil {
		return allowed
	}
	if h.verb == "create" && h.kind == "sequence" && !it.More {
		s.wait = waiting{kind: "sequence", name: h.name}
		return allowed
	}
	return s.ofTables(h) && allowed
}

// waited takes a statement that belongs to one that waits.
func (s *Selector) waited(h *head, it Item) bool {
	w := &s.wait
	switch w.kind {
	case "role":
		if h.verb == "alter" && h.kind == "role" && h.name == w.name && !it.More {
			if p := h.list; p.word("with") {
				s.createRole(w.name.name, w.sql, it.Text)
				*w = waiting{}
				s.held, s.keep = s.held[:0], true
				return true
			}
		}
	case "sequence":
		if h.verb != "alter" || h.name != w.name || h.kind != "sequence" && h.kind != "table" {
			break
		}
		if s.owned(h) {
			if !s.tables.sequences[w.name] {
				w.text = nil
			}
			s.resolve()
			return false
		}
		if s.keep = s.allowed(h); s.keep {
			s.put(it.Text)
		}
		s.held = s.held[:0]
		return true
	}
	s.resolve()
	return false
}

// resolve decides on what waits, as nothing came that tells more.
func (s *Selector) resolve() {
	w := s.wait
	s.wait = waiting{}
	switch w.kind {
	case "role":
		s.createRole(w.name.name, w.sql, nil)
		s.write([]byte("\n"))
		s.held = bytes.TrimPrefix(s.held, []byte("\n"))
	case "sequence":
		if _, ok := s.tables.sequences[w.name]; !ok {
			s.tables.sequences[w.name] = true // no column owns it
		}
		s.write(w.text)
	}
}

// createRole writes what creates a role if there is none.
func (s *Selector) createRole(name string, create, alter []byte) {
	tag := "$role$"
	for i := 0; bytes.Contains(create, []byte(tag)) || bytes.Contains(alter, []byte(tag)); i++ {
		tag = fmt.Sprintf("$role%d$", i)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "DO %s\nBEGIN\nIF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s) THEN\n%s\n", tag, quoteString(name), create)
	if alter != nil {
		fmt.Fprintf(&b, "%s\n", alter)
	}
	fmt.Fprintf(&b, "END IF;\nEND\n%s;", tag)
	s.write(b.Bytes())
}
