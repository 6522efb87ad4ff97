package script

import (
	"bytes"
	"fmt"
	"strings"
)

// State is where psql's lexer stands in a script. The zero State is the
// beginning of a script, outside every statement.
type State struct {
	within  within
	tag     string // of the dollar quote that is open, with its dollars
	nested  int    // comments around the innermost one
	started bool   // a statement has begun
	parens  int    // open parentheses
	begins  int    // open BEGIN and CASE in the body of a function
	rest    bool   // in a meta-command's line, of which a piece was given
	copying int    // blocks of COPY data that begin here: the open one, and those of further COPY statements on its line
	midRow  bool   // within a row of COPY data
	key     string // of the \restrict in force
	keys    string // of every \restrict so far, each with a space behind it
}

// Between tells that neither a statement nor a block of COPY data is open.
func (s State) Between() bool { return !s.started && s.copying == 0 }

// InCopy tells that COPY data are open.
func (s State) InCopy() bool { return s.copying > 0 }

// Restricted tells that a \restrict is in force, so that psql refuses every
// meta-command but \unrestrict.
func (s State) Restricted() bool { return s.key != "" }

// String says where the state is, for a message: "in a quoted string".
func (s State) String() string {
	switch {
	case s.copying > 0 && s.midRow:
		return "within a row of COPY data"
	case s.copying > 0:
		return "in COPY data"
	case !s.started:
		return "between statements"
	}
	switch s.within {
	case plainString, escapeString:
		return "in a quoted string"
	case quotedName:
		return "in a quoted name"
	case dollarString:
		return fmt.Sprintf("in a string quoted by %s", s.tag)
	case blockComment:
		return "in a comment"
	default:
		return "in a statement"
	}
}

// maxKeys bounds the memory for keys: those of a thousand databases.
const maxKeys = 64 << 10

// within is one of the exclusive states of the lexer in psqlscan.l.
type within uint8

const (
	sql          within = iota // outside all of the following
	longWord                   // an identifier longer than any keyword
	plainString                // '…', b'…', x'…', n'…', u&'…': ends at the next quote
	escapeString               // e'…', and '…' without standard_conforming_strings
	quotedName                 // "…", u&"…"
	dollarString               // $tag$…$tag$
	lineComment                // --…
	blockComment               // /*…*/
)

// A lexer cuts a script into items as psql does, which reads it line by line
// (mainloop.c), cuts each line by the rules of psqlscan.l and psqlscanslash.l,
// and takes COPY data from the lines after the COPY statement's (copy.c). It
// goes over every byte once: what it has learned of an unfinished item is kept.
//
// What follows from psql's way by lines: a string is never continued behind a
// newline, as SQL has it, but a new one begins there; after E'…' that is one
// without backslash escapes.
type lexer struct {
	State
	kind   Kind
	pos    int // how much of the item was looked at
	offset int64
	pieces bool // of this statement, pieces were given

	words   int     // identifiers in the statement so far
	head    [4]byte // initials of those of the first four that can make it CREATE [OR REPLACE] FUNCTION or PROCEDURE
	isCopy  bool    // its first word is COPY
	from    bool    // its last word is FROM, in a COPY
	copies  int     // COPY … FROM stdin in it
	pending int     // the same in the statements before it on its line

	backslashes bool        // standard_conforming_strings is off
	width       charLengths // of the client encoding, if one with ASCII bytes within characters
}

// next returns the item that buf begins with. It reports false if its end is
// not in buf, unless last says that nothing follows buf or the item has reached
// limit. Then next is to be called again with the same bytes and more.
func (l *lexer) next(buf []byte, last bool, limit int) (Item, bool) {
	if len(buf) == 0 {
		return Item{}, false
	}
	if l.copying > 0 {
		return l.rows(buf, last, limit)
	}
	line := false
	if l.pending > 0 {
		// COPY data begin on the next line, whatever psql has still to run on this one.
		if i := bytes.IndexByte(buf[l.pos:], '\n'); i >= 0 {
			buf, last, line = buf[:l.pos+i+1], true, true
		}
	}
	n, ended := l.scan(buf, last)
	if n == 0 {
		if n = l.pos; len(buf) < limit || n == 0 {
			return Item{}, false
		}
		l.rest = l.kind == Meta
	}
	more := !ended
	switch {
	case l.kind == Statement && ended:
		l.endStatement(buf[:n])
	case l.kind == Statement:
		l.pieces = true
	case l.kind == Blank:
		more = false
	}
	if line && n == len(buf) {
		l.copying, l.pending = l.pending, 0
	}
	return l.item(l.kind, buf[:n], more), true
}

