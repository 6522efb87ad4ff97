package postgres

// Reading a database back in the form in which pg_dump writes it.

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/jackc/pgx/v5/pgconn"

	"encdump/dump/script"
)

// ErrMissing says that a database lacks what was looked for in it.
var ErrMissing = errors.New("missing")

// TableReader reads what a database holds as pg_dump does, on a connection of its own. It is for one goroutine at a time.
type TableReader struct {
	conn *pgconn.PgConn
}

// NewTableReader connects to a database. Names that are given to the reader, and the rows that it reads, are in the
// encoding, that of the database where it is empty. Settings are those that the dump was made with, beside pg_dump's own.
// The caller closes the reader.
func (s *Server) NewTableReader(ctx context.Context, database, encoding string, settings map[string]string) (*TableReader, error) {
	conn, err := s.Open(ctx, database)
	if err != nil {
		return nil, err
	}
	// As setup_connection in pg_dump.c, whatever roles and databases set.
	set := []string{
		"SET search_path = ''", "SET DateStyle = ISO", "SET IntervalStyle = postgres", "SET extra_float_digits = 3", "SET synchronize_seqscans = off",
		"SET statement_timeout = 0", "SET lock_timeout = 0", "SET idle_in_transaction_session_timeout = 0", "SET row_security = off",
		"SET default_transaction_read_only = on", "SET standard_conforming_strings = on",
	}
	if encoding == "" {
		set = append(set, "SELECT pg_catalog.set_config('client_encoding', pg_catalog.getdatabaseencoding(), false)")
	} else {
		set = append(set, "SET client_encoding = "+QuoteLiteral(encoding))
	}
	for name, value := range settings {
		set = append(set, "SET "+quoteIdent(name)+" = "+QuoteLiteral(value))
	}
	for _, sql := range set {
		if err := runSQL(ctx, conn, sql); err != nil {
			closeConn(conn)
			return nil, fmt.Errorf("%s: %w", sql, err)
		}
	}
	return &TableReader{conn}, nil
}

// Close ends the connection.
func (r *TableReader) Close() { closeConn(r.conn) }

// Table counts the rows of a table and sums up their fingerprints, as they would be in a dump with these columns. The
// error matches ErrMissing where there is no such table.
func (r *TableReader) Table(ctx context.Context, schema, table string, columns []string) (rows int64, sum script.Fingerprint, err error) {
	// Of a table of an extension, pg_dump takes the rows that the extension calls its users'.
	row, err := queryRow(ctx, r.conn, `SELECT c.relkind, coalesce((SELECT cfg.condition FROM pg_catalog.pg_extension e,
			LATERAL ROWS FROM (unnest(e.extconfig), unnest(e.extcondition)) AS cfg (class, condition) WHERE cfg.class = c.oid), '')
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = `+QuoteLiteral(schema)+` AND c.relname = `+QuoteLiteral(table))
	if err != nil {
		return 0, 0, err
	}
	if row == nil {
		return 0, 0, ErrMissing
	}
	name := quoteIdent(schema) + "." + quoteIdent(table)
	var quoted []string
	for _, c := range columns {
		quoted = append(quoted, quoteIdent(c))
	}
	list := strings.Join(quoted, ", ")
	from := name
	switch kind, condition := row.at(0), row.at(1); {
	case kind == "r" && condition == "":
		if list != "" {
			from += " (" + list + ")"
		}
	case kind == "r":
		from = "(SELECT " + list + " FROM ONLY " + name + " " + condition + ")"
	default: // a partitioned table, of --load-via-partition-root, or a foreign one
		from = "(SELECT " + list + " FROM " + name + ")"
	}
	var s rowSummer
	_, err = r.conn.CopyTo(ctx, &s, "COPY "+from+" TO STDOUT")
	return s.rows, s.sum, err
}

// rowSummer counts and sums up rows in COPY text format.
type rowSummer struct {
	rows    int64
	sum     script.Fingerprint
	partial []byte // of a row that came in pieces
}

func (s *rowSummer) Write(p []byte) (int, error) {
	n := len(p)
	end := bytes.LastIndexByte(p, '\n') + 1
	if len(s.partial) > 0 && end > 0 {
		first := bytes.IndexByte(p, '\n') + 1
		s.add(append(s.partial, p[:first]...))
		s.partial, p, end = s.partial[:0], p[first:], end-first
	}
	s.add(p[:end])
	s.partial = append(s.partial, p[end:]...)
	return n, nil
}

func (s *rowSummer) add(run []byte) {
	rows, sum := script.Rows(run)
	s.rows += rows
	s.sum += sum
}

