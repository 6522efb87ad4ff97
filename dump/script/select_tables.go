package script

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// tables is what is known about the wanted tables of a database and what is
// theirs.
type tables struct {
	database   string
	wanted     map[relation]bool
	sequences  map[relation]bool // false: another table's
	indexes    map[relation]bool
	statistics map[relation]bool
	composite  map[relation]bool // types whose columns may have comments
	out        map[foreignKey]bool
	others     map[relation]bool // not wanted: tables, and what was left out because of them
}

// foreignKey is a constraint that was left out.
type foreignKey struct {
	table relation
	name  string
}

// beginTables begins a database.
func (s *Selector) beginTables(database string) {
	s.tables = nil
	if len(s.sel.Tables) == 0 {
		return
	}
	t := &tables{
		database: database,
		wanted:   map[relation]bool{}, sequences: map[relation]bool{}, indexes: map[relation]bool{},
		statistics: map[relation]bool{}, composite: map[relation]bool{}, out: map[foreignKey]bool{}, others: map[relation]bool{},
	}
	for _, n := range s.sel.Tables {
		if n.in(database, !s.cluster) {
			t.wanted[relation{n.Schema, n.Table}] = true
		}
	}
	s.tables = t
}

// ofTables decides on a statement of a database of which some tables are wanted.
func (s *Selector) ofTables(h *head) bool {
	t := s.tables
	wanted := t.wanted[h.name]
	s.hint(h)
	switch h.kind {
	case "table":
		if h.verb == "alter" {
			return s.alterTable(h)
		}
		if !wanted {
			t.others[h.name] = true
		}
		return wanted
	case kindData:
		return wanted || t.indexes[h.name]
	case "sequence":
		s.owned(h)
		return t.sequences[h.name]
	case kindValue:
		keep, known := t.sequences[h.name]
		if !known && !s.sel.SchemaOnly {
			s.skip("the value of sequence %s, as the script does not tell whose it is", h.name)
		}
		return keep
	case "index":
		return s.index(h, wanted)
	case "trigger", "rule", "policy":
		return wanted
	case "constraint":
		return wanted && !t.out[foreignKey{h.name, h.part}]
	case "statistics":
		if h.verb == "create" {
			p := h.list
			p.find("from")
			table, _ := p.relation()
			t.statistics[h.name] = t.wanted[s.inSchema(table)]
		}
		return t.statistics[h.name]
	case "column":
		return wanted || t.composite[h.name]
	case "large object", kindObjectData, "publication", "subscription", "event trigger":
		return false
	}
	return h.verb != "drop" && s.ofNone(h)
}

// ofNone decides on a statement about what is not of a table: a schema, a type, a
// function and so on. It is left out if it cannot be without a table that is not
// wanted, as a function that returns its rows.
func (s *Selector) ofNone(h *head) bool {
	t := s.tables
	if h.verb != "create" && h.name.name != "" && t.others[h.name] && h.kind != "schema" {
		return false
	}
	if other, ok := t.refers(h.list); ok {
		if h.verb == "create" {
			t.others[h.name] = !t.wanted[h.name]
			s.skip("%s %s, which refers to %s", h.kind, h.name, other)
		}
		return false
	}
	if h.kind == "type" {
		t.composite[h.name] = true
	}
	return true
}

// refers finds the first name of another table, up to a dollar-quoted body, which
// PostgreSQL reads only when it is called.
func (t *tables) refers(p tokens) (relation, bool) {
	for {
		parts := p.names()
		if len(parts) > 1 && t.others[relation{parts[0], parts[1]}] {
			return relation{parts[0], parts[1]}, true
		}
		if len(parts) == 0 {
			if kind, _ := p.next(); kind == 0 || kind == '$' {
				return relation{}, false
			}
		}
	}
}

// inSchema completes a name.
func (s *Selector) inSchema(r relation) relation {
	if r.schema == "" {
		r.schema = s.schema
	}
	return r
}

func (s *Selector) skip(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.tables.database != "" {
		text = fmt.Sprintf("database %s: %s", quoteName(s.tables.database), text)
	}
	s.skipped = append(s.skipped, text)
}

func (s *Selector) alterTable(h *head) bool {
	t := s.tables
	if keep, ok := t.sequences[h.name]; ok {
		return keep
	}
	wanted := t.wanted[h.name]
	p := h.list
	switch {
	case p.word("attach") && p.word("partition"):
		child, _ := p.relation()
		child = s.inSchema(child)
		if wanted && !t.wanted[child] {
			s.skip("partition %s of table %s", child, h.name)
		} else if !wanted && t.wanted[child] {
			s.skip("that table %s is a partition of %s", child, h.name)
		}
		return wanted && t.wanted[child]
	case p.word("add") && p.word("constraint"):
		name, _ := p.name()
		if _, kind := p.next(); kind != "foreign" {
			if wanted {
				t.indexes[relation{h.name.schema, name}] = true
			}
			return wanted
		}
		p.find("references")
		other, _ := p.relation()
		if other = s.inSchema(other); wanted && !t.wanted[other] {
			t.out[foreignKey{h.name, name}] = true
			s.skip("foreign key %s of table %s, which refers to %s", quoteName(name), h.name, other)
			return false
		}
	case p.word("alter"):
		p.word("column")
		p.name()
		if p.word("add") && p.word("generated") && p.find("identity") && p.is("(") && p.word("sequence") && p.word("name") {
			sequence, _ := p.relation()
			t.sequences[s.inSchema(sequence)] = wanted
		}
	}
	return wanted
}

