package script

import (
	"bytes"
	"strings"
)

// head is what the beginning of a statement tells: what it does, and to what.
type head struct {
	verb string // first word: create, alter, comment …
	kind string // of the object; "table" also for views and foreign tables
	// name is the object's, or of one that is a part of a table, or of a column, the table's.
	name relation
	part string // name of the part: a trigger, an index, a constraint
	list tokens // what follows
	text []byte
	// at is where the name of a database stands in the text.
	at span
}

// relation is the name of a table or the like.
type relation struct{ schema, name string }

func (r relation) String() string { return quoteName(r.schema) + "." + quoteName(r.name) }

// span is a part of a text.
type span struct{ from, to int }

// Kinds of statements without an object.
const (
	kindSetting    = "setting"    // SET and the like
	kindData       = "data"       // of a table
	kindValue      = "value"      // of a sequence
	kindObjectData = "objectdata" // of large objects
	kindMembership = "membership" // GRANT a TO b
)

// KindInDatabase is the kind of ALTER ROLE a IN DATABASE b.
const KindInDatabase = "indatabase"

// kinds leads from the words that name a kind of object to a kind: those that
// matter here. All others are their first word.
var kinds = map[string]string{
	"materialized view": "table", "foreign table": "table", "view": "table", "user": "role", "group": "role",
	"event trigger": "event trigger", "large object": "large object", "default privileges": "default privileges",
	"user mapping": "user mapping", "foreign data": "foreign data", "text search": "text search",
	"operator class": "operator class", "operator family": "operator family", "access method": "access method",
}

// parseHead reads the heads of statements that pg_dump and pg_dumpall write.
// Names without schema are in the one given.
func parseHead(text []byte, schema string) head {
	h := head{text: text, list: tokens{text: text}}
	p := &h.list
	_, h.verb = p.next()
	switch h.verb {
	case "set", "reset":
		h.kind = kindSetting
	case "begin", "commit":
		h.kind = kindObjectData
	case "copy":
		if t, ok := ParseCopy(text); ok {
			h.kind, h.name = kindData, relation{t.Schema, t.Table}
		}
	case "insert":
		p.word("into")
		h.name, _ = p.relation()
		h.kind = kindData
	case "refresh":
		p.kind()
		h.name, _ = p.relation()
		h.kind = kindData
	case "select":
		h.call()
	case "update":
		h.updateDatabase()
	case "grant", "revoke":
		h.privileges()
	case "comment":
		if p.word("on") {
			h.object()
		}
	case "security":
		p.word("label")
		if p.word("for") {
			p.next()
		}
		if p.word("on") {
			h.object()
		}
	case "create", "alter", "drop":
		for p.word("or") || p.word("replace") || p.word("unique") || p.word("unlogged") || p.word("temporary") ||
			p.word("recursive") || p.word("trusted") || p.word("procedural") {
			continue
		}
		h.object()
	}
	if h.name.schema == "" {
		h.name.schema = schema
	}
	return h
}

// object reads a kind of object and the object's name.
func (h *head) object() {
	p := &h.list
	h.kind = p.kind()
	if h.verb == "create" && h.kind == "constraint" { // CREATE CONSTRAINT TRIGGER
		h.kind = p.kind()
	}
	if old := *p; p.word("if") && !p.word("exists") && !(p.word("not") && p.word("exists")) {
		*p = old // a name
	}
	p.word("only")
	p.skip()
	h.at.from = len(h.text) - len(p.text)
	switch h.kind {
	case "database", "role", "tablespace":
		h.name.name, _ = p.name()
		h.at.to = len(h.text) - len(p.text)
		if h.kind == "role" && p.word("in") && p.word("database") {
			h.kind = KindInDatabase
			p.skip()
			h.at.from = len(h.text) - len(p.text)
			h.name.name, _ = p.name()
			h.at.to = len(h.text) - len(p.text)
		}
	case "trigger", "rule", "policy", "constraint":
		h.part, _ = p.name()
		behind := "on"
		if h.kind == "rule" && h.verb == "create" {
			behind = "to"
		}
		if p.find(behind) {
			if old := *p; p.word("domain") && !p.is(".") {
				h.kind = "domain"
			} else {
				*p = old
			}
			h.name, _ = p.relation()
		}
	case "index":
		if h.verb != "create" {
			h.name, _ = p.relation()
			return
		}
		h.part, _ = p.name()
		if p.word("on") {
			p.word("only")
			h.name, _ = p.relation()
		}
	case "column":
		if parts := p.names(); len(parts) > 1 {
			h.name.name = parts[len(parts)-2]
			if len(parts) > 2 {
				h.name.schema = parts[len(parts)-3]
			}
		}
	default:
		h.name, _ = p.relation()
	}
}

// privileges reads GRANT and REVOKE.
func (h *head) privileges() {
	p := &h.list
	for {
		kind, w := p.next()
		switch {
		case kind == 0, kind == 'w' && (w == "to" || w == "from"):
			h.kind = kindMembership
			return
		case kind == 'w' && w == "on":
			h.object()
			return
		}
	}
}

