package script

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Ending returns what must follow a script that is cut in the state s for psql
// to fail: its status is not 0, whatever ON_ERROR_STOP is, no row of COPY data
// that are open stays, and a statement that is open does not run. The reason is
// the text of the error that psql shows.
//
// psql may be in another state than its input. After a COPY that fails, with
// ON_ERROR_STOP off, it takes the rows for SQL, and with these any quote may
// begin. So UnknownEnding follows.
func Ending(s State, reason string) []byte {
	var b bytes.Buffer
	b.WriteString("\n") // ends a comment, a meta-command, a row
	switch {
	case s.copying > 0:
	case s.within == plainString || s.within == escapeString:
		b.WriteString("'\n")
	case s.within == quotedName:
		b.WriteString("\"\n")
	case s.within == dollarString:
		b.WriteString(s.tag + "\n")
	case s.within == blockComment:
		b.WriteString(strings.Repeat("*/\n", s.nested+1))
	}
	keys := strings.Fields(s.keys)
	failing(&b, keys, "DO $dump$BEGIN RAISE EXCEPTION USING MESSAGE = "+literal(reason)+"; END$dump$")
	b.Write(UnknownEnding(keys, nil, reason))
	return b.Bytes()
}

// UnknownEnding is the ending for a script whose state is not known: it repeats
// itself behind each opener that may swallow it, those of dollar quotes with the
// given tags (with their dollars) among them, besides those that pg_dump makes.
// The keys are those of all \restrict: psql may have missed any \unrestrict.
//
// It contains nothing that opens or closes anything where it is swallowed, so
// that the reason is shown as the name of a column, and shortened to 63 bytes.
func UnknownEnding(keys, tags []string, reason string) []byte {
	statement := "SELECT " + identifier(reason)
	var b bytes.Buffer
	b.WriteString("\n")
	failing(&b, keys, statement)
	openers := []string{"'", "\"", strings.Repeat("*/ ", 64), "$$", "$_$"}
	for n := range 7 { // appendStringLiteralDQ in string_utils.c
		openers = append(openers, "$_"+strings.Repeat("X", n+1)+"$")
	}
	for _, opener := range append(openers, tags...) {
		b.WriteString(opener + "\n")
		failing(&b, keys, statement)
	}
	return b.Bytes()
}

// failing writes what fails if psql is at the beginning of a line, and either in
// COPY data or outside quotes and comments.
//
//   - A table has at most 1,600 columns, so that COPY fails at the row of tabs, even
//     where \. ends it. Elsewhere the row is white space, and \. an error.
//   - In restricted mode psql obeys \unrestrict alone.
//   - \r forgets what there is of a statement, with its parentheses and BEGINs.
//   - ON_ERROR_STOP holds from the next line on. Whatever fails then, be it only
//     because the transaction was aborted, ends psql with status 3.
func failing(b *bytes.Buffer, keys []string, statement string) {
	b.WriteString(strings.Repeat("\t", 1700) + "\n\\.\n")
	for _, key := range keys {
		b.WriteString("\\unrestrict " + key + "\n")
	}
	b.WriteString("\\r\n\\set ON_ERROR_STOP on\n" + statement + ";\n")
}

// literal quotes a text for SQL in such a way that settings and encodings make
// no difference.
func literal(s string) string {
	var b strings.Builder
	b.WriteString("E'")
	for _, c := range s {
		switch {
		case c == '\'' || c == '\\':
			b.WriteRune(c)
			b.WriteRune(c)
		case c == '$' || c < ' ' || c > '~':
			b.WriteByte('?')
		default:
			b.WriteRune(c)
		}
	}
	b.WriteString("'")
	return b.String()
}

// identifier makes an unquoted identifier of a text.
func identifier(s string) string {
	b := []byte("failed_")
	for _, c := range []byte(s) {
		if c >= 0x80 || !isTag(c) {
			c = '_'
		}
		if c != '_' || b[len(b)-1] != '_' {
			b = append(b, c)
		}
	}
	return strings.TrimRight(string(b[:min(len(b), 63)]), "_")
}

// Guard passes a script on to psql in such portions that what psql has got can
// be ended: statements whole, COPY data in whole rows. Of these, only those that
// are too large to hold are passed in pieces. Its memory is bounded.
type Guard struct {
	w      io.Writer
	feeder *Feeder
	base   int64 // offset of the Write under way
	direct int64 // up to here its bytes were passed
	until  int64 // up to here they may be
	tags   tagSet
	err    error
}

// NewGuard makes a guard that passes a script on to w.
func NewGuard(w io.Writer) *Guard {
	g := &Guard{w: w}
	g.feeder = NewFeeder(g.item)
	return g
}

// State tells the state of what was passed on.
func (g *Guard) State() State { return g.feeder.State() }

// Write takes the next bytes of the script.
func (g *Guard) Write(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	g.direct = g.base
	g.until = g.base
	if _, err := g.feeder.Write(p); err != nil {
		g.err = err
		return 0, err
	}
	// Items next to each other go in one write.
	if err := g.pass(p[g.direct-g.base : g.until-g.base]); err != nil {
		return 0, err
	}
	g.base += int64(len(p))
	return len(p), nil
}

// item takes an item that may be passed on: one that began in an earlier write
// is passed at once.
func (g *Guard) item(it Item) error {
	if it.Kind == CopyRows {
		g.tags.add(it.Text)
	}
	g.until = max(g.base, it.Offset+int64(len(it.Text)))
	if it.Offset < g.base {
		g.direct = g.until
		return g.pass(it.Text)
	}
	return nil
}

func (g *Guard) pass(p []byte) error {
	if len(p) == 0 {
		return g.err
	}
	_, err := g.w.Write(p)
	g.err = err
	return err
}

// Close passes on the rest: the script ends well. It leaves the writer open.
func (g *Guard) Close() error {
	if g.err != nil {
		return g.err
	}
	if g.err = g.feeder.Close(); g.err != nil {
		return g.err
	}
	g.err = errClosed
	return nil
}

// Fail ends the script so that psql fails and shows the reason, and drops what
// was not passed on. It leaves the writer open. It does nothing after an error
// of the writer.
func (g *Guard) Fail(reason string) error {
	if g.err != nil {
		return g.err
	}
	s := g.State()
	ending := Ending(s, reason)
	if len(g.tags.list) > 0 {
		ending = append(ending, UnknownEnding(strings.Fields(s.keys), g.tags.list, reason)...)
	}
	if err := g.pass(ending); err != nil {
		return fmt.Errorf("end the script: %w", err)
	}
	g.err = errFailed
	return nil
}

var errFailed = errors.New("script: written after Fail")

// tagSet remembers what in rows looks like the beginning of a dollar quote.
type tagSet struct{ list []string }

// maxTags bounds it. Where rows are taken for SQL, the first tag that does not
// come again is the one that stays open.
const maxTags = 256

func (t *tagSet) add(rows []byte) {
	for len(t.list) < maxTags {
		i := bytes.IndexByte(rows, '$')
		if i < 0 {
			return
		}
		rows = rows[i:]
		j := 1
		for j < len(rows) && isTag(rows[j]) {
			j++
		}
		if j < len(rows) && rows[j] == '$' && j <= 64 && (j == 1 || isTagStart(rows[1])) {
			t.one(rows[:j+1])
		}
		rows = rows[j:]
	}
}

func (t *tagSet) one(tag []byte) {
	for _, known := range t.list {
		if known == string(tag) {
			return
		}
	}
	t.list = append(t.list, string(tag))
}
