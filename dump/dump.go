// Package dump holds the operations on backups: Create, Fetch, Copy, Restore, Verify,
// Check, Prune. They are short, since the work is done in the packages below.
package dump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/script"
	"encdump/storage"
	"encdump/storage/file"
)

// Progress is told how an operation gets on. total is in bytes; -1 where it is
// not known. Methods may be called from several goroutines. nil is silent.
type Progress interface {
	Start(phase string, total int64)
	Add(n int64)
	Done()
}

type silent struct{}

func (silent) Start(string, int64) {}
func (silent) Add(int64)           {}
func (silent) Done()               {}

// orSilent makes nil a Progress.
func orSilent(p Progress) Progress {
	if p == nil {
		return silent{}
	}
	return p
}

func adder(p Progress) func(int) { return func(n int) { p.Add(int64(n)) } }

// guidNamespace is the namespace of GUIDs that are derived from a cluster's
// system identifier. It must never change.
var guidNamespace = uuid.MustParse("5b3f3a54-5f0e-4d7c-9a9e-0d3a8a6b6f41")

// GUIDOf returns the GUID of the cluster with that system identifier: a UUIDv5
// (RFC 9562, 5.5) of its decimal digits, so that every host that dumps the same
// cluster agrees.
func GUIDOf(systemIdentifier uint64) string {
	return uuid.NewSHA1(guidNamespace, []byte(strconv.FormatUint(systemIdentifier, 10))).String()
}

// CreateOptions says what is backed up, where to, and how.
type CreateOptions struct {
	Stores []storage.Bucket
	// Source is the server to dump, unless Stdin is given.
	Source postgres.Config
	// Dump is how pg_dumpall is run.
	Dump postgres.DumpOptions
	// Partial says that Dump.Args leave something out.
	Partial bool
	// Stdin is a stream of SQL to store instead of a dump of Source. It is not closed.
	Stdin io.Reader
	// GUID; where empty it is derived from the server's system identifier.
	GUID string
	// Name is a label for the backup.
	Name string
	// Key is called once for the key to encrypt with, unless Archive has Recipients.
	// first tells that the stores are known to hold nothing of the GUID.
	Key func(ctx context.Context, guid string, first bool) (*crypto.Key, error)
	// Archive is how the backup is made; GUID, Key and Progress are set by Create.
	Archive archive.WriterOptions
	Tool    archive.Tool
	// Nice is added to the nice value of this process, but not of pg_dumpall,
	// once the dump runs: the database comes first. 0 leaves it alone.
	Nice     int
	Progress Progress
	Logger   *slog.Logger
}

// CreateReport tells what was made.
type CreateReport struct {
	Metadata *archive.Metadata
	// Destinations in the order of CreateOptions.Stores; those with an error
	// do not have the backup.
	Destinations []*archive.Destination
}

// Failed returns the destinations that do not have the backup.
func (r *CreateReport) Failed() []*archive.Destination {
	var out []*archive.Destination
	for _, d := range r.Destinations {
		if d.Err != nil {
			out = append(out, d)
		}
	}
	return out
}

// NoGUIDError says that the cluster's identifier could not be read.
type NoGUIDError struct{ Err error }

func (e *NoGUIDError) Error() string {
	return "no GUID: the system identifier cannot be read: " + e.Err.Error()
}
func (e *NoGUIDError) Unwrap() error { return e.Err }

// Hint is the way out.
func (e *NoGUIDError) Hint() string {
	return "give a UUID of your own with --guid, the same every time, or grant execute on function pg_control_system()"
}