func (l *lexer) item(k Kind, text []byte, more bool) Item {
	it := Item{Kind: k, More: more, Offset: l.offset, Text: text}
	l.offset += int64(len(text))
	l.pos = 0
	return it
}

// scan finds the end of the item that buf begins with, or 0, and tells whether
// the item ends there, rather than a piece of it.
func (l *lexer) scan(buf []byte, last bool) (n int, ended bool) {
	if l.pos == 0 {
		var ok bool
		if l.kind, ok = l.begin(buf, last); !ok {
			return 0, false
		}
		if l.kind == Statement {
			l.started = true
		}
	}
	switch l.kind {
	case Blank:
		return l.blank(buf, last), true
	case Meta:
		return l.command(buf, last)
	default:
		return l.statement(buf, last)
	}
}

// begin tells what buf begins with. It needs a second byte for that, sometimes.
func (l *lexer) begin(buf []byte, last bool) (k Kind, ok bool) {
	c, second, ok := buf[0], byte(0), last
	if len(buf) > 1 {
		second, ok = buf[1], true
	}
	switch {
	case l.rest:
		return Meta, true
	case l.within == lineComment && !l.started:
		return Blank, true
	case l.within != sql:
		return Statement, true
	case c == '\\' && !isForced(second):
		return Meta, ok
	case l.started:
		return Statement, true
	case isSpace(c):
		return Blank, true
	case c == '-' && !ok:
		return 0, false
	case c == '-' && second == '-':
		return Blank, true
	case c == 0xEF && l.offset == 0: // mainloop.c passes over a byte-order mark
		if len(buf) < len(byteOrderMark) && !last {
			return 0, false
		}
		if bytes.HasPrefix(buf, []byte(byteOrderMark)) {
			l.pos = len(byteOrderMark)
			return Blank, true
		}
	}
	return Statement, true
}

const byteOrderMark = "\xEF\xBB\xBF"

// isForced tells whether a backslash before c only keeps psql from seeing a
// meaning in c.
func isForced(c byte) bool { return c == ';' || c == ':' }

// blank finds the end of white space and -- comments.
func (l *lexer) blank(buf []byte, last bool) int {
	i := l.pos
	for i < len(buf) {
		if l.within == lineComment {
			i = l.lineComment(buf, i)
			continue
		}
		if isSpace(buf[i]) {
			i++
			continue
		}
		if buf[i] != '-' || i+1 < len(buf) && buf[i+1] != '-' {
			return i
		}
		if i+1 == len(buf) {
			if last {
				return i
			}
			l.pos = i
			return 0
		}
		l.within = lineComment
		i += 2
	}
	if last {
		return i
	}
	l.pos = i
	return 0
}

// lineComment finds the end of a -- comment: a newline or carriage return.
func (l *lexer) lineComment(buf []byte, i int) int {
	end := len(buf)
	if n := bytes.IndexByte(buf[i:], '\n'); n >= 0 {
		end = i + n
	}
	if n := bytes.IndexByte(buf[i:end], '\r'); n >= 0 {
		end = i + n
	}
	if end < len(buf) {
		l.within = sql
	}
	return end
}

