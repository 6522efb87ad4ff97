package archive

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrCutShort says that a stream of SQL does not end as a whole dump does.
var ErrCutShort = errors.New("the dump is not complete")

// edge is how much is kept of the beginning and of the end of a stream: enough
// for the header, and for the completion comment with an \unrestrict behind it.
const edge = 8 << 10

// edges keeps the first and the last bytes of a stream.
type edges struct {
	head, tail []byte
}

func (e *edges) write(p []byte) {
	if room := edge - len(e.head); room > 0 {
		e.head = append(e.head, p[:min(room, len(p))]...)
	}
	if len(p) >= edge {
		e.tail = append(e.tail[:0], p[len(p)-edge:]...)
		return
	}
	if over := len(e.tail) + len(p) - edge; over > 0 {
		e.tail = append(e.tail[:0], e.tail[over:]...)
	}
	e.tail = append(e.tail, p...)
}

// kind returns [KindCluster] or [KindDatabase], by the header that pg_dumpall
// and pg_dump write, once it stands that the dump is complete: their completion
// comment is the last thing in it but for an \unrestrict, comments and white
// space. Otherwise the error matches [ErrCutShort].
func (e *edges) kind() (string, error) {
	for _, k := range []struct{ kind, title string }{
		{KindCluster, "PostgreSQL database cluster dump"},
		{KindDatabase, "PostgreSQL database dump"},
	} {
		if !lineIn(e.head, "-- "+k.title) {
			continue
		}
		if !endsWith(e.tail, "-- "+k.title+" complete") {
			return "", fmt.Errorf("%w: it does not end in \"-- %s complete\"", ErrCutShort, k.title)
		}
		return k.kind, nil
	}
	return "", fmt.Errorf("%w: it does not begin as the output of pg_dumpall or pg_dump does", ErrCutShort)
}

// lineIn tells whether one of the comment lines that a stream begins with is line.
func lineIn(head []byte, line string) bool {
	for l := range bytes.Lines(head) {
		l = bytes.TrimRight(l, "\r\n")
		if string(l) == line {
			return true
		}
		if len(l) > 0 && !bytes.HasPrefix(l, []byte("--")) && !bytes.HasPrefix(l, []byte(`\restrict `)) {
			return false
		}
	}
	return false
}

// endsWith tells whether nothing but comments, \unrestrict and white space
// stands after the last such line.
func endsWith(tail []byte, line string) bool {
	rest := tail
	for len(rest) > 0 {
		i := bytes.LastIndexByte(bytes.TrimSuffix(rest, []byte("\n")), '\n') + 1
		l := bytes.TrimRight(rest[i:], "\r\n")
		switch {
		case string(l) == line:
			return true
		case len(l) == 0, bytes.HasPrefix(l, []byte("--")), bytes.HasPrefix(l, []byte(`\unrestrict `)):
		default:
			return false
		}
		rest = rest[:i]
	}
	return false
}
