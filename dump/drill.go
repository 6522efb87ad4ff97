package dump

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/script"
)

// DrillOptions says how a backup is restored to see whether that works.
type DrillOptions struct {
	// Into is a server to restore into; nil makes a throwaway cluster of the backup's major version.
	Into *postgres.Config
	// IntoDatabase is where a backup of one database goes that does not name it; needed with Into only.
	IntoDatabase string
	// BinDir and TempDir are where a throwaway cluster has its programs from, and where its data lie; see postgres.ClusterOptions.
	BinDir, TempDir string
	// Jobs is how many connections work at once; 0 stands for 1.
	Jobs int
	// Record has the result written beside the backup.
	Record bool
	Tool   archive.Tool // for the record
}

// DrillReport tells what a drill restored and compared.
type DrillReport struct {
	Server    string // version that was restored into
	StartedAt time.Time
	Duration  time.Duration
	// What was compared with the contents of the dump.
	Databases, Tables, Sequences int
	Rows, LargeObjects           int64
	Record                       string // name of the record written; empty where none was
	Unrecorded                   error  // why it could not be written
}

// DrillRoom is how many bytes a throwaway cluster takes beside what the databases had: its own files, and write-ahead log.
const DrillRoom = 512 << 20

// errInconclusive ends a drill in which it has been noted why it cannot be carried out.
var errInconclusive = errors.New("inconclusive")

// drill is one under way.
type drill struct {
	DrillOptions
	backup   *archive.Backup
	read     archive.ReadOptions
	toc      *archive.TOC
	known    *known
	made     []PlannedDatabase // what the restore has made
	inPlace  bool              // and put in place
	result   *VerifyReport
	report   *DrillReport
	progress Progress
	log      *slog.Logger
	mu       sync.Mutex // for the reports
	major    bool       // the server is of the backup's major version
	exact    bool       // the text of equal values is the same there
}

// finding notes that what was restored is not what was dumped.
func (d *drill) finding(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.result.Findings = append(d.result.Findings, fmt.Sprintf(format, args...))
}

// open notes what could not be found out.
func (d *drill) open(hint, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.result.Inconclusive = append(d.result.Inconclusive, Problem{fmt.Sprintf(format, args...), hint})
}

// runDrill restores a backup and compares. The error is why it ended early: damage, ctx; what else
// prevented it is in the report as inconclusive. Nothing is left behind, but the record.
func runDrill(ctx context.Context, b *archive.Backup, r *VerifyReport, o *VerifyOptions, progress Progress, log *slog.Logger) error {
	d := &drill{
		DrillOptions: o.Drill, backup: b, read: o.Read, result: r, progress: progress, log: log,
		report: &DrillReport{StartedAt: time.Now().UTC()},
	}
	r.Drill = d.report
	err := d.run(ctx)
	d.report.Duration = time.Since(d.report.StartedAt)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, errInconclusive) {
		return err
	}
	slices.Sort(r.Findings) // several connections have found them
	if len(r.Inconclusive) == 0 {
		d.record(ctx)
	}
	return nil
}

// recordDamage writes beside a backup that it is damaged, since an older record may tell otherwise.
func recordDamage(ctx context.Context, b *archive.Backup, r *VerifyReport, o *VerifyOptions) {
	if r.Drill == nil {
		r.Drill = &DrillReport{StartedAt: time.Now().UTC()}
	}
	(&drill{DrillOptions: o.Drill, backup: b, result: r, report: r.Drill}).record(ctx)
}

// record writes the result beside the backup.
func (d *drill) record(ctx context.Context) {
	if !d.Record || !d.backup.Authenticated {
		return
	}
	result, findings := archive.DrillPassed, len(d.result.Findings)+len(d.result.Damage)
	if findings > 0 {
		result = archive.DrillFailed
	}
	name, err := d.backup.AddRecord(ctx, &archive.Record{
		VerifiedAt: d.report.StartedAt.Add(d.report.Duration), Seconds: d.report.Duration.Round(time.Millisecond).Seconds(), Result: result, Tool: d.Tool,
		Server: d.report.Server, Databases: d.report.Databases, Tables: d.report.Tables, Rows: script.Number(d.report.Rows),
		Sequences: d.report.Sequences, LargeObjects: script.Number(d.report.LargeObjects), Findings: findings,
	})
	if err != nil {
		d.report.Unrecorded = err
		return
	}
	d.report.Record = name
}