// statement finds the end of a statement: a semicolon outside quotes, comments,
// parentheses and function bodies; or of a piece of it, before a meta-command.
func (l *lexer) statement(buf []byte, last bool) (n int, ended bool) {
	i := l.pos
	wait := func(at int) (int, bool) {
		l.pos = at
		return 0, false
	}
	for i < len(buf) {
		switch l.within {
		case sql:
			c := buf[i]
			switch classes[c] {
			case ordinary:
				i++
			case letter:
				j := l.wordEnd(buf, i)
				if j == len(buf) && !last {
					if j-i < longestWord {
						return wait(i)
					}
					l.within = longWord
					l.word(buf[i:j])
					i = j
					continue
				}
				if j-i == 1 && j < len(buf) && (buf[j] == '\'' || buf[j] == '&') {
					if buf[j] == '&' && j+1 == len(buf) && !last {
						return wait(i)
					}
					if n, w := prefix(buf[i:]); n > 0 {
						l.within = w
						i += n
						continue
					}
				}
				l.word(buf[i:j])
				i = j
			case quote:
				l.within = plainString
				if l.backslashes {
					l.within = escapeString
				}
				i++
			case doubleQuote:
				l.within = quotedName
				i++
			case dollar:
				j := i + 1
				if j < len(buf) && isTagStart(buf[j]) {
					for j++; j < len(buf) && isTag(buf[j]); j++ {
					}
				}
				switch {
				case j < len(buf) && buf[j] == '$':
					l.within = dollarString
					l.tag = string(buf[i : j+1])
					i = j + 1
				case j == len(buf) && !last && j-i < longestWord:
					return wait(i)
				default:
					i++
				}
			case dash, slash:
				if i+1 == len(buf) {
					if !last {
						return wait(i)
					}
					i++
					continue
				}
				switch {
				case c == '-' && buf[i+1] == '-':
					l.within = lineComment
					i += 2
				case c == '/' && buf[i+1] == '*':
					l.within = blockComment
					i += 2
				default:
					i++
				}
			case colon:
				// A variable's name is no word, but the type after a cast is one.
				j := i + 1
				if j < len(buf) && buf[j] == ':' {
					i += 2
					continue
				}
				for j < len(buf) && isTag(buf[j]) {
					j++
				}
				if j == len(buf) && !last && j-i < longestWord {
					return wait(i)
				}
				i = j
			case paren:
				if c == '(' {
					l.parens++
				} else if l.parens > 0 {
					l.parens--
				}
				i++
			case semicolon:
				i++
				if l.parens == 0 && l.begins == 0 {
					return i, true
				}
			case backslash:
				if i+1 == len(buf) && !last {
					return wait(i)
				}
				if i+1 == len(buf) || !isForced(buf[i+1]) {
					return i, false
				}
				if buf[i+1] == ';' {
					l.words = 0
				}
				i += 2
			}
		case longWord:
			if i = l.wordEnd(buf, i); i < len(buf) {
				l.within = sql
			}
		case plainString, quotedName:
			// A doubled quote ends one and begins the next.
			q := byte('\'')
			if l.within == quotedName {
				q = '"'
			}
			n := bytes.IndexByte(buf[i:], q)
			if n < 0 {
				i = len(buf)
				continue
			}
			i += n + 1
			l.within = sql
		case escapeString:
			switch c := buf[i]; {
			case c == '\'':
				if i+1 == len(buf) && !last {
					return wait(i)
				}
				i++
				if i < len(buf) && buf[i] == '\'' {
					i++
				} else {
					l.within = sql
				}
			case c == '\\':
				if i+1 == len(buf) && !last {
					return wait(i)
				}
				if i++; i < len(buf) && buf[i] < 0x80 {
					i++
				}
			case c >= 0x80 && l.width != nil:
				n := l.width.of(buf[i:])
				if i+n > len(buf) {
					if !last {
						return wait(i)
					}
					n = len(buf) - i
				}
				i += n
			default:
				i++
			}
		case dollarString:
			n := bytes.Index(buf[i:], []byte(l.tag))
			if n >= 0 {
				i += n + len(l.tag)
				l.within = sql
				continue
			}
			if last {
				i = len(buf)
				continue
			}
			return wait(max(i, len(buf)-len(l.tag)+1))
		case lineComment:
			i = l.lineComment(buf, i)
		case blockComment:
			if c := buf[i]; c != '*' && c != '/' {
				i++
				continue
			}
			if i+1 == len(buf) {
				if !last {
					return wait(i)
				}
				i++
				continue
			}
			switch string(buf[i : i+2]) {
			case "/*":
				l.nested++
				i += 2
			case "*/":
				if l.nested == 0 {
					l.within = sql
				} else {
					l.nested--
				}
				i += 2
			default:
				i++
			}
		}
	}
	if last {
		return i, false
	}
	return wait(i)
}

// longestWord is longer than any keyword, and than any tag that pg_dump makes.
const longestWord = 64 << 10

// prefix returns the length of what opens a string with a prefix, or a name
// with U&, and what it opens. buf begins with a word of one letter.
func prefix(buf []byte) (int, within) {
	c := buf[0] | 0x20
	switch {
	case buf[1] == '\'':
		switch c {
		case 'e':
			return 2, escapeString
		case 'b', 'x':
			return 2, plainString
		case 'n':
			return 1, sql // no word: a plain string follows
		}
	case c == 'u' && len(buf) > 2 && buf[2] == '\'':
		return 3, plainString
	case c == 'u' && len(buf) > 2 && buf[2] == '"':
		return 3, quotedName
	case c == 'u':
		return 1, sql
	}
	return 0, sql
}

// wordEnd finds the end of an identifier.
func (l *lexer) wordEnd(buf []byte, i int) int {
	for i < len(buf) {
		c := buf[i]
		switch {
		case c >= 0x80 && l.width != nil:
			i += l.width.of(buf[i:])
		case isTag(c) || c == '$':
			i++
		default:
			return i
		}
	}
	return len(buf)
}

