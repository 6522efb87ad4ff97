package script

import (
	"bytes"
	"slices"
	"strings"
)

// Lane says how a statement may be run when a script is replayed on several connections.
type Lane uint8

const (
	// Alone: nothing may run beside it, and all before it must have ended.
	Alone Lane = iota
	// Session: a setting, which later statements of the script must find, on whatever connection.
	Session
	// CopyIn: a COPY of rows that follow in the script.
	CopyIn
	// Beside: what it works on is known, and it may run beside whatever works on other things.
	Beside
)

// Step is a statement as a replay sees it.
type Step struct {
	Lane  Lane
	Verb  string // first word in lower case, such as create
	Kind  string // of the object, in lower case, such as index; empty where it has none
	Needs []Need // what the statement works on, unless it runs Alone
	// Schema and Name of the object; of an index or constraint that is made, of a trigger and the like, those of the table.
	Schema, Name string
	// Part is the name of an index, constraint or trigger.
	Part string
	// Phase of the script that the statement belongs to.
	Phase Phase
}

// Phase of a script, as pg_dump orders it (dbObjectTypePriorities in pg_dump_sort.c).
type Phase uint8

// Phases.
const (
	PhaseSchema Phase = iota
	PhaseData
	PhaseIndexes
)

// Need is a thing that a statement works on. Of two statements with the same need, of which one is Exclusive, the later one of the
// script must wait for the earlier one.
type Need struct {
	Key       string
	Exclusive bool
}

// Steps reads the statements of a script of pg_dumpall or pg_dump in order, and tells of each how it may be run. It
// remembers which tables are partitions or children of others and whose indexes are whose. The zero value is at the
// beginning of a database; a \connect needs a new one.
type Steps struct {
	schema  string
	indexes map[relation]relation // to their tables
	group   map[relation]relation // a table to one of the same tree, towards its root
	parents map[relation]bool
}

// Next takes the next statement, whole or its first piece.
func (s *Steps) Next(text []byte) Step {
	h := parseHead(text, s.schema)
	step := Step{Verb: h.verb, Kind: h.kind, Schema: h.name.schema, Name: h.name.name, Part: h.part}
	if s.indexes == nil {
		s.indexes, s.group, s.parents = map[relation]relation{}, map[relation]relation{}, map[relation]bool{}
	}
	p := h.list
	switch {
	case h.kind == kindSetting:
		s.setting(&h, &step)
	case h.kind == kindValue:
		step.Lane, step.Phase = Beside, PhaseData
	case h.verb == "copy" && h.kind == kindData:
		step.Lane, step.Phase, step.Needs = CopyIn, PhaseData, s.needs(h.name, false)
	case h.kind == kindData, h.kind == kindObjectData:
		step.Phase = PhaseData
	case h.verb == "create" && h.kind == "table":
		s.inherits(&h)
	case h.verb == "create" && h.kind == "index":
		s.indexes[relation{h.name.schema, h.part}] = h.name
		// Several indexes of one table may be made at once: CREATE INDEX takes a lock that does not conflict with itself.
		step.Lane, step.Phase, step.Needs = Beside, PhaseIndexes, s.needs(h.name, false)
	case h.verb == "create" && h.kind == "trigger":
		step.Lane, step.Phase, step.Needs = Beside, PhaseIndexes, s.needs(h.name, true)
	case h.verb == "alter" && h.kind == "table":
		s.alterTable(&h, &step)
	case h.kind == "index" && (h.verb == "alter" || h.verb == "comment"):
		table, ok := s.indexes[h.name]
		if !ok {
			break
		}
		step.Lane, step.Phase, step.Needs = Beside, PhaseIndexes, s.needs(table, true)
		if p.word("attach") && p.word("partition") {
			child, _ := p.relation()
			if table, ok = s.indexes[s.in(child)]; !ok {
				step.Lane, step.Needs = Alone, nil
				break
			}
			step.Needs = append(step.Needs, s.needs(table, true)...)
		}
	case h.verb == "comment" && (h.kind == "constraint" || h.kind == "trigger"):
		if step.Phase = PhaseIndexes; h.name.name != "" {
			step.Lane, step.Needs = Beside, s.needs(h.name, true)
		}
	}
	if step.Lane == Beside && h.kind != kindValue && h.name.name == "" {
		step.Lane, step.Needs = Alone, nil // not understood
	}
	return step
}

