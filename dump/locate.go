package dump

import (
	"context"
	"errors"
	"fmt"

	"encdump/dump/archive"
	"encdump/dump/script"
)

// Loss is what damage reaches of a dump.
type Loss struct {
	Plain  script.Range // of the SQL
	Tables []LostTable
	// Other tells that there is SQL in the range beside the rows of these tables.
	Other bool
}

// LostTable is a table of which rows are in a range that is lost.
type LostTable struct {
	Database, Schema, Table script.Name
	Range                   script.Range // of the plain bytes of its rows
	Rows                    int64        // that the table has in the dump
}

// String is schema and table with the database.
func (t *LostTable) String() string {
	return fmt.Sprintf("%s.%s of database %q", script.QuoteName(string(t.Schema)), script.QuoteName(string(t.Table)), string(t.Database))
}

// locate finds out what the damage reaches. Without a key or an index nothing is known about that.
func locate(ctx context.Context, b *archive.Backup, r *VerifyReport) error {
	if len(r.Damage) == 0 || !b.Authenticated {
		return nil
	}
	toc, err := b.TOC(ctx)
	var damage *archive.DamageError
	if errors.As(err, &damage) || err == nil && toc == nil {
		return nil // is damaged itself, as has been said
	}
	if err != nil {
		return err
	}
	for _, p := range b.Lost(toc, r.Damage) {
		r.Lost = append(r.Lost, lossOf(toc, p))
	}
	return nil
}

// lossOf finds the tables in a range of the plain bytes.
func lossOf(toc *archive.TOC, p script.Range) Loss {
	l := Loss{Plain: p}
	left := p.Length // that are not rows
	if toc.Contents == nil {
		l.Other = true
		return l
	}
	for _, d := range toc.Contents.Databases {
		for _, c := range d.Copies {
			from, to := max(c.Data.Offset, p.Offset), min(c.Data.Offset+c.Data.Length, p.Offset+p.Length)
			if from < to {
				left -= to - from
				l.Tables = append(l.Tables, LostTable{d.Name, c.Schema, c.Table, script.Range{Offset: from, Length: to - from}, int64(c.Rows)})
			}
		}
	}
	l.Other = left > 0
	return l
}
