// Package script knows the language of psql's scripts, as pg_dumpall and
// pg_dump of 9.6 to 18 write them with any of their options: where statements
// and blocks of COPY data begin and end, what they hold, whether a script is
// whole, and how it must end for psql to fail.
//
// Names of files in comments are those of PostgreSQL's sources: psqlscan.l of
// src/fe_utils, the others of src/bin/psql and src/bin/pg_dump.
//
// What pg_dump does not write is not followed into its last corner: \if, \copy
// with data in the script, variables that change the text, and COPY in binary
// format.
package script

import (
	"errors"
	"io"
)

// Kind is the kind of an [Item].
type Kind uint8

const (
	// Blank is white space and comments of two dashes between statements.
	Blank Kind = iota
	// Statement is a statement with its semicolon. As for psql, a comment of
	// slash and asterisk before it is a part of it.
	Statement
	// Meta is a meta-command, with the newline behind it unless it stands within a
	// statement. One like \g ends the statement before it.
	Meta
	// CopyRows are rows of COPY data, with their newlines.
	CopyRows
	// CopyEnd is the line \. that ends COPY data.
	CopyEnd
)

func (k Kind) String() string {
	return [...]string{"Blank", "Statement", "Meta", "CopyRows", "CopyEnd"}[k]
}

// Item is a part of a script. The texts of all items one after another are the
// script, whatever it is.
type Item struct {
	Kind Kind
	// More says that the item ends within a statement, within a meta-command or
	// within a row, and that the next item of the same kind continues it: for the
	// size of it, because of a meta-command within a statement, or, in the last item,
	// because the script is cut there.
	More   bool
	Offset int64
	// Text is valid, and must be left unchanged, until the scanner is called again.
	Text []byte
}

// maxItem bounds the memory of a scanner: a larger statement, row or comment is
// given in pieces.
const maxItem = 16 << 20

// Scanner reads a script from an [io.Reader].
type Scanner struct {
	r          io.Reader
	lex        lexer
	limit      int
	buf        []byte
	start, end int // of what was read and not given
	err        error
}

// NewScanner makes a scanner that reads from r.
func NewScanner(r io.Reader) *Scanner { return &Scanner{r: r, limit: maxItem} }

// Next returns the next item. The error is io.EOF at the end of the script, or
// that of the reader, of which it comes before an item that it cuts.
func (s *Scanner) Next() (Item, error) {
	for {
		if it, ok := s.lex.next(s.buf[s.start:s.end], s.err == io.EOF, s.limit); ok {
			s.start += len(it.Text)
			return it, nil
		}
		if s.err != nil {
			return Item{}, s.err
		}
		s.fill()
	}
}

// State tells where the last item left the lexer: at the end of the script,
// what is unfinished.
func (s *Scanner) State() State { return s.lex.State }

// fill reads more behind what is there.
func (s *Scanner) fill() {
	if s.start > 0 {
		s.end = copy(s.buf, s.buf[s.start:s.end])
		s.start = 0
	}
	if s.end == len(s.buf) {
		s.buf = append(s.buf, make([]byte, max(256<<10, len(s.buf)))...)
	}
	for range 100 {
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		s.err = err
		if n > 0 || err != nil {
			return
		}
	}
	s.err = io.ErrNoProgress
}

// Feeder is a scanner of a script that passes by: it is written to. It copies
// only items that several writes share.
type Feeder struct {
	lex   lexer
	limit int
	emit  func(Item) error
	held  []byte // of the item that is not at its end
	after State  // the last item
	err   error
}

// NewFeeder makes a scanner that calls emit with each item, in the course of
// Write and Close. An error of emit ends it.
func NewFeeder(emit func(Item) error) *Feeder { return &Feeder{emit: emit, limit: maxItem} }

// Write takes the next bytes of the script. Texts of items point into p, or,
// where they began in an earlier write, into memory of the feeder.
func (f *Feeder) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && f.err == nil {
		if len(f.held) == 0 {
			rest := f.items(p, false)
			f.held = append(f.held, rest...)
			break
		}
		// The end of the item is looked for in as much of p as there is of it.
		old := len(f.held)
		k := min(len(p), max(old, 4<<10))
		f.held = append(f.held, p[:k]...)
		it, ok := f.lex.next(f.held, false, f.limit)
		if !ok {
			p = p[k:]
			continue
		}
		f.give(it)
		if over := len(it.Text) - old; over >= 0 {
			p = p[over:]
			f.held = f.held[:0]
		} else {
			f.held = append(f.held[:0], f.held[len(it.Text):old]...)
		}
		if cap(f.held) > 1<<20 && len(f.held) == 0 {
			f.held = nil
		}
	}
	if f.err != nil {
		return 0, f.err
	}
	return n, nil
}

// Close gives what is left: the script ends here.
func (f *Feeder) Close() error {
	if f.err != nil {
		return f.err
	}
	f.items(f.held, true)
	f.held = nil
	if err := f.err; err != nil {
		return err
	}
	f.err = errClosed
	return nil
}

var errClosed = errors.New("script: written after its end")

// State tells where the last item that was given left the lexer.
func (f *Feeder) State() State { return f.after }

// items gives all items that end in p, and returns the rest.
func (f *Feeder) items(p []byte, last bool) (rest []byte) {
	for f.err == nil {
		it, ok := f.lex.next(p, last, f.limit)
		if !ok {
			break
		}
		p = p[len(it.Text):]
		f.give(it)
	}
	return p
}

func (f *Feeder) give(it Item) {
	f.after = f.lex.State
	f.err = f.emit(it)
}