// setting reads SET and the like. What belongs to a transaction runs where it stands.
func (s *Steps) setting(h *head, step *Step) {
	p := h.list
	if h.verb == "set" && (p.word("local") || p.word("transaction") || p.word("constraints")) {
		return
	}
	step.Lane = Session
	if name, value, _ := ParseSet(h.text); name == "search_path" {
		p := tokens{text: []byte(value)}
		s.schema, _ = p.name()
	} else if h.verb == "select" {
		s.schema = ""
	}
}

func (s *Steps) alterTable(h *head, step *Step) {
	p := h.list
	beside := func(needs []Need) { step.Lane, step.Phase, step.Needs = Beside, PhaseIndexes, needs }
	switch {
	case p.word("attach"):
		if child, ok := p.afterPartition(); ok {
			s.join(h.name, s.in(child))
		}
	case p.word("inherit"):
		if parent, ok := p.relation(); ok {
			s.join(s.in(parent), h.name)
		}
	case p.word("add") && p.word("constraint"):
		step.Part, _ = p.name()
		step.Kind = "constraint"
		switch _, kind := p.next(); kind {
		case "primary", "unique", "exclude":
			s.indexes[relation{h.name.schema, step.Part}] = h.name
			beside(s.needs(h.name, true))
		case "foreign":
			if other, ok := p.references(); ok {
				step.Kind = "foreign key"
				// Both tables are locked against themselves, in an order that differs from key to key: without this,
				// two keys that refer to each other's tables would wait for each other.
				beside(append(s.needs(h.name, true), s.needs(s.in(other), true)...))
			}
		case "check", "not":
			step.Phase = PhaseIndexes // an expression may look at anything
		}
	case p.word("cluster"), p.word("replica"):
		beside(s.needs(h.name, true))
	case (p.word("disable") || p.word("enable")) && p.word("trigger"):
		beside(s.needs(h.name, true))
		step.Phase = PhaseData
	}
}

// afterPartition reads the name in ATTACH PARTITION name.
func (p *tokens) afterPartition() (relation, bool) {
	if !p.word("partition") {
		return relation{}, false
	}
	return p.relation()
}

// references reads the name in REFERENCES name.
func (p *tokens) references() (relation, bool) {
	if !p.find("references") {
		return relation{}, false
	}
	return p.relation()
}

// inherits notes the parents that CREATE TABLE names.
func (s *Steps) inherits(h *head) {
	p := h.list
	if p.word("partition") && p.word("of") {
		if parent, ok := p.relation(); ok {
			s.join(s.in(parent), h.name)
		}
		return
	}
	if p = h.list; p.find("inherits") && p.is("(") {
		for {
			parent, ok := p.relation()
			if !ok {
				return
			}
			s.join(s.in(parent), h.name)
			if !p.is(",") {
				return
			}
		}
	}
}

// join notes that child is a partition or child of parent.
func (s *Steps) join(parent, child relation) {
	s.parents[parent] = true
	if a, b := s.root(parent), s.root(child); a != b {
		s.group[b] = a
	}
}

func (s *Steps) root(r relation) relation {
	for {
		up, ok := s.group[r]
		if !ok {
			return r
		}
		r = up
	}
}

// in gives a name without schema the one that the script is in.
func (s *Steps) in(r relation) relation {
	if r.schema == "" {
		r.schema = s.schema
	}
	return r
}

// needs is what a statement on a table works on. One on a parent may reach all of its tree; one on a leaf only has to
// keep apart from those.
func (s *Steps) needs(r relation, exclusive bool) []Need {
	tree := s.root(r)
	if s.parents[r] {
		return []Need{{"tree " + tree.String(), true}}
	}
	return []Need{{"tree " + tree.String(), false}, {r.String(), exclusive}}
}

// secrets are kinds of objects whose statements may hold a password.
var secrets = []string{"role", KindInDatabase, "user mapping", "subscription", "server"}

// Brief returns the beginning of a statement in one line of at most max bytes, for a message. Where the statement
// may hold a password, it ends behind the name.
func Brief(text []byte, max int) string {
	h := parseHead(text, "")
	if slices.Contains(secrets, h.kind) {
		if n := len(text) - len(h.list.text); n > 0 && n < len(text) {
			text = append(bytes.TrimSpace(bytes.Clone(text[:n])), " …"...)
		}
	}
	p := tokens{text: text}
	p.skip() // comments
	line := strings.TrimSuffix(strings.Join(strings.Fields(strings.ToValidUTF8(string(p.text[:min(len(p.text), 4*max)]), "?")), " "), ";")
	if len(line) > max {
		cut := max
		for cut > 0 && line[cut]&0xC0 == 0x80 {
			cut--
		}
		line = line[:cut] + " …"
	}
	return line
}