// Sequence returns the state of a sequence, as setval takes it. The error matches ErrMissing where there is none.
func (r *TableReader) Sequence(ctx context.Context, schema, name string) (value int64, called bool, err error) {
	row, err := queryRow(ctx, r.conn, "SELECT last_value, is_called FROM "+quoteIdent(schema)+"."+quoteIdent(name))
	var e *pgconn.PgError
	if errors.As(err, &e) && (e.Code == "42P01" || e.Code == "3F000") || err == nil && row == nil {
		return 0, false, ErrMissing
	}
	if err != nil {
		return 0, false, err
	}
	value, err = strconv.ParseInt(row.at(0), 10, 64)
	return value, row.at(1) == "t", err
}

// LargeObjects sums up all large objects, page by page, since a whole one need not fit into a value. It needs a superuser.
func (r *TableReader) LargeObjects(ctx context.Context) (script.LargeObjects, error) {
	row, err := queryRow(ctx, r.conn, "SELECT pg_catalog.current_setting('block_size')")
	if err != nil {
		return script.LargeObjects{}, err
	}
	block, err := strconv.ParseInt(row.at(0), 10, 64)
	if err != nil {
		return script.LargeObjects{}, err
	}
	s := objectSummer{page: block / 4} // LOBLKSIZE in storage/large_object.h
	_, err = r.conn.CopyTo(ctx, &s, `COPY (SELECT m.oid, l.pageno, pg_catalog.encode(l.data, 'hex')
		FROM pg_catalog.pg_largeobject_metadata m LEFT JOIN pg_catalog.pg_largeobject l ON l.loid = m.oid ORDER BY 1, 2) TO STDOUT`)
	if err == nil {
		err = s.err
	}
	s.end()
	return s.total, err
}

// objectSummer takes rows of large objects' pages, one in each Write, as the protocol brings them.
type objectSummer struct {
	page   int64
	total  script.LargeObjects
	oid    string
	digest *xxhash.Digest // of the object under way; nil for none
	size   int64          // of it so far
	err    error
}

func (s *objectSummer) Write(p []byte) (int, error) {
	fields := strings.Split(strings.TrimSuffix(string(p), "\n"), "\t")
	if len(fields) != 3 {
		s.err = fmt.Errorf("a page of a large object has %d columns", len(fields))
		return len(p), nil
	}
	if s.digest == nil || fields[0] != s.oid {
		s.end()
		s.oid, s.digest, s.size = fields[0], xxhash.New(), 0
		s.digest.WriteString(s.oid + "\t")
	}
	if fields[1] == `\N` {
		return len(p), nil // without contents
	}
	n, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		s.err = err
		return len(p), nil
	}
	// Pages that were never written read as zeros, and so does the rest of a short one.
	for zeros := []byte(strings.Repeat("0", int(2*s.page))); s.size < n*s.page; {
		k := min(n*s.page-s.size, s.page)
		s.digest.Write(zeros[:2*k])
		s.size += k
	}
	s.digest.WriteString(fields[2])
	s.size += int64(hex.DecodedLen(len(fields[2])))
	return len(p), nil
}

func (s *objectSummer) end() {
	if s.digest != nil {
		s.total.Objects++
		s.total.Bytes += script.Number(s.size)
		s.total.Fingerprint += script.Fingerprint(s.digest.Sum64())
		s.digest = nil
	}
}

// MissingPart says what a server lacks for a statement that failed there: a library, a locale, room. ok is false where the
// failure is the statement's own. The hint is what to do about it.
func MissingPart(statement string, err error) (hint string, ok bool) {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return "", err != nil
	}
	class := e.Code[:min(2, len(e.Code))]
	switch {
	case strings.Contains(e.Message, "shared_preload_libraries"):
		return "restore into a server that has the library in shared_preload_libraries, with --into", true
	case strings.Contains(e.Message+e.Detail, "bootstrap"):
		return "the superuser that initdb made has another name at the source: restore into a server made with that name (initdb -U), with --into", true
	case e.Code == "53100":
		return "make room, or name a directory with room with --temp-dir", true
	case e.Code == "0A000" || e.Code == "58P01":
		return "install on this machine what the statement needs: an extension's package, or a server built with the feature", true
	case e.Code == "42704" && strings.HasPrefix(e.Message, "collation "):
		return "install the locale that the collation is of on this machine (locale-gen), or name a server that has it with --into", true
	case (strings.HasPrefix(statement, "CREATE DATABASE") || strings.HasPrefix(statement, "CREATE COLLATION")) && strings.Contains(e.Message, "locale"):
		return "install the locale on this machine (locale-gen), or name a server that has it with --into", true
	case slices.Contains([]string{"08", "53", "57", "58"}, class):
		return "the server or its machine could not do it: " + e.Message, true
	}
	return "", false
}

// IsPermission tells whether a server refused something for want of a privilege.
func IsPermission(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == "42501"
}