// Create makes a backup. It holds the advisory lock of the GUID on the server
// until everything is done. On failure no backup exists, and what was uploaded
// is removed as far as that is permitted. With several stores it succeeds where
// one has the backup; the report tells which.
func Create(ctx context.Context, o *CreateOptions) (*CreateReport, error) {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	progress := orSilent(o.Progress)
	guid := o.GUID
	var server *postgres.Server
	if o.Stdin == nil {
		progress.Start("connecting", -1)
		var err error
		if server, err = postgres.Connect(ctx, o.Source); err != nil {
			return nil, err
		}
		defer server.Close()
		if guid == "" {
			id, err := server.SystemIdentifier()
			if err != nil {
				return nil, &NoGUIDError{err}
			}
			guid = GUIDOf(id)
		}
		lock, err := server.Lock(ctx, guid)
		if err != nil {
			return nil, err
		}
		if text := lock.Warning(); text != "" {
			log.Warn(text)
		}
		done := make(chan struct{})
		defer close(done)
		go func() {
			select {
			case <-lock.Lost():
				log.Warn("the lock against a second run was lost; this run goes on", "err", lock.Err())
			case <-done:
			}
		}()
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			lock.Release(ctx)
		}()
	}

	previous, first := o.previous(ctx, guid, log)
	var key *crypto.Key
	if len(o.Archive.Recipients) == 0 {
		var err error
		if key, err = o.Key(ctx, guid, first); err != nil {
			return nil, err
		}
	}

	settings := o.Archive
	if server != nil {
		settings.Settings = map[string]string{"TimeZone": "UTC", "bytea_output": "hex"} // as postgres.DumpSettings
	}
	settings.GUID, settings.Key, settings.Logger = guid, key, log
	settings.Progress = adder(progress)
	w, err := archive.NewWriter(ctx, o.Stores, &settings)
	if err != nil {
		return nil, err
	}
	// From here on every way out goes through Commit or Abort.
	report := &CreateReport{Metadata: &w.Metadata, Destinations: w.Destinations()}
	if err := o.fill(w, server, previous, guid, progress, log); err != nil {
		w.Abort(err)
		return report, context.Cause(w.Context())
	}
	progress.Start("finishing", -1)
	err = w.Commit()
	progress.Done()
	return report, err
}

// fill writes the dump and completes the metadata.
func (o *CreateOptions) fill(w *archive.Writer, server *postgres.Server, previous *archive.Backup, guid string, progress Progress, log *slog.Logger) error {
	m := &w.Metadata
	m.Name, m.Tool = o.Name, o.Tool
	if previous != nil {
		m.Previous = previous.ID.String()
	}
	if o.Partial {
		m.Source.Kind = archive.KindPartial
	}
	src := o.Stdin
	if server != nil {
		info := server.Info()
		m.Source.Host, m.Source.Server, m.Source.Standby = info.Host, info.VersionText, info.Standby
		m.Source.Databases, m.Source.DatabaseBytes = info.Databases, max(info.Size, 0)
		if o.GUID == "" && previous != nil && previous.Metadata != nil {
			if host := previous.Metadata.Source.Host; host != "" && host != info.Host {
				log.Warn(fmt.Sprintf("the latest backup with GUID %s was made from host %s, this one is from %s; "+
					"if these are two clusters, give each a GUID of its own with --guid", guid, host, info.Host))
			}
		}
		d, err := server.DumpAll(w.Context(), o.Dump)
		if err != nil {
			return err
		}
		defer d.Close()
		m.Source.PgDumpall = d.ProgramVersion()
		src = d
	}
	progress.Start("dumping", -1)
	defer progress.Done()
	copied := make(chan error, 1)
	go func() {
		done := yieldCPU(o.Nice, log)
		defer done()
		_, err := w.ReadFrom(src)
		copied <- err
	}()
	select {
	case err := <-copied:
		return err
	case <-w.Context().Done():
		// The dump is killed by the context and its reader ends; standard input
		// may go on for ever, so nobody waits for it.
		return context.Cause(w.Context())
	}
}

// previous returns the newest backup of guid in the first store that can be
// read; first tells that none of the stores holds anything of it.
func (o *CreateOptions) previous(ctx context.Context, guid string, log *slog.Logger) (previous *archive.Backup, first bool) {
	first = true
	for _, b := range o.Stores {
		p, n, err := archive.OpenCatalog(b, nil, log).Previous(ctx, guid)
		first = first && n == 0
		if err != nil {
			if !errors.Is(err, storage.ErrNotFound) { // a folder that is not there yet
				first = false
				log.Info("the store cannot be listed", "store", b.String(), "err", err)
			}
			continue
		}
		if previous == nil {
			previous = p
		}
	}
	return previous, first
}

