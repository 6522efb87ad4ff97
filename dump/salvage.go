package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"encdump/dump/archive"
	"encdump/dump/script"
)

// SalvageReport tells what a salvage has left out.
type SalvageReport struct {
	Damage  []error // each names its object
	Missing []Missing
}

// Missing is what is missing of a table.
type Missing struct {
	Database, Schema, Table script.Name
	Rows, Of                int64          // that are missing, and that the dump has
	Lost                    []script.Range // of the plain bytes of its rows
}

// String says it in a line.
func (m *Missing) String() string {
	var lost []string
	for _, r := range m.Lost {
		lost = append(lost, fmt.Sprintf("%d to %d", r.Offset, r.End()-1))
	}
	name := script.QuoteName(string(m.Schema)) + "." + script.QuoteName(string(m.Table))
	return fmt.Sprintf("%d of %d rows of table %q of database %q, in bytes %s of the SQL", m.Rows, m.Of, name, string(m.Database), strings.Join(lost, ", "))
}

// Salvage is Restore of a damaged backup without what the damage has reached: rows of tables, since all other SQL stands in the
// index too. The script is valid and ends well; comments in it, and the report, say what is missing. As ever, only
// bytes from segments with the right digests are released. So it needs metadata, digests and index to be whole, and an
// index that holds the SQL; otherwise the error is a *archive.DamageError and nothing was written.
func Salvage(ctx context.Context, b *archive.Backup, w io.Writer, o archive.ReadOptions, p Progress) (*SalvageReport, error) {
	if err := b.Usable(false); err != nil {
		return nil, err
	}
	p = orSilent(p)
	p.Start("checking digests", b.StoredSize())
	defer p.Done()
	o.AllowUnauthenticated, o.SkipDamaged, o.Progress = false, true, adder(p)
	r := &SalvageReport{Damage: b.CheckObjects()}
	found, err := b.Digests(ctx, &o)
	if err != nil {
		return nil, err
	}
	r.Damage = append(r.Damage, found...)
	stream := slices.ContainsFunc(r.Damage, func(err error) bool {
		var e *archive.DamageError
		m := b.Metadata
		return errors.As(err, &e) && e.Object != m.Sums.Name && (m.TOC == nil || e.Object != m.TOC.Name)
	})
	if !stream { // digests or index may be damaged, which Restore knows to judge
		return &SalvageReport{}, Restore(ctx, b, w, archive.ReadOptions{Jobs: o.Jobs, Connections: o.Connections}, p)
	}
	toc, err := b.TOC(ctx)
	if err == nil && (toc == nil || toc.Outline == nil || toc.Contents == nil) {
		err = &archive.DamageError{Object: b.ID.String(), Reason: "its index does not hold the SQL beside the rows, so nothing can be salvaged from behind the damage", Err: r.Damage[0]}
	}
	if err != nil {
		return nil, err
	}
	ranges, err := b.Ranges(ctx, toc, &o)
	if err != nil {
		return nil, err
	}
	s := &salvage{ctx: ctx, ranges: ranges, lost: b.Lost(toc, r.Damage), blocks: map[script.Number]block{}}
	for i, d := range toc.Contents.Databases {
		for j, c := range d.Copies {
			s.blocks[c.Data.Offset] = block{&toc.Contents.Databases[i].Name, &d.Copies[j]}
		}
	}
	p.Start("restoring", -1)
	err = guarded(w, func(g *script.Guard) error {
		if err := s.write(g, toc.Outline); err != nil {
			return err
		}
		return g.Close()
	})
	r.Missing = s.missing
	return r, err
}

// salvage is one under way.
type salvage struct {
	ctx     context.Context
	ranges  *archive.Ranges
	lost    []script.Range
	blocks  map[script.Number]block // by where their rows begin
	missing []Missing
}

type block struct {
	database *script.Name
	*script.Copy
}