func (d *drill) run(ctx context.Context) (err error) {
	d.progress.Start("looking at the contents", -1)
	if d.toc, err = d.index(ctx); err != nil {
		return err
	}
	if d.known, err = learn(ctx, d.backup, d.toc, d.read); err != nil {
		return err
	}
	target, stop, err := d.target(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := stop(); stopErr != nil {
			d.open("", "%v", stopErr)
		}
	}()
	err = d.restore(ctx, target)
	defer d.dropRestored(ctx, target)
	if err != nil {
		return err
	}
	return d.compare(ctx, target)
}

func (d *drill) index(ctx context.Context) (*archive.TOC, error) {
	if !d.backup.Authenticated {
		return nil, nil
	}
	return d.backup.TOC(ctx)
}

// target returns how to connect to the server, and what stops it.
func (d *drill) target(ctx context.Context) (restore postgres.Config, stop func() error, err error) {
	nothing := func() error { return nil }
	if d.Into != nil {
		return *d.Into, nothing, nil
	}
	version := majorText(d.known.server)
	if version == "" {
		d.log.Info("the backup does not tell the version of its server, so that the newest that was found is taken")
	}
	if err := d.checkRoom(); err != nil {
		return postgres.Config{}, nothing, err
	}
	d.progress.Start("starting a throwaway cluster", -1)
	c, err := postgres.StartCluster(ctx, postgres.ClusterOptions{
		BinDir: d.BinDir, Version: version, Parent: d.TempDir, Logger: d.log,
		Settings: map[string]string{
			// Nothing of it has to outlive the drill, and nobody follows it.
			"wal_level": "minimal", "archive_mode": "off", "max_wal_senders": "0", "max_wal_size": "256MB", "autovacuum": "off",
			"max_connections": fmt.Sprint(50 + 2*d.Jobs), "max_locks_per_transaction": "1000",
		},
	})
	if err != nil {
		d.open(hintOf(err), "%v", err)
		return postgres.Config{}, nothing, errInconclusive
	}
	return postgres.Config{DSN: c.DSN("postgres"), Logger: d.log}, c.Stop, nil
}

// checkRoom notes where the disk is too full for a cluster.
func (d *drill) checkRoom() error {
	dir := cmp.Or(d.TempDir, os.TempDir())
	free, ok := freeSpace(dir)
	if need := d.need(); ok && free < need {
		d.open("make room, or name a directory with room with --temp-dir", "a restore needs %d MB, and %s has room for %d MB", need/1e6, dir, free/1e6)
		return errInconclusive
	}
	return nil
}

// need is how many bytes a throwaway cluster of the backup takes.
func (d *drill) need() int64 {
	need := 2 * d.known.plain // rows and their indexes, where nothing better is known
	if m := d.backup.Metadata; m != nil && m.Source.DatabaseBytes > 0 {
		need = m.Source.DatabaseBytes
	}
	return need + DrillRoom
}

