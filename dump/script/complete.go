package script

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
)

// Kinds of dumps, by the header that pg_dumpall and pg_dump write.
const (
	ClusterDump  = "cluster"
	DatabaseDump = "database"
)

// ErrCutShort says that a script does not end as a whole dump does.
var ErrCutShort = errors.New("the dump is not complete")

var titles = map[string]string{
	ClusterDump:  "-- PostgreSQL database cluster dump",
	DatabaseDump: "-- PostgreSQL database dump",
}

// Completeness finds out from its items whether a script is a whole dump. The
// zero Completeness is ready for the first one.
type Completeness struct {
	kind     string
	begun    bool // a statement came: what comes now is no header any more
	complete bool // the completion comment came, and nothing after it
}

// Add takes the next item.
func (c *Completeness) Add(it Item) {
	switch it.Kind {
	case Blank:
		for line := range commentLines(it) {
			if !c.begun && c.kind == "" {
				for kind, title := range titles {
					if string(line) == title {
						c.kind = kind
					}
				}
			} else if title, ok := titles[c.kind]; ok && string(line) == title+" complete" {
				c.complete = true
			}
		}
	case Meta:
		if bytes.HasPrefix(it.Text, []byte(`\restrict`)) && !c.begun || bytes.HasPrefix(it.Text, []byte(`\unrestrict`)) {
			return
		}
		c.begun, c.complete = true, false
	default:
		c.begun, c.complete = true, false
	}
}

// Kind returns [ClusterDump] or [DatabaseDump], by the dump's header, if its
// completion comment stands outside statements and COPY data with nothing behind
// it but comments and an \unrestrict. Otherwise the error matches [ErrCutShort].
func (c *Completeness) Kind() (string, error) {
	if c.kind == "" {
		return "", fmt.Errorf("%w: it does not begin as the output of pg_dumpall or pg_dump does", ErrCutShort)
	}
	if !c.complete {
		return "", fmt.Errorf("%w: it does not end in %q", ErrCutShort, titles[c.kind]+" complete")
	}
	return c.kind, nil
}

// commentLines yields the lines in a [Blank] that are nothing but a comment,
// with their offsets. A comment on the line of a statement is not one.
func commentLines(it Item) iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		at := it.Offset
		for line := range bytes.Lines(it.Text) {
			if bytes.HasPrefix(line, []byte("--")) && !yield(bytes.TrimRight(line, "\r\n"), at) {
				return
			}
			at += int64(len(line))
		}
	}
}