// whole returns the parts of a block's rows that are whole rows, and not lost; and what of it is lost.
func (s *salvage) whole(rows script.Range) (good, lost []script.Range, err error) {
	at := int64(rows.Offset)
	add := func(end int64, cut bool) error {
		from, to := at, end
		if from < to && len(lost) > 0 { // the row that it begins in may have begun before
			if from, err = s.firstRow(from, to); err != nil {
				return err
			}
		}
		if from < to && cut {
			if to, err = s.lastRow(from, to); err != nil {
				return err
			}
		}
		if from < to {
			good = append(good, script.Range{Offset: script.Number(from), Length: script.Number(to - from)})
		}
		return nil
	}
	for _, l := range s.lost {
		from, to := max(int64(l.Offset), int64(rows.Offset)), min(l.End(), rows.End())
		if from >= to {
			continue
		}
		if err := add(from, true); err != nil {
			return nil, nil, err
		}
		lost = append(lost, script.Range{Offset: script.Number(from), Length: script.Number(to - from)})
		at = to
	}
	return good, lost, add(rows.End(), false)
}

// firstRow returns where the first row begins behind the one that from is in, or to.
func (s *salvage) firstRow(from, to int64) (int64, error) {
	at := to
	err := s.newlines(from, to, func(behind int64) bool { at = behind; return false })
	return at, err
}

// lastRow returns where the last row begins before to that does not end there, or from.
func (s *salvage) lastRow(from, to int64) (int64, error) {
	for window := int64(4 << 20); ; window *= 2 {
		at := from
		start := max(from, to-window)
		if err := s.newlines(start, to, func(behind int64) bool { at = behind; return true }); err != nil || at > from || start == from {
			return at, err
		}
	}
}

// newlines gives the places behind the newlines in a range, until more returns false.
func (s *salvage) newlines(from, to int64, more func(behind int64) bool) error {
	r, err := s.ranges.Open(s.ctx, from, to-from)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, 64<<10)
	for at := from; ; {
		n, err := r.Read(buf)
		for i, c := range buf[:n] {
			if c == '\n' && !more(at+int64(i)+1) {
				return nil
			}
		}
		at += int64(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write writes the script.
func (s *salvage) write(w io.Writer, outline script.Outline) error {
	in := &rows{ctx: s.ctx, ranges: s.ranges}
	defer in.close()
	good, lost := make([][]script.Range, len(outline)), make([][]script.Range, len(outline))
	for i, p := range outline {
		if p.Rows == nil {
			continue
		}
		var err error
		if good[i], lost[i], err = s.whole(*p.Rows); err != nil {
			return err
		}
		for _, g := range good[i] {
			if _, err := in.note(g); err != nil {
				return err
			}
		}
	}
	comment := ""
	for i, p := range outline {
		if p.Rows == nil {
			text := []byte(p.SQL)
			if comment != "" { // behind the line that ends the rows
				line := bytes.IndexByte(text, '\n') + 1
				text = slices.Concat(text[:line], []byte(comment), text[line:])
				comment = ""
			}
			if _, err := w.Write(text); err != nil {
				return err
			}
			continue
		}
		count := &lineCounter{w: w}
		for _, g := range good[i] {
			r, err := in.open(g)
			if err != nil {
				return err
			}
			_, err = io.Copy(count, r)
			r.Close()
			if err != nil {
				return err
			}
		}
		if len(lost[i]) > 0 {
			m := Missing{Lost: lost[i]}
			if b, ok := s.blocks[p.Rows.Offset]; ok {
				m.Database, m.Schema, m.Table, m.Of, m.Rows = *b.database, b.Schema, b.Table, int64(b.Rows), int64(b.Rows)-count.lines
			}
			s.missing = append(s.missing, m)
			comment = fmt.Sprintf("-- MISSING here, since the backup is damaged: %s\n", &m)
		}
	}
	if len(s.missing) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n-- MISSING in this script, since the backup is damaged: rows of %d table(s), see above\n", len(s.missing))
	return err
}

// lineCounter counts the lines that a writer takes.
type lineCounter struct {
	w     io.Writer
	lines int64
}

func (c *lineCounter) Write(p []byte) (int, error) {
	c.lines += int64(bytes.Count(p, []byte("\n")))
	return c.w.Write(p)
}