// restore replays the backup.
func (d *drill) restore(ctx context.Context, target postgres.Config) error {
	database := "restored"
	if d.Into != nil {
		database = d.IntoDatabase
	}
	o := &IntoOptions{
		Target: target, Read: d.read, Progress: d.progress, Logger: d.log, Database: database,
		// The directories of tablespaces are those of another machine.
		Selection: &script.Selection{NoTablespaces: len(d.known.summary.Tablespaces) > 0},
		Replay:    postgres.ReplayOptions{Jobs: d.Jobs, KeepGoing: true},
	}
	r, err := RestoreInto(ctx, d.backup, o)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if r == nil {
		var preflight *PreflightError
		var damage *archive.DamageError
		switch {
		case errors.As(err, &damage):
			return err
		case errors.As(err, &preflight):
			for _, p := range preflight.Problems {
				hint := p.Hint
				if strings.Contains(hint, "--") { // an option of restore
					hint = "a drill wants a server with nothing in it: name another one with --into, or leave --into out"
				}
				d.open(hint, "%s", p.Text)
			}
		default:
			d.open(hintOf(err), "%v", err)
		}
		return errInconclusive
	}
	d.made = r.Plan.Databases
	var damage *archive.DamageError
	if errors.As(err, &damage) {
		return err
	}
	d.inPlace = err == nil
	failures := r.Failures
	var failure *postgres.Failure
	if errors.As(err, &failure) {
		failures = append(failures, failure)
	}
	// What a server lacks may make any other statement fail too, and what a partial backup lacks.
	lacks := d.backup.Metadata != nil && d.backup.Metadata.Source.Kind == archive.KindPartial
	for _, f := range failures {
		if hint, ok := postgres.MissingPart(f.Statement, f.Err); ok {
			d.open(hint, "%v", f)
			lacks = true
		}
	}
	for _, f := range failures {
		if _, ok := postgres.MissingPart(f.Statement, f.Err); ok {
			continue
		}
		if lacks {
			d.open("", "%v", f)
		} else {
			d.finding("a statement of the backup failed: %v", f)
		}
	}
	if err != nil && failure == nil {
		hint, _ := postgres.MissingPart("", err)
		d.open(cmp.Or(hintOf(err), hint), "the restore ended early: %v", err)
	}
	if err != nil {
		return errInconclusive
	}
	return nil
}

// dropRestored removes the restored databases from a server that is not ours, and makes those anew that were there, and empty.
// Roles stay, since they may have been there.
func (d *drill) dropRestored(ctx context.Context, target postgres.Config) {
	if d.Into == nil || len(d.made) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	left := func(err error, names ...string) {
		d.open("drop it", "left by the drill: database %s: %v", strings.Join(names, ", "), err)
	}
	server, err := postgres.ConnectPrimary(ctx, target)
	if err != nil {
		var names []string
		for _, p := range d.made {
			names = append(names, p.Name)
		}
		left(err, names...)
		return
	}
	defer server.Close()
	for _, p := range d.made {
		// What did not come to its place.
		for _, name := range []string{p.loading, p.ready, p.faulty} {
			exists, err := server.HasDatabase(ctx, name)
			if err == nil && exists {
				_, err = server.DropDatabase(ctx, name)
			}
			if err != nil {
				left(err, name)
			}
		}
		if exists, err := server.HasDatabase(ctx, p.Name); err == nil && !exists || !d.inPlace {
			continue
		}
		other, err := server.Available(ctx, []string{p.Name})
		if err == nil && other == "" {
			err = errors.New("there is no other to work on it from")
		}
		if err == nil && other != server.Info().Database {
			err = server.MoveTo(ctx, other)
		}
		if err == nil {
			_, err = server.DropDatabase(ctx, p.Name)
		}
		if err == nil && p.Existing != nil {
			if err = server.CreateDatabase(ctx, p.Name, p.properties); err == nil {
				err = server.SetProperties(ctx, p.Name, p.properties)
			}
		}
		if err != nil {
			left(err, p.Name)
		}
	}
}

// compare proves that what is in the server is what was dumped.
func (d *drill) compare(ctx context.Context, target postgres.Config) error {
	server, err := postgres.ConnectPrimary(ctx, target)
	if err != nil {
		d.open(hintOf(err), "%v", err)
		return errInconclusive
	}
	defer server.Close()
	d.report.Server = server.Info().VersionText
	var recorded map[string]string
	if d.toc != nil {
		recorded = d.toc.Settings
	}
	d.major = sameMajor(d.known.server, d.report.Server)
	d.exact = d.major && recorded != nil
	if recorded == nil { // as of create, which makes them the likeliest
		recorded = map[string]string{"TimeZone": "UTC", "bytea_output": "hex"}
	}
	d.progress.Start("comparing", -1)
	for i := range d.known.contents.Databases {
		if err := d.compareDatabase(ctx, server, &d.known.contents.Databases[i], recorded); err != nil {
			return err
		}
	}
	d.progress.Start("dumping once more", -1)
	return d.dumpAgain(ctx, server)
}