// word takes note of an identifier. The rule by which psql finds the bodies of
// functions in SQL is the one for {identifier} in psqlscan.l.
func (l *lexer) word(w []byte) {
	n := l.words
	l.words++
	if n == 0 {
		l.head = [4]byte{}
		l.isCopy = fold(w, "copy")
	}
	if n < len(l.head) {
		switch {
		case fold(w, "create"), fold(w, "function"), fold(w, "procedure"), fold(w, "or"), fold(w, "replace"):
			l.head[n] = w[0] | 0x20
		}
	}
	if l.isCopy && l.parens == 0 {
		if l.from && fold(w, "stdin") {
			l.copies++
		}
		l.from = fold(w, "from")
	}
	if l.head[0] != 'c' || l.parens > 0 {
		return
	}
	kind := l.head[1]
	if kind == 'o' && l.head[2] == 'r' {
		kind = l.head[3]
	}
	if kind != 'f' && kind != 'p' {
		return
	}
	switch {
	case fold(w, "begin"):
		l.begins++
	case fold(w, "case") && l.begins > 0:
		l.begins++
	case fold(w, "end") && l.begins > 0:
		l.begins--
	}
}

// fold compares a word with a keyword in lower case.
func fold(w []byte, keyword string) bool {
	if len(w) != len(keyword) {
		return false
	}
	for i, c := range w {
		if c|0x20 != keyword[i] {
			return false
		}
	}
	return true
}

// endStatement forgets the statement, of which text is the last piece.
func (l *lexer) endStatement(text []byte) {
	whole := !l.pieces
	l.resetStatement()
	l.pending += l.copies
	l.copies = 0
	if len(text) >= 1<<10 || !whole || text[0]|0x20 != 's' {
		return
	}
	switch name, value, _ := ParseSet(text); name {
	case "standard_conforming_strings":
		switch strings.ToLower(value) {
		case "off", "false", "no", "0":
			l.backslashes = true
		default:
			l.backslashes = false
		}
	case "client_encoding":
		l.width = unsafeEncoding(value)
	}
}

func (l *lexer) resetStatement() {
	l.within, l.nested, l.tag = sql, 0, ""
	l.started, l.pieces = false, false
	l.parens, l.begins, l.words = 0, 0, 0
	l.isCopy, l.from = false, false
}

// command finds the end of a meta-command: that of its line, or a \\ in it, or
// the next meta-command.
func (l *lexer) command(buf []byte, last bool) (n int, ended bool) {
	end := bytes.IndexByte(buf[l.pos:], '\n')
	if end < 0 {
		if l.pos = len(buf); !last {
			return 0, false
		}
		end = len(buf)
	} else {
		end += l.pos
	}
	if l.rest {
		l.rest = false
		n = end
	} else {
		var name []byte
		name, n = commandEnd(buf[:end], l.key != "")
		l.run(string(name), buf[:n])
	}
	if n == end && n < len(buf) && !l.started {
		n++
	}
	return n, true
}

// commandEnd finds a meta-command's name and end in its line, as psqlscanslash.l
// and HandleSlashCmds in command.c do. After an error psql drops the rest of
// the line; so it does in restricted mode for every command but \unrestrict.
func commandEnd(line []byte, restricted bool) (name []byte, end int) {
	i := 1
	for i < len(line) && !isSpace(line[i]) && line[i] != '\\' {
		i++
	}
	name = line[1:i]
	switch string(name) {
	case "", "!", "copy", "h", "help", "ef", "ev", "sf", "sv":
		return name, len(line)
	case "unrestrict":
	default:
		if restricted {
			return name, len(line)
		}
	}
	var open byte
	for ; i < len(line); i++ {
		switch c := line[i]; {
		case open == 0 && c == '\\':
			if i+1 < len(line) && line[i+1] == '\\' {
				i += 2
			}
			return name, i
		case open == 0 && (c == '\'' || c == '"' || c == '`'):
			open = c
		case open == '\'' && c == '\\':
			i++
		case c == open:
			open = 0
		}
	}
	return name, len(line)
}

// run does what a meta-command changes in the lexer.
func (l *lexer) run(name string, text []byte) {
	if l.key != "" && name != "unrestrict" {
		return
	}
	switch name {
	case "restrict":
		if args := bytes.Fields(text); len(args) > 1 {
			l.key = string(args[1])
			l.keys += l.key + " "
			if over := len(l.keys) - maxKeys; over > 0 {
				_, l.keys, _ = strings.Cut(l.keys[over-1:], " ")
			}
		}
	case "unrestrict":
		if args := bytes.Fields(text); len(args) > 1 && string(args[1]) == l.key {
			l.key = ""
		}
	case "c", "connect":
		l.backslashes, l.width = false, nil
	case "g", "gx", "gset", "gexec", "gdesc", "crosstabview", "watch", "sendpipeline", "r", "reset":
		l.resetStatement() // the statement was sent or dropped
		l.copies = 0
	}
}