// owned notes whose a sequence is, if the statement tells.
func (s *Selector) owned(h *head) bool {
	p := h.list
	if !p.word("owned") || !p.word("by") {
		return false
	}
	var table relation
	switch parts := p.names(); len(parts) {
	case 2:
		table.name = parts[0]
	case 3:
		table.schema, table.name = parts[0], parts[1]
	}
	t := s.tables
	t.sequences[h.name] = t.wanted[s.inSchema(table)] || t.wanted[h.name]
	return true
}

func (s *Selector) index(h *head, wanted bool) bool {
	t := s.tables
	if h.verb == "create" {
		if wanted {
			t.indexes[relation{h.name.schema, h.part}] = true
		}
		return wanted
	}
	if p := h.list; p.word("attach") && p.word("partition") {
		child, _ := p.relation()
		return t.indexes[h.name] && t.indexes[s.inSchema(child)]
	}
	return t.indexes[h.name]
}

// NameError is a name in a [Selection] that the script does not have.
type NameError struct {
	Kind string // "database" or "table"
	Name string
	Near []string // names that the script has
}

func (e *NameError) Error() string {
	text := fmt.Sprintf("no %s %s in the dump", e.Kind, e.Name)
	if len(e.Near) > 0 {
		text += "; there is " + strings.Join(e.Near, ", ")
	}
	return text
}

// miss is a name that was not met yet.
type miss struct {
	kind, name string
	table      TableName
	met        bool
	near       []string
	distances  []int
}

// expect notes the names of the selection.
func (s *Selector) expect() {
	seen := map[string]bool{}
	database := func(name string) {
		if name != "" && !seen[name] {
			seen[name] = true
			s.misses = append(s.misses, &miss{kind: "database", name: name})
		}
	}
	for _, name := range s.sel.Databases {
		database(name)
	}
	for _, name := range s.sel.ExcludeDatabases {
		database(name)
	}
	for name := range s.sel.Rename {
		database(name)
	}
	for _, t := range s.sel.Tables {
		database(t.Database)
	}
	slices.SortFunc(s.misses, func(a, b *miss) int { return strings.Compare(a.name, b.name) })
	for _, t := range s.sel.Tables {
		s.misses = append(s.misses, &miss{kind: "table", name: t.String(), table: t})
	}
}

// met notes that the script has a database.
func (s *Selector) met(database string) {
	for _, m := range s.misses {
		if m.kind == "database" {
			m.compare(m.name, database, quoteName(database))
		}
	}
}

// hint notes that the script has a table.
func (s *Selector) hint(h *head) {
	if h.kind != "table" && h.kind != "sequence" && h.kind != kindData {
		return
	}
	for _, m := range s.misses {
		switch {
		case m.kind != "table" || !m.table.in(s.section.database, !s.cluster):
		case h.kind == kindData || h.verb != "create":
			m.met = m.met || m.table.Schema == h.name.schema && m.table.Table == h.name.name
		default:
			m.compare(m.table.Schema+"."+m.table.Table, h.name.schema+"."+h.name.name,
				TableName{m.table.Database, h.name.schema, h.name.name}.String())
		}
	}
}

// compare notes a name, if it is the one or near to it.
func (m *miss) compare(want, name, shown string) {
	if want == name {
		m.met = true
	}
	if m.met || slices.Contains(m.near, shown) {
		return
	}
	d := distance(strings.ToLower(want), strings.ToLower(name))
	if d > max(2, len(want)/3) {
		return
	}
	i, _ := slices.BinarySearch(m.distances, d+1)
	m.distances = slices.Insert(m.distances, i, d)
	m.near = slices.Insert(m.near, i, shown)
	if len(m.near) > 3 {
		m.distances, m.near = m.distances[:3], m.near[:3]
	}
}

// missed makes the error for names that were not met.
func (s *Selector) missed() error {
	var errs []error
	lost := map[string]bool{}
	for _, m := range s.misses {
		if m.met || m.kind == "table" && lost[m.table.Database] {
			continue
		}
		name := m.name
		if m.kind == "database" {
			lost[name] = true
			name = quoteName(name)
		}
		errs = append(errs, &NameError{Kind: m.kind, Name: name, Near: m.near})
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// distance is how many bytes to insert, remove or replace lead from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