// call reads SELECT pg_catalog.function(…).
func (h *head) call() {
	p := &h.list
	if p.is("*") {
		p.word("from")
	}
	f, _ := p.relation()
	if f.schema != "pg_catalog" || !p.is("(") {
		return
	}
	switch f.name {
	case "set_config":
		h.kind = kindSetting
	case "setval":
		h.kind = kindValue
		_, literal := p.next()
		n := tokens{text: []byte(literal)}
		h.name, _ = n.relation()
	case "lo_create":
		h.kind = "large object"
	case "lo_open", "lowrite", "lo_close":
		h.kind = kindObjectData
	case "pg_restore_relation_stats", "pg_restore_attribute_stats":
		h.kind = kindData
		if p.findString("schemaname") && p.is(",") {
			_, h.name.schema = p.next()
		}
		if p.findString("relname") && p.is(",") {
			_, h.name.name = p.next()
		}
	}
}

// updateDatabase reads UPDATE pg_catalog.pg_database SET … WHERE datname = 'name'.
func (h *head) updateDatabase() {
	p := &h.list
	if r, _ := p.relation(); r.name != "pg_database" || !p.find("datname") || !p.is("=") {
		return
	}
	p.skip()
	h.at.from = len(h.text) - len(p.text)
	kind, name := p.next()
	if kind == '\'' {
		h.kind, h.name.name = "database", name
		h.at.to = len(h.text) - len(p.text)
	}
}

// ownerTo tells whether an ALTER sets the owner.
func (h *head) ownerTo() bool {
	for p := h.list; p.find("owner"); {
		if p.word("to") {
			return true
		}
	}
	return false
}

// allTriggers tells whether an ALTER TABLE stands before or behind the data, to
// switch off triggers meanwhile.
func (h *head) allTriggers() bool {
	p := h.list
	return h.verb == "alter" && h.kind == "table" && (p.word("disable") || p.word("enable")) &&
		p.word("trigger") && p.word("all")
}

// kind reads a kind of object.
func (p *tokens) kind() string {
	kind, first := p.next()
	if kind != 'w' {
		return ""
	}
	old := p.text
	if kind, second := p.next(); kind == 'w' {
		if k, ok := kinds[first+" "+second]; ok {
			return k
		}
	}
	p.text = old
	if k, ok := kinds[first]; ok {
		return k
	}
	return first
}

// names reads a name of several parts.
func (p *tokens) names() (parts []string) {
	for {
		n, ok := p.name()
		if !ok {
			return parts
		}
		if parts = append(parts, n); !p.is(".") {
			return parts
		}
	}
}

// relation reads a name with or without a schema.
func (p *tokens) relation() (r relation, ok bool) {
	switch parts := p.names(); len(parts) {
	case 1:
		return relation{name: parts[0]}, true
	case 2:
		return relation{parts[0], parts[1]}, true
	}
	return r, false
}

// find goes on behind the keyword w, outside parentheses.
func (p *tokens) find(w string) bool {
	for depth := 0; ; {
		switch kind, v := p.next(); {
		case kind == 0:
			return false
		case kind == '(':
			depth++
		case kind == ')':
			depth--
		case kind == 'w' && v == w && depth == 0:
			return true
		}
	}
}

// findString goes on behind the string s.
func (p *tokens) findString(s string) bool {
	for {
		switch kind, v := p.next(); {
		case kind == 0:
			return false
		case kind == '\'' && v == s:
			return true
		}
	}
}

// cut returns a text without word = value, or word value.
func cut(text []byte, word string) []byte {
	p := tokens{text: text}
	var out []byte
	kept := 0
	for {
		p.skip()
		at := len(text) - len(p.text)
		kind, v := p.next()
		if kind == 0 {
			break
		}
		if kind == 'w' && v == word {
			p.is("=")
			p.next()
			out = append(out, bytes.TrimRight(text[kept:at], " ")...)
			kept = len(text) - len(p.text)
		}
	}
	return append(out, text[kept:]...)
}

// quoteName writes a name for SQL: in quotes, unless it is plain.
func quoteName(s string) string {
	if plainName(s) {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// QuoteName writes a name for SQL: in quotes, unless it is plain.
func QuoteName(s string) string { return quoteName(s) }

// plainName tells whether psql and SQL read a name as it is. Keywords pass.
func plainName(s string) bool {
	for i, c := range []byte(s) {
		if c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// quoteString writes a string that means the same with and without
// standard_conforming_strings.
func quoteString(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// connectCommand writes \connect as pg_dumpall does (appendPsqlMetaConnect in
// string_utils.c).
func connectCommand(name string) string {
	for _, c := range []byte(name) {
		if c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			value := "dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(name) + "'"
			return "\\encoding SQL_ASCII\n\\connect -reuse-previous=on \"" + strings.ReplaceAll(value, `"`, `""`) + "\"\n"
		}
	}
	return `\connect ` + quoteName(name) + "\n"
}