// Restore writes the SQL of a backup to w, for psql: statements whole and COPY
// data in whole rows. Where it fails after something was written, it ends the
// script so that psql fails too, and leaves nothing of a COPY that is cut.
func Restore(ctx context.Context, b *archive.Backup, w io.Writer, o archive.ReadOptions, p Progress) error {
	p = orSilent(p)
	p.Start("restoring", b.StoredSize())
	defer p.Done()
	o.Progress = adder(p)
	r, err := b.Reader(ctx, &o)
	if err != nil {
		return err
	}
	defer r.Close()
	return guarded(w, func(g *script.Guard) error {
		if _, err := io.Copy(g, r); err != nil {
			return err
		}
		return g.Close()
	})
}

// guarded has a script written to w, and closed, or ended as Restore says.
func guarded(w io.Writer, write func(*script.Guard) error) error {
	out := &counter{w: w}
	guard := script.NewGuard(out)
	err := write(guard)
	if err != nil && out.n > 0 {
		guard.Fail("the restore failed: " + err.Error()) // nothing, where w itself failed
	}
	return err
}

// RestoreSelected is Restore of a part of the backup. By the index it reads only
// the rows that are selected; where there is none, it reads all. It returns what
// was left out though the operator may miss it.
func RestoreSelected(ctx context.Context, b *archive.Backup, w io.Writer, s *script.Selection, o archive.ReadOptions, p Progress, log *slog.Logger) (left []string, err error) {
	if s.IsZero() {
		return nil, Restore(ctx, b, w, o, p)
	}
	p = orSilent(p)
	p.Start("restoring", -1)
	defer p.Done()
	o.Progress = adder(p)
	err = guarded(w, func(g *script.Guard) error {
		if left, err = Select(ctx, b, g, s, o, log); err != nil {
			return err
		}
		if err := g.Close(); err != nil {
			return err
		}
		whole := b.Metadata != nil && b.Metadata.Source.Kind != archive.KindPartial
		if s := g.State(); whole && !s.Between() {
			return fmt.Errorf("the selection ended %v; restore the whole backup instead", s)
		}
		return nil
	})
	return left, err
}

// Select writes the selected part of a backup's SQL to w, as it is: without the ending that makes psql fail. A name that the
// backup does not hold is told, where the backup has an index, before anything is written. It returns what was left out though
// the operator may miss it.
func Select(ctx context.Context, b *archive.Backup, w io.Writer, s *script.Selection, o archive.ReadOptions, log *slog.Logger) (left []string, err error) {
	return selectRows(ctx, b, w, s, o, log, nil)
}

// takeRows takes the rows of a COPY that was just written, to read them when it likes, and reports whether it does.
type takeRows func(size int64, open postgres.RowSource) bool

// wholeTable is the least size of rows, in bytes, for which a reader of their own is worth what is read twice: the
// segments that they begin and end in.
var wholeTable int64 = 64 << 20

// selectRows is Select, but where the backup has an index, large tables are offered to take; their rows are written if
// it does not want them.
func selectRows(ctx context.Context, b *archive.Backup, w io.Writer, s *script.Selection, o archive.ReadOptions, log *slog.Logger, take takeRows) (left []string, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	sel := script.NewSelector(s, func(text []byte) error { _, err := w.Write(text); return err })
	var outline script.Outline
	if b.Authenticated && (!s.IsZero() || take != nil) {
		toc, err := b.TOC(ctx)
		switch {
		case err != nil:
			log.Warn("the index cannot be used, so the whole backup is read", "err", err)
		case toc != nil:
			outline = toc.Outline
		}
		if outline != nil {
			ranges, err := b.Ranges(ctx, toc, &o)
			if err != nil {
				return nil, err
			}
			// Once without rows, so that a name which is not there is told before
			// anything is written.
			rows := &rows{ctx: ctx, ranges: ranges, take: take}
			defer rows.close()
			dry := script.NewSelector(s, func([]byte) error { return nil })
			err = outline.Items(dry, rows.note)
			if err == nil {
				err = dry.Close()
			}
			if err != nil {
				return nil, err
			}
			err = outline.Items(sel, rows.open)
			if err != nil {
				return nil, err
			}
			left = sel.Skipped()
			return left, sel.Close()
		}
	}
	if err := read(ctx, b, o, sel.Item); err != nil {
		return nil, err
	}
	left = sel.Skipped()
	return left, sel.Close()
}

