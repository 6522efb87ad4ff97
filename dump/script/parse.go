package script

import (
	"bytes"
	"strings"
)

// CopyTarget is what a COPY statement fills.
type CopyTarget struct {
	Schema  string // empty where the statement names none
	Table   string
	Columns []string // empty where the statement names none: all, or a table without columns
}

// ParseCopy reads COPY … FROM stdin. It reports false for any other statement.
func ParseCopy(statement []byte) (t CopyTarget, ok bool) {
	p := tokens{text: statement}
	if !p.word("copy") {
		return t, false
	}
	if t.Table, ok = p.name(); !ok {
		return t, false
	}
	if p.is(".") {
		t.Schema = t.Table
		if t.Table, ok = p.name(); !ok {
			return t, false
		}
	}
	if p.is("(") {
		for {
			c, ok := p.name()
			if !ok {
				return t, false
			}
			t.Columns = append(t.Columns, c)
			if p.is(")") {
				break
			}
			if !p.is(",") {
				return t, false
			}
		}
	}
	if p.word("with") && !p.word("oids") { // pg_dump --oids, up to version 11
		return t, false
	}
	return t, p.word("from") && p.word("stdin")
}

// ParseSet reads SET name = value, also with TO, SESSION and LOCAL. The name is
// in lower case; of a value of one word or string it is that, of any other the
// text.
func ParseSet(statement []byte) (name, value string, ok bool) {
	p := tokens{text: statement}
	if !p.word("set") {
		return "", "", false
	}
	if !p.word("session") {
		p.word("local")
	}
	if name, ok = p.name(); !ok {
		return "", "", false
	}
	for p.is(".") {
		part, ok := p.name()
		if !ok {
			return "", "", false
		}
		name += "." + part
	}
	if !p.is("=") && !p.word("to") {
		return "", "", false
	}
	rest := bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(p.text), []byte(";")))
	kind, value := p.next()
	if after, _ := p.next(); after != ';' && after != 0 || kind == 0 || kind == ';' {
		value = string(rest)
	}
	return strings.ToLower(name), value, true
}

// ParseConnect reads the name of the database from \connect, in all forms that
// pg_dump and pg_dumpall of any version write (appendPsqlMetaConnect in
// string_utils.c): name, "name", -reuse-previous=on "dbname='name'".
func ParseConnect(meta []byte) (database string, ok bool) {
	line := bytes.TrimRight(meta, "\r\n")
	rest, ok := bytes.CutPrefix(line, []byte(`\connect`))
	if !ok {
		rest, ok = bytes.CutPrefix(line, []byte(`\c`))
	}
	if !ok || len(rest) == 0 || !isSpace(rest[0]) {
		return "", false
	}
	arg, rest := metaArgument(rest)
	if strings.HasPrefix(arg, "-reuse-previous=") {
		arg, _ = metaArgument(rest)
	}
	if arg == "" || arg == "-" {
		return "", false
	}
	if !strings.Contains(arg, "=") {
		return arg, true
	}
	return connectionDatabase(arg)
}