// rows finds the end of a run of whole rows, of a piece of a row, or of the
// block. Its end is \. alone on a line (handleCopyIn in copy.c).
func (l *lexer) rows(buf []byte, last bool, limit int) (Item, bool) {
	if !l.midRow {
		if n, ok := copyEnd(buf); ok && n > 0 {
			l.copying--
			return l.item(CopyEnd, buf[:n], false), true
		} else if !ok && !last {
			return Item{}, false
		}
	}
	n := -1
	for from := l.pos; ; {
		i := bytes.Index(buf[from:], []byte("\n\\."))
		if i < 0 {
			break
		}
		from += i + 1
		if end, _ := copyEnd(buf[from:]); end > 0 {
			n = from
			break
		}
	}
	if n < 0 {
		n = bytes.LastIndexByte(buf[l.pos:], '\n') + 1
		if n > 0 {
			n += l.pos
		}
	}
	if n > 0 {
		l.midRow = false
		return l.item(CopyRows, buf[:n], false), true
	}
	if last || len(buf) >= limit {
		l.midRow = true
		return l.item(CopyRows, buf, true), true
	}
	l.pos = len(buf)
	return Item{}, false
}

// copyEnd returns the length of the line that ends COPY data, if buf begins
// with it, or reports false if buf is too short to know.
func copyEnd(buf []byte) (int, bool) {
	for _, end := range [...]string{"\\.\n", "\\.\r\n"} {
		if bytes.HasPrefix(buf, []byte(end)) {
			return len(end), true
		}
		if strings.HasPrefix(end, string(buf[:min(len(buf), len(end))])) {
			return 0, false
		}
	}
	return 0, true
}

// class says what a byte can begin outside quotes.
type class uint8

const (
	ordinary class = iota
	letter
	quote
	doubleQuote
	dollar
	dash
	slash
	colon
	paren
	semicolon
	backslash
)

var classes = func() (t [256]class) {
	for c := range t {
		if isTagStart(byte(c)) {
			t[c] = letter
		}
	}
	t['\''], t['"'], t['$'], t['-'], t['/'], t[':'] = quote, doubleQuote, dollar, dash, slash, colon
	t['('], t[')'], t[';'], t['\\'] = paren, paren, semicolon, backslash
	return t
}()

// isTagStart is ident_start and dolq_start of psqlscan.l.
func isTagStart(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_' || c >= 0x80
}

// isTag is dolq_cont and variable_char; ident_cont has the dollar besides.
func isTag(c byte) bool { return isTagStart(c) || '0' <= c && c <= '9' }

// isSpace is space of psqlscan.l, which has the vertical tab since version 16.
func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// charLengths is a client encoding in which ASCII bytes, the backslash among
// them, occur within characters; psql hides these from its lexer
// (psqlscan_prepare_buffer). Only clients may have such encodings.
type charLengths func(first, second byte) int

// of returns the length of the character that buf begins with, which may be
// beyond the end of buf. No character goes over the end of a line.
func (f charLengths) of(buf []byte) int {
	if len(buf) < 2 {
		return 2
	}
	n := f(buf[0], buf[1])
	if i := bytes.IndexByte(buf[:min(n, len(buf))], '\n'); i >= 0 {
		return i
	}
	return n
}

// unsafeEncoding finds the lengths of characters, as pg_encoding_mblen in
// wchar.c has them. It returns nil for encodings that servers may have.
func unsafeEncoding(name string) charLengths {
	var b []byte
	for _, c := range []byte(strings.ToLower(name)) {
		if isTag(c) && c != '_' {
			b = append(b, c)
		}
	}
	switch string(b) {
	case "sjis", "shiftjis", "mskanji", "win932", "windows932", "shiftjis2004", "sjis2004":
		return func(c, _ byte) int {
			if 0xA1 <= c && c <= 0xDF {
				return 1
			}
			return 2
		}
	case "big5", "win950", "windows950", "gbk", "win936", "windows936", "uhc", "win949", "windows949":
		return func(_, _ byte) int { return 2 }
	case "johab":
		return func(c, _ byte) int {
			if c == 0x8F {
				return 3
			}
			return 2
		}
	case "gb18030":
		return func(_, second byte) int {
			if '0' <= second && second <= '9' {
				return 4
			}
			return 2
		}
	}
	return nil
}