// rows reads the ranges of a dump that hold wanted rows. Those that lie in the
// same segments are read at once, or thousands of small tables would have each
// its segment read again.
type rows struct {
	ctx    context.Context
	ranges *archive.Ranges
	take   takeRows       // of large tables; may be nil
	runs   []script.Range // in order, what is read at once
	next   int            // the run after the one under way
	run    io.ReadCloser
	at     int64 // where in the dump run is
}

// note takes the next range that will be wanted, and gives nothing.
func (r *rows) note(want script.Range) (io.ReadCloser, error) {
	if want.Length > 0 && !r.large(want) {
		if n := len(r.runs); n > 0 && r.ranges.Join(r.runs[n-1], want) {
			r.runs[n-1].Length = want.Offset + want.Length - r.runs[n-1].Offset
		} else {
			r.runs = append(r.runs, want)
		}
	}
	return noRows(want)
}

// noRows opens a range of an outline of which the statements alone are wanted.
func noRows(script.Range) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }

// large tells that a range has a reader of its own.
func (r *rows) large(want script.Range) bool {
	return r.take != nil && int64(want.Length) >= wholeTable
}

// open returns the rows of the next range that is wanted.
func (r *rows) open(want script.Range) (io.ReadCloser, error) {
	if want.Length == 0 {
		return noRows(want)
	}
	if r.large(want) {
		open := func(ctx context.Context, share bool) (io.ReadCloser, error) {
			ranges := r.ranges
			if share {
				ranges = ranges.Share()
			}
			return ranges.Open(ctx, int64(want.Offset), int64(want.Length))
		}
		if r.take(int64(want.Length), open) {
			return noRows(want)
		}
		return open(r.ctx, false)
	}
	if r.next == 0 || int64(want.Offset) >= r.runs[r.next-1].End() {
		if r.next == len(r.runs) {
			return nil, fmt.Errorf("rows at %d were not expected", want.Offset)
		}
		r.close()
		run := r.runs[r.next]
		r.next++
		var err error
		if r.run, err = r.ranges.Open(r.ctx, int64(run.Offset), int64(run.Length)); err != nil {
			return nil, err
		}
		r.at = int64(run.Offset)
		if run == want {
			return io.NopCloser(r.run), nil
		}
	}
	if _, err := io.CopyN(io.Discard, r.run, int64(want.Offset)-r.at); err != nil {
		return nil, err
	}
	r.at = want.End()
	return io.NopCloser(io.LimitReader(r.run, int64(want.Length))), nil
}

func (r *rows) close() {
	if r.run != nil {
		r.run.Close()
	}
}

// counter counts what a writer takes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// FetchSQL writes the SQL of a backup to a new file of mode 0600, which appears
// under its name when it is whole, and not at all otherwise. An existing file is
// an error that matches os.ErrExist.
func FetchSQL(ctx context.Context, b *archive.Backup, path string, o archive.ReadOptions, p Progress) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	p = orSilent(p)
	p.Start("fetching", b.StoredSize())
	defer p.Done()
	o.Progress = adder(p)
	r, err := b.Reader(ctx, &o)
	if err != nil {
		return err
	}
	defer r.Close()
	// A directory bucket knows how to make a file appear whole or not at all.
	err = file.New(dir).Put(ctx, filepath.Base(path), r, &storage.PutOptions{IfAbsent: true})
	if errors.Is(err, storage.ErrExists) {
		return &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	return err
}

// Copy brings a backup to another bucket as it is; see [archive.Backup.CopyTo].
func Copy(ctx context.Context, b *archive.Backup, dst storage.Bucket, o archive.CopyOptions, p Progress) (archive.CopyReport, error) {
	p = orSilent(p)
	p.Start("copying", b.Bytes)
	defer p.Done()
	o.Progress = adder(p)
	return b.CopyTo(ctx, dst, &o)
}