// tableSum is what the dump has of a table.
type tableSum struct {
	schema, table string
	columns       []string
	rows          int64
	sum           script.Fingerprint
}

// sums adds up the blocks of each table.
func sums(db *script.Database) []tableSum {
	var out []tableSum
	index := map[[2]script.Name]int{}
	for _, c := range db.Copies {
		key := [2]script.Name{c.Schema, c.Table}
		i, ok := index[key]
		if !ok {
			i = len(out)
			index[key] = i
			t := tableSum{schema: string(c.Schema), table: string(c.Table)}
			for _, name := range c.Columns {
				t.columns = append(t.columns, string(name))
			}
			out = append(out, t)
		}
		out[i].rows += int64(c.Rows)
		out[i].sum += c.Fingerprint
	}
	return out
}

func (d *drill) compareDatabase(ctx context.Context, server *postgres.Server, db *script.Database, settings map[string]string) error {
	name := string(db.Name)
	if name == "" {
		if name = d.IntoDatabase; d.Into == nil {
			name = "restored"
		}
	}
	if exists, err := server.HasDatabase(ctx, name); err == nil && !exists {
		if len(db.Copies) > 0 || d.known.creates(name) {
			d.finding("database %q is missing", name)
		}
		return nil
	}
	d.report.Databases++
	if d.known.inserts[string(db.Name)] {
		d.open("", "database %q has rows in INSERT statements, which the backup's index does not count", name)
	}
	tables := sums(db)
	// The largest first, so that none is left alone at the end.
	slices.SortStableFunc(tables, func(a, b tableSum) int { return cmp.Compare(b.rows, a.rows) })
	work := make(chan tableSum)
	failed := make(chan error, max(d.Jobs, 1))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for range min(max(d.Jobs, 1), max(len(tables), 1)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := server.NewTableReader(ctx, name, d.known.encodings[string(db.Name)], settings)
			if err != nil {
				failed <- fmt.Errorf("database %q: %w", name, err)
				cancel()
				return
			}
			defer r.Close()
			for t := range work {
				d.compareTable(ctx, r, name, t)
			}
		}()
	}
	for _, t := range tables {
		select {
		case work <- t:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
	select {
	case err := <-failed:
		d.open(hintOf(err), "%v", err)
		return errInconclusive
	default:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r, err := server.NewTableReader(ctx, name, d.known.encodings[string(db.Name)], settings)
	if err != nil {
		d.open(hintOf(err), "database %q: %v", name, err)
		return errInconclusive
	}
	defer r.Close()
	for _, s := range db.Sequences {
		d.compareSequence(ctx, r, name, s)
	}
	d.compareObjects(ctx, r, name, db)
	return context.Cause(ctx)
}

func (d *drill) compareTable(ctx context.Context, r *postgres.TableReader, database string, t tableSum) {
	what := fmt.Sprintf("table %s of database %q", script.QuoteName(t.schema)+"."+script.QuoteName(t.table), database)
	rows, sum, err := r.Table(ctx, t.schema, t.table, t.columns)
	if !d.readable(ctx, what, err) {
		return
	}
	d.mu.Lock()
	d.report.Tables++
	d.report.Rows += rows
	d.mu.Unlock()
	switch {
	case rows != t.rows:
		d.finding("%s has %d rows, the dump has %d", what, rows, t.rows)
	case sum == t.sum:
	case d.exact:
		d.finding("%s has %d rows as the dump, but other contents: fingerprint %v, the dump has %v", what, rows, sum, t.sum)
	default:
		d.open("a drill in a server of the backup's major version compares them",
			"%s has %d rows as the dump, but another fingerprint, which cannot be compared: %s", what, rows, d.whyInexact())
	}
}

func (d *drill) whyInexact() string {
	if from := majorText(d.known.server); !d.major && from != "" {
		return fmt.Sprintf("the text of floats and more differs between PostgreSQL %s and %s", from, majorText(d.report.Server))
	}
	return "the settings that the dump was made with are not known"
}

func (d *drill) compareSequence(ctx context.Context, r *postgres.TableReader, database string, s script.Sequence) {
	what := fmt.Sprintf("sequence %s of database %q", script.QuoteName(string(s.Schema))+"."+script.QuoteName(string(s.Name)), database)
	value, called, err := r.Sequence(ctx, string(s.Schema), string(s.Name))
	if !d.readable(ctx, what, err) {
		return
	}
	d.report.Sequences++
	if value != int64(s.Value) || called != s.Called {
		d.finding("%s is at %d (called: %t), in the dump at %d (called: %t)", what, value, called, s.Value, s.Called)
	}
}

func (d *drill) compareObjects(ctx context.Context, r *postgres.TableReader, database string, db *script.Database) {
	what := fmt.Sprintf("the large objects of database %q", database)
	var want script.LargeObjects
	if db.LargeObjects != nil {
		want = *db.LargeObjects
	}
	got, err := r.LargeObjects(ctx)
	if !d.readable(ctx, what, err) {
		return
	}
	d.report.LargeObjects += int64(got.Objects)
	if got != want {
		d.finding("%s are %d with %d bytes and fingerprint %v, in the dump %d with %d bytes and fingerprint %v",
			what, got.Objects, got.Bytes, got.Fingerprint, want.Objects, want.Bytes, want.Fingerprint)
	}
}

// readable notes why something could not be read, and tells whether it could.
func (d *drill) readable(ctx context.Context, what string, err error) bool {
	switch {
	case err == nil:
		return true
	case ctx.Err() != nil:
	case errors.Is(err, postgres.ErrMissing):
		d.finding("%s is missing", what)
	default:
		if hint, ok := postgres.MissingPart("", err); ok || postgres.IsPermission(err) {
			d.open(hint, "%s cannot be read: %s", what, postgres.ServerMessage(err))
		} else {
			d.finding("%s cannot be read: %s", what, postgres.ServerMessage(err))
		}
	}
	return false
}

// dumpAgain dumps the schemas of all databases, which reads the system catalogs as the next backup would, and looks in that for
// what the backup says about roles and settings.
func (d *drill) dumpAgain(ctx context.Context, server *postgres.Server) error {
	dump, err := server.DumpAll(ctx, postgres.DumpOptions{Args: []string{"--schema-only"}})
	if err != nil {
		d.open(hintOf(err), "the databases cannot be dumped once more: %v", err)
		return nil
	}
	defer dump.Close()
	got := newKnown()
	var complete script.Completeness
	f := script.NewFeeder(func(it script.Item) error { complete.Add(it); return got.Item(it) })
	if _, err := io.Copy(f, dump); err != nil {
		if ctx.Err() == nil {
			d.finding("the databases cannot be dumped once more: %v", err)
		}
		return context.Cause(ctx)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if _, err := complete.Kind(); err != nil {
		d.finding("a dump of the restored databases is not complete: %v", err)
	}
	roles := got.summary.Roles
	for _, r := range d.known.summary.Roles {
		if !slices.Contains(roles, r) {
			d.finding("role %q is missing", r)
		}
	}
	if !d.major || !sameMajor(d.known.program, dump.ProgramVersion()) {
		if len(d.known.globals) > 0 {
			d.open("a drill with the backup's versions of server and pg_dumpall compares them",
				"only the names of roles were compared, not attributes and settings, since the versions differ or are not known")
		}
		return nil
	}
	for _, s := range d.known.globals {
		if !slices.Contains(got.globals, s) {
			d.finding("what the backup sets is not in force: %s", script.Brief([]byte(s), 160))
		}
	}
	return nil
}

// known is what a drill knows of a dump beside its rows.
type known struct {
	summarizer script.Summarizer
	summary    *script.Summary
	contents   *script.Contents
	server     string            // version of the server that was dumped
	program    string            // version of pg_dump
	plain      int64             // bytes of SQL
	encodings  map[string]string // client_encoding, by database
	inserts    map[string]bool   // databases with rows outside of COPY
	globals    []string          // statements about roles and settings, as far as a dump of the restored server has them too

	database string
	inside   bool
	more     bool
}

func newKnown() *known {
	k := &known{encodings: map[string]string{}, inserts: map[string]bool{}}
	k.summary = k.summarizer.Summary()
	return k
}

// WantsData makes known a reader of an outline: it does without rows.
func (k *known) WantsData() bool { return false }

// Item takes the next item of the dump.
func (k *known) Item(it script.Item) error {
	k.plain = max(k.plain, it.Offset+int64(len(it.Text)))
	switch it.Kind {
	case script.Blank:
		for from, to := range map[string]*string{"-- Dumped from database version ": &k.server, "-- Dumped by pg_dump version ": &k.program} {
			if _, rest, ok := bytes.Cut(it.Text, []byte(from)); ok && *to == "" {
				line, _, _ := bytes.Cut(rest, []byte("\n"))
				*to = string(line)
			}
		}
	case script.Meta:
		if name, ok := script.ParseConnect(it.Text); ok {
			k.database, k.inside = name, true
		}
	case script.Statement:
		if !k.more && !it.More {
			k.statement(bytes.TrimSpace(it.Text))
		}
		k.more = it.More
	}
	return k.summarizer.Item(it)
}

func (k *known) statement(text []byte) {
	starts := func(s string) bool { return bytes.HasPrefix(text, []byte(s)) }
	switch {
	case starts("SET client_encoding"):
		if _, ok := k.encodings[k.database]; !ok { // the dump of the next database begins before its \connect
			_, k.encodings[k.database], _ = script.ParseSet(text)
		}
	case starts("INSERT INTO "):
		k.inserts[k.database] = true
	case bytes.Contains(text, []byte("tablespace")): // which a drill leaves out
	case starts("CREATE ROLE "), starts("ALTER ROLE "), starts("GRANT ") && !k.inside,
		starts("ALTER DATABASE ") && bytes.Contains(text, []byte(" SET ")):
		s, _, _ := strings.Cut(string(text), " GRANTED BY ")
		k.globals = append(k.globals, strings.TrimSuffix(s, ";"))
	}
}

func (k *known) creates(database string) bool {
	return slices.ContainsFunc(k.summary.Databases, func(d script.SummaryDatabase) bool { return d.Name == database && (d.Created || d.Statements > 0) })
}

// learn finds out what a drill must know of a dump: from its index, as far as that has it, otherwise by reading all of it.
func learn(ctx context.Context, b *archive.Backup, toc *archive.TOC, o archive.ReadOptions) (*known, error) {
	k := newKnown()
	var err error
	if toc != nil && toc.Outline != nil && toc.Contents != nil {
		k.contents = toc.Contents
		err = toc.Outline.Items(k, noRows)
	} else {
		var g script.Gatherer
		o.Progress = nil
		err = read(ctx, b, o, func(it script.Item) error { g.Add(it); return k.Item(it) })
		k.contents = g.Contents()
	}
	if m := b.Metadata; m != nil {
		k.server, k.plain = cmp.Or(m.Source.Server, k.server), m.Sizes.Plain
	}
	return k, err
}

// majorText returns "15" of "15.18", "9.6" of "9.6.24", and nothing where there is no number.
func majorText(version string) string {
	switch n := majorOf(version); {
	case n >= 10:
		return fmt.Sprint(n)
	case n > 0:
		parts := strings.SplitN(version, ".", 3)
		return strings.Join(parts[:min(2, len(parts))], ".")
	}
	return ""
}

func sameMajor(a, b string) bool { return majorText(a) != "" && majorText(a) == majorText(b) }

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