// metaArgument takes the first argument of a meta-command, without its quotes.
func metaArgument(s []byte) (arg string, rest []byte) {
	s = bytes.TrimLeft(s, " \t\r\f")
	var b strings.Builder
	var open byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case open == 0 && (isSpace(c) || c == '\\'):
			return b.String(), s[i:]
		case open == 0 && (c == '"' || c == '\''):
			open = c
		case open == '\'' && c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case open != 0 && c == open:
			if i+1 < len(s) && s[i+1] == c {
				b.WriteByte(c)
				i++
			} else {
				open = 0
			}
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

// connectionDatabase takes dbname from a connection string of libpq of the form
// key=value, in which values may be quoted and backslashes escape.
func connectionDatabase(s string) (string, bool) {
	for {
		key, rest, found := strings.Cut(s, "=")
		if !found {
			return "", false
		}
		rest = strings.TrimLeft(rest, " ")
		var b strings.Builder
		quoted := strings.HasPrefix(rest, "'")
		i := 0
		if quoted {
			i = 1
		}
		for ; i < len(rest); i++ {
			c := rest[i]
			if quoted && c == '\'' {
				i++
				break
			}
			if !quoted && c == ' ' {
				break
			}
			if c == '\\' && i+1 < len(rest) {
				i++
				c = rest[i]
			}
			b.WriteByte(c)
		}
		if strings.TrimSpace(key) == "dbname" {
			return b.String(), true
		}
		s = rest[i:]
	}
}

// tokens reads a statement token by token, as far as statements of dumps need
// that.
type tokens struct {
	text        []byte
	backslashes bool // escape also in '…'
}

// skip passes over white space and comments.
func (p *tokens) skip() {
	for {
		p.text = bytes.TrimLeft(p.text, " \t\r\n\f\v")
		if bytes.HasPrefix(p.text, []byte("--")) {
			i := bytes.IndexAny(p.text, "\r\n")
			if i < 0 {
				i = len(p.text)
			}
			p.text = p.text[i:]
			continue
		}
		if !bytes.HasPrefix(p.text, []byte("/*")) {
			return
		}
		_, p.text, _ = bytes.Cut(p.text, []byte("*/"))
	}
}

// next returns the next token and its kind: 'w' an unquoted word in lower case,
// '"' a quoted name, '\” a string, '0' a number, otherwise the byte itself; 0
// at the end.
func (p *tokens) next() (kind byte, value string) {
	p.skip()
	if len(p.text) == 0 {
		return 0, ""
	}
	c := p.text[0]
	switch {
	case (c == 'E' || c == 'e') && len(p.text) > 1 && p.text[1] == '\'':
		p.text = p.text[1:]
		return '\'', p.quoted('\'', true)
	case c == '\'':
		return '\'', p.quoted('\'', p.backslashes)
	case c == '"':
		return '"', p.quoted('"', false)
	case isTagStart(c):
		i := 1
		for i < len(p.text) && (isTag(p.text[i]) || p.text[i] == '$') {
			i++
		}
		w := []byte(string(p.text[:i]))
		p.text = p.text[i:]
		for i, c := range w { // not bytes.ToLower, which would mend other encodings than UTF-8
			if 'A' <= c && c <= 'Z' {
				w[i] = c | 0x20
			}
		}
		return 'w', string(w)
	case '0' <= c && c <= '9' || c == '-' && len(p.text) > 1 && '0' <= p.text[1] && p.text[1] <= '9':
		i := 1
		for i < len(p.text) && (isTag(p.text[i]) || p.text[i] == '.') {
			i++
		}
		value = string(p.text[:i])
		p.text = p.text[i:]
		return '0', value
	}
	p.text = p.text[1:]
	return c, string(c)
}

// quoted takes a quoted token, without its quotes.
func (p *tokens) quoted(q byte, escapes bool) string {
	var b []byte
	for i := 1; i < len(p.text); i++ {
		c := p.text[i]
		switch {
		case c == '\\' && escapes && i+1 < len(p.text):
			i++
			b = append(b, p.text[i])
		case c != q:
			b = append(b, c)
		case i+1 < len(p.text) && p.text[i+1] == q:
			i++
			b = append(b, c)
		default:
			p.text = p.text[i+1:]
			return string(b)
		}
	}
	p.text = nil
	return string(b)
}

// is takes the next token if it is the punctuation s.
func (p *tokens) is(s string) bool {
	old := p.text
	if kind, v := p.next(); kind == s[0] && v == s {
		return true
	}
	p.text = old
	return false
}

// word takes the next token if it is the keyword w.
func (p *tokens) word(w string) bool {
	old := p.text
	if kind, v := p.next(); kind == 'w' && v == w {
		return true
	}
	p.text = old
	return false
}

// name takes the next token if it is a name.
func (p *tokens) name() (string, bool) {
	old := p.text
	if kind, v := p.next(); kind == 'w' || kind == '"' {
		return v, true
	}
	p.text = old
	return "", false
}
