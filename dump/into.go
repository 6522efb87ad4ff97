package dump

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/script"
)

// IntoOptions says how a backup is restored into a server.
type IntoOptions struct {
	Target    postgres.Config
	Selection *script.Selection
	Read      archive.ReadOptions
	// Database is where a script goes that names none.
	Database string
	// Clean replaces databases that hold something: when all are restored, they take the places of the old ones.
	// InPlace drops the old ones first. KeepOld keeps the old ones under other names.
	Clean, InPlace, KeepOld bool
	// Terminate ends connections that are in the way.
	Terminate bool
	// DropInactiveSlots drops replication slots that nobody uses, before anything is restored.
	DropInactiveSlots bool
	// Before and After are scripts to run.
	Before, After []SQLFile
	Replay        postgres.ReplayOptions
	// Confirm is called once, with the plan, before the server is changed. Its error ends the restore.
	Confirm  func(*IntoPlan) error
	Progress Progress // of bytes read
	Logger   *slog.Logger
}

// SQLFile is a script for psql, to run in a database.
type SQLFile struct{ Database, Path string }

// IntoPlan is what a restore is going to do.
type IntoPlan struct {
	Backup    archive.ID
	Host      string
	Port      int
	Version   string
	Databases []PlannedDatabase
	// Roles and tablespaces of the backup that exist on the server.
	Roles, ExistingRoles []string
	Leftovers            []string // databases of a restore that was cut off, which are dropped first
	Slots                []string // replication slots that are dropped
	Warnings             []string
}

// PlannedDatabase is a database that is restored.
type PlannedDatabase struct {
	Name     string // under which it will be found
	Source   string // in the backup
	Existing *postgres.TargetDatabase
	Ready    bool // was restored by an earlier run, which could not put it in its place
	Direct   bool // rows go into the database that exists

	// Names meanwhile; found is the one of an earlier run's, which is one of ready and faulty.
	loading, ready, faulty, replaced, found string
	// inherits tells that the script does not create the database, which it expects to be there: it keeps what it has from
	// the outside.
	inherits   bool
	properties *postgres.Properties // of the one that is there, as it was before the restore
}

// refuge is the name of an empty database, one of those that a second run knows for its own.
func (d *PlannedDatabase) refuge() string {
	sum := sha256.Sum256([]byte("refuge " + d.Name))
	return fmt.Sprintf("%s%x", loadingPrefix, sum[:8])
}

// Replaces tells that the database takes the place of one that holds something.
func (d *PlannedDatabase) Replaces() bool {
	return d.Existing != nil && d.Existing.Objects != 0 && !d.Direct
}

// PreflightError says why a server cannot be restored into as it is. Nothing was changed.
type PreflightError struct {
	Problems []Problem
}

// Problem is a reason against a restore, and the way out.
type Problem struct{ Text, Hint string }

func (e *PreflightError) Error() string {
	var texts []string
	for _, p := range e.Problems {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "; ")
}

// Hint joins the ways out.
func (e *PreflightError) Hint() string {
	var hints []string
	for _, p := range e.Problems {
		if p.Hint != "" && !slices.Contains(hints, p.Hint) {
			hints = append(hints, p.Hint)
		}
	}
	return strings.Join(hints, "; ")
}

// IntoReport tells what a restore did.
type IntoReport struct {
	*postgres.ReplayReport
	Plan *IntoPlan
	Left []string // what the selection left out though the operator may miss it
	// Faulty tells that statements have failed, in this run or in an earlier one that restored what was put in place now.
	Faulty bool
	// Kept are the old databases that stay, by their new names.
	Kept []string
	// Remains is what could not be cleaned up, for the operator to look after.
	Remains []string
	// State says in sentences what is where, when the restore failed.
	State []string
}

// The names of databases that a restore makes and removes. The digits are those of a digest of the backup's ID, the
// selection and the name, so that a second run knows its own.
const (
	loadingPrefix  = "dump_restoring_" // being restored
	readyPrefix    = "dump_restored_"  // complete, but not in its place
	faultyPrefix   = "dump_faulty_"    // the same, but statements have failed
	replacedPrefix = "dump_replaced_"  // to be dropped
)

var ourName = regexp.MustCompile(`^dump_(restoring|restored|faulty|replaced)_[0-9a-f]{16}$`)

// RestoreInto replays a backup, or a part of it, into a server. Databases are restored under other names, and take their
// places by renaming, all at once, when everything has succeeded; until then the server's own databases are as they were. It holds the lock of
// Create on the server. The report is there in every case but a failed preflight.
func RestoreInto(ctx context.Context, b *archive.Backup, o *IntoOptions) (*IntoReport, error) {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	progress := orSilent(o.Progress)
	progress.Start("checking the backup", -1)
	summary, err := summarize(ctx, b, o)
	if err != nil {
		return nil, err
	}
	progress.Start("connecting", -1)
	server, err := postgres.ConnectPrimary(ctx, o.Target)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	in := &into{IntoOptions: o, server: server, backup: b, summary: summary, log: log, progress: progress}
	if err := in.lock(ctx); err != nil {
		return nil, err
	}
	defer in.unlock()
	if err := in.preflight(ctx); err != nil {
		return nil, err
	}
	if o.Confirm != nil {
		if err := o.Confirm(in.plan); err != nil {
			return nil, err
		}
	}
	in.report = &IntoReport{Plan: in.plan, ReplayReport: &postgres.ReplayReport{}}
	err = in.restore(ctx)
	progress.Done()
	return in.report, err
}

// into is a restore under way.
type into struct {
	*IntoOptions
	server   *postgres.Server
	backup   *archive.Backup
	summary  *script.Summary
	log      *slog.Logger
	progress Progress
	locks    []*postgres.Lock
	plan     *IntoPlan
	report   *IntoReport

	refuge, home string // an empty database that the server is worked on from, and the one to return to
}

// summarize proves that the backup can be read, as far as that costs little, and returns what a restore of the selection has in it. Without
// an index the backup is read once for that.
func summarize(ctx context.Context, b *archive.Backup, o *IntoOptions) (*script.Summary, error) {
	var s script.Summarizer
	f := script.NewFeeder(s.Item)
	sel := script.NewSelector(o.Selection, func(text []byte) error { _, err := f.Write(text); return err })
	var outline script.Outline
	if b.Authenticated {
		toc, err := b.TOC(ctx)
		if err != nil {
			return nil, err
		}
		if toc != nil {
			if err := b.Probe(ctx, toc, &o.Read); err != nil {
				return nil, err
			}
			outline = toc.Outline
		}
	}
	var err error
	if outline != nil {
		err = outline.Items(sel, noRows)
	} else {
		err = read(ctx, b, o.Read, sel.Item)
	}
	if err == nil {
		err = sel.Close()
	}
	if err == nil {
		err = f.Close()
	}
	return s.Summary(), err
}

// read gives the items of a backup, all of them.
func read(ctx context.Context, b *archive.Backup, o archive.ReadOptions, item func(script.Item) error) error {
	r, err := b.Reader(ctx, &o)
	if err != nil {
		return err
	}
	defer r.Close()
	f := script.NewFeeder(item)
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Close()
}

// lock takes the locks under which backups of this server are made.
func (in *into) lock(ctx context.Context) error {
	guids := []string{in.backup.ID.GUID}
	if id, err := in.server.SystemIdentifier(); err == nil && GUIDOf(id) != guids[0] {
		guids = append(guids, GUIDOf(id))
	}
	for _, guid := range guids {
		l, err := in.server.Lock(ctx, guid)
		if err != nil {
			in.unlock()
			return err
		}
		if text := l.Warning(); text != "" {
			in.log.Warn(text)
		}
		in.locks = append(in.locks, l)
	}
	return nil
}

func (in *into) unlock() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, l := range in.locks {
		l.Release(ctx)
	}
	in.locks = nil
}

// preflight looks at the server and makes the plan.
func (in *into) preflight(ctx context.Context) error {
	in.progress.Start("looking at the server", -1)
	have, err := in.server.Look(ctx)
	if err != nil {
		return err
	}
	info := in.server.Info()
	in.plan = &IntoPlan{Backup: in.backup.ID, Host: info.Host, Port: info.Port, Version: info.VersionText, Roles: in.summary.Roles}
	var problems []Problem
	problem := func(hint, format string, args ...any) {
		problems = append(problems, Problem{fmt.Sprintf(format, args...), hint})
	}
	for _, r := range in.summary.Roles {
		if slices.Contains(have.Roles, r) {
			in.plan.ExistingRoles = append(in.plan.ExistingRoles, r)
		}
	}
	if n := len(in.summary.Roles) - len(in.plan.ExistingRoles); n > 0 && !have.Superuser && !have.CreateRole {
		problem("connect as a superuser, or leave roles out with --no-globals", "role %q may not create roles, and the backup has %d that do not exist", info.User, n)
	}
	for _, t := range in.summary.Tablespaces {
		if slices.Contains(have.Tablespaces, t.Name) {
			continue
		}
		hint := "make that directory, empty and owned by the server's user, or use --no-tablespaces"
		if !have.Superuser {
			problem("connect as a superuser, or use --no-tablespaces", "role %q may not create tablespace %q", info.User, t.Name)
		} else if exists, err := in.server.HasDirectory(ctx, t.Location); err != nil {
			return err
		} else if !exists {
			problem(hint, "tablespace %q wants the directory %s, which is not there on the server", t.Name, t.Location)
		}
	}
	if err := in.planDatabases(have, problem); err != nil {
		return err
	}
	var busy []string
	for _, d := range in.plan.Databases {
		if d.Existing != nil && !d.Direct {
			busy = append(busy, d.Name)
		}
	}
	if len(in.plan.Databases) > 0 && !have.CreateDB && !have.Superuser {
		problem("connect as a superuser", "role %q may not create databases", info.User)
	}
	for _, d := range have.Databases {
		if ourName.MatchString(d.Name) && !slices.ContainsFunc(in.plan.Databases, func(p PlannedDatabase) bool { return p.Ready && p.found == d.Name }) {
			in.plan.Leftovers = append(in.plan.Leftovers, d.Name)
		}
	}
	if !in.Terminate && len(busy) > 0 {
		connections, err := in.server.Connections(ctx, busy)
		if err != nil {
			return err
		}
		// Our own lock is a connection, and goes before it is in the way.
		connections = slices.DeleteFunc(connections, func(c postgres.Connection) bool {
			return slices.ContainsFunc(in.locks, func(l *postgres.Lock) bool { return l.PID() == c.PID })
		})
		for _, c := range connections {
			problem("end them, or use --terminate-connections", "somebody is connected: %v", c)
		}
	}
	if in.DropInactiveSlots {
		for _, s := range have.Slots {
			if !s.Active {
				in.plan.Slots = append(in.plan.Slots, s.Name)
			}
		}
	}
	if err := in.checkFiles(have, problem); err != nil {
		return err
	}
	if !have.Superuser {
		in.plan.Warnings = append(in.plan.Warnings, fmt.Sprintf("role %q is no superuser: what the backup gives to roles that it is not a member of will fail, and what only superusers may do; --no-owner, --no-privileges and --no-globals leave most of that out", info.User))
	}
	m := in.backup.Metadata
	if m != nil {
		if from, to := majorOf(m.Source.Server), majorOf(info.VersionText); from > to && to > 0 {
			in.plan.Warnings = append(in.plan.Warnings, fmt.Sprintf("the backup is of PostgreSQL %d, the server is %d: statements that it does not know will fail", from, to))
		}
	}
	if free, ok := freeSpace(have.DataDirectory); ok && have.Local && m != nil && in.Selection.IsZero() && m.Source.DatabaseBytes > 0 {
		var gained int64
		for _, d := range in.plan.Databases {
			if in.InPlace && d.Existing != nil {
				gained += d.Existing.Size
			}
		}
		if need := m.Source.DatabaseBytes; free+gained < need {
			problem("make room; --clean --in-place drops the old databases first, and so needs less", "the databases had %d MB, and %s has room for %d MB", need/1e6, have.DataDirectory, (free+gained)/1e6)
		}
	}
	if len(problems) > 0 {
		return &PreflightError{problems}
	}
	return nil
}

// checkFiles reads the scripts of the operator's as far as one can before they run.
func (in *into) checkFiles(have *postgres.Contents, problem func(hint, format string, args ...any)) error {
	for i, file := range slices.Concat(in.Before, in.After) {
		later := i >= len(in.Before) && slices.ContainsFunc(in.plan.Databases, func(d PlannedDatabase) bool { return d.Name == file.Database })
		if file.Database != "" && !later && have.Find(file.Database) == nil {
			problem("", "%s is to run in database %q, which will not be there", file.Path, file.Database)
		}
		text, err := os.ReadFile(file.Path)
		if err != nil {
			return err
		}
		f := script.NewFeeder(func(it script.Item) error {
			if it.Kind == script.Meta && !postgres.Replayable(it) {
				problem("write it in SQL, or run the file with psql", "%s: only psql knows %s", file.Path, script.Brief(it.Text, 60))
			}
			return nil
		})
		if _, err := f.Write(withEnd(text)); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
	}
	return nil
}

// withEnd ends a script so that what stands at its end without a semicolon is run, too, as psql does.
func withEnd(text []byte) []byte { return append(text, "\n;\n"...) }

// planDatabases decides under which names databases are restored, and what becomes of those that are there.
func (in *into) planDatabases(have *postgres.Contents, problem func(hint, format string, args ...any)) error {
	source := map[string]string{}
	for old, name := range in.Selection.Rename {
		source[name] = old
	}
	selection, err := json.Marshal(in.Selection)
	if err != nil {
		return err
	}
	for _, d := range in.summary.Databases {
		if d.Statements == 0 && !d.Created {
			continue // as postgres and template1 mostly are
		}
		p := PlannedDatabase{Name: d.Name, Source: d.Name}
		if old, ok := source[d.Name]; ok {
			p.Source = old
		}
		if d.Name == "" {
			if p.Name = in.Database; p.Name == "" {
				problem("name it in the connection string: dbname=…", "the backup is of one database and does not say which, and --into does not name one either")
				continue
			}
		}
		p.Existing = have.Find(p.Name)
		p.Direct = in.Selection.DataOnly
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", in.backup.ID, selection, p.Name))
		p.loading = fmt.Sprintf("%s%x", loadingPrefix, sum[:8])
		p.ready = fmt.Sprintf("%s%x", readyPrefix, sum[:8])
		p.replaced = fmt.Sprintf("%s%x", replacedPrefix, sum[:8])
		p.faulty = fmt.Sprintf("%s%x", faultyPrefix, sum[:8])
		if have.Find(p.ready) != nil {
			p.found = p.ready
		} else if in.Replay.KeepGoing && have.Find(p.faulty) != nil {
			p.found = p.faulty
		}
		p.Ready = p.found != ""
		p.inherits = !d.Created && !p.Direct && p.Existing != nil
		e := p.Existing
		switch {
		case p.Direct && e == nil:
			problem("restore it with its schema first", "database %q does not exist, and only data are to be restored", p.Name)
		case p.Direct, e == nil, in.Clean:
		case e.Closed || e.Objects < 0:
			problem("--clean replaces it, when the restore has succeeded; --rename restores beside it", "database %q exists, and one cannot look into it", p.Name)
		case e.Objects > 0:
			more := ""
			if e.Objects > len(e.Examples) {
				more = fmt.Sprintf(" and %d more", e.Objects-len(e.Examples))
			}
			problem("--clean replaces databases, when the restore has succeeded; --rename restores beside them",
				"database %q holds %s%s", p.Name, strings.Join(e.Examples, ", "), more)
		}
		for _, x := range d.Extensions {
			if !slices.Contains(have.Extensions, x) {
				problem("install the package that has it on the server", "extension %q, which database %q uses, is not available", x, p.Name)
			}
		}
		in.plan.Databases = append(in.plan.Databases, p)
	}
	// Only when all are there, an earlier run has come that far.
	all := !slices.ContainsFunc(in.plan.Databases, func(p PlannedDatabase) bool { return !p.Ready })
	for i := range in.plan.Databases {
		in.plan.Databases[i].Ready = all
	}
	return nil
}

// majorOf returns 15 of "15.18", and 9 of "9.6.24".
func majorOf(version string) (n int) {
	fmt.Sscan(version, &n)
	return n
}

// restore does what is planned.
func (in *into) restore(ctx context.Context) error {
	// A run that was killed may have begun what only now appears.
	for _, d := range in.plan.Databases {
		err := in.server.EndStatements(ctx, "CREATE DATABASE \""+d.loading+"\"")
		if err == nil && !slices.Contains(in.plan.Leftovers, d.loading) {
			var exists bool
			if exists, err = in.server.HasDatabase(ctx, d.loading); exists {
				in.plan.Leftovers = append(in.plan.Leftovers, d.loading)
			}
		}
		if err != nil {
			in.say("nothing was restored")
			return err
		}
	}
	for _, name := range in.plan.Leftovers {
		in.progress.Start("removing what an earlier run has left", -1)
		// Its subscriptions, if any, never had a slot, unless it is an old database.
		left, err := in.server.DropDatabase(ctx, name)
		if strings.HasPrefix(name, replacedPrefix) {
			in.report.Remains = append(in.report.Remains, left...)
		}
		if err != nil {
			in.say("nothing was restored")
			return err
		}
	}
	if len(in.plan.Slots) > 0 {
		if _, err := in.server.DropInactiveSlots(ctx); err != nil {
			in.say("nothing was restored")
			return fmt.Errorf("drop replication slots: %w", err)
		}
	}
	for _, f := range in.Before {
		if err := in.runFile(ctx, f); err != nil {
			in.say("nothing was restored")
			return err
		}
	}
	for i := range in.plan.Databases {
		if d := &in.plan.Databases[i]; d.Existing != nil && !d.Direct {
			var err error
			if d.properties, err = in.server.Properties(ctx, d.Name); err != nil {
				in.say("nothing was restored")
				return err
			}
		}
	}
	ready := len(in.plan.Databases) > 0 && in.plan.Databases[0].Ready
	if !ready {
		if in.Clean && in.InPlace {
			for _, d := range in.plan.Databases {
				if d.Existing == nil || d.Direct || slices.Contains(postgres.Maintenance, d.Name) {
					continue // those for maintenance are small, and needed meanwhile
				}
				if err := in.makeWay(ctx, d.Name); err != nil {
					return err
				}
				in.say("database %q was dropped", d.Name)
			}
		}
		if err := in.replay(ctx); err != nil {
			in.cleanUp(ctx)
			return err
		}
	}
	err := in.swap(ctx)
	in.leaveRefuge(ctx)
	if err != nil {
		if len(in.report.State) == 0 {
			in.say("the databases of the server are as they were; those of the backup are restored, but not in their places")
			in.say("run the restore again: it removes them and starts anew")
		}
		return err
	}
	for _, f := range in.After {
		if err := in.runFile(ctx, f); err != nil {
			in.say("the backup is restored and in place; only the script afterwards failed")
			return err
		}
	}
	return nil
}

// say adds a sentence to what is told when the restore fails.
func (in *into) say(format string, args ...any) {
	in.report.State = append(in.report.State, fmt.Sprintf(format, args...))
}

// makeWay drops a database before the restore.
func (in *into) makeWay(ctx context.Context, name string) error {
	if err := in.avoid(ctx, []string{name}); err != nil {
		return err
	}
	return in.drop(ctx, name)
}

// avoid sees to it that none of our connections is to one of the databases.
func (in *into) avoid(ctx context.Context, names []string) error {
	current := in.server.Info().Database
	other, err := in.server.Available(ctx, names)
	if err != nil || other == current {
		return err
	}
	in.unlock() // it is held in that database; the rest takes moments
	if other != "" {
		return in.server.MoveTo(ctx, other)
	}
	// Both are in the way, as with backups of a server older than 15, in which the privileges on the schema public were others.
	refuge := in.plan.Databases[0].refuge()
	if err := in.server.CreateDatabase(ctx, refuge, nil); err != nil {
		return err
	}
	in.refuge, in.home = refuge, current
	return in.server.MoveTo(ctx, refuge)
}

// leaveRefuge removes the database that avoid has made.
func (in *into) leaveRefuge(ctx context.Context) {
	if in.refuge == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := in.server.MoveTo(ctx, in.home)
	if err == nil {
		err = in.drop(ctx, in.refuge)
	}
	if err != nil {
		in.report.Remains = append(in.report.Remains, fmt.Sprintf("database %s, which is empty: %v; the next restore drops it", in.refuge, err))
	}
	in.refuge = ""
}

func (in *into) drop(ctx context.Context, name string) error {
	left, err := in.server.DropDatabase(ctx, name)
	for _, text := range left {
		for _, d := range in.plan.Databases {
			text = strings.ReplaceAll(text, d.replaced, d.Name)
		}
		in.report.Remains = append(in.report.Remains, text)
	}
	return err
}

// replay runs the script of the backup, with the databases under their names for the time being.
func (in *into) replay(ctx context.Context) error {
	selection := *in.Selection
	selection.Rename = maps.Clone(selection.Rename)
	if selection.Rename == nil {
		selection.Rename = map[string]string{}
	}
	single := "" // the database of a script that names none
	for _, d := range in.plan.Databases {
		switch {
		case d.Direct && d.Source == "":
			single = d.Name
		case d.Source == "":
			single = d.loading
			if err := in.server.CreateDatabase(ctx, d.loading, d.properties); err != nil {
				return err
			}
		case !d.Direct:
			selection.Rename[d.Source] = d.loading
		}
	}
	options := in.Replay
	user := in.server.Info().User
	options.Logger = in.log
	if in.Selection.DataOnly {
		options.Jobs = 1 // foreign keys that are there want rows in the order of the script
	}
	options.Names = map[string]string{}
	for _, d := range in.plan.Databases {
		options.Names[d.loading] = d.Name
	}
	if in.Selection.NoGlobals {
		// Settings of a role that was not to be restored are left out with it.
		options.Harmless = func(s script.Step, e *pgconn.PgError) bool {
			return postgres.HarmlessFailure(s, e) || s.Verb == "alter" && s.Kind == script.KindInDatabase && e.Code == "42704" // undefined_object
		}
	}
	// What changes the role that restores, its password for one, would shut us out.
	options.Defer = func(s script.Step) bool { return s.Kind == "role" && s.Verb == "alter" && s.Name == user }
	// A script of pg_dumpall --clean drops what there is, on which we have decided already.
	options.Skip = func(s script.Step) bool {
		return s.Verb == "drop" && (s.Kind == "database" || s.Kind == "role" || s.Kind == "tablespace")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := postgres.NewReplayer(ctx, in.server, options)
	err := in.feed(ctx, r, &selection, single)
	report, err := r.Finish(err)
	in.report.ReplayReport = report
	if err == nil {
		err = in.server.Revive(ctx)
	}
	for _, d := range in.plan.Databases {
		if err == nil && d.inherits {
			err = in.server.SetProperties(ctx, d.loading, d.properties)
		}
	}
	return err
}

// feed gives the script to the replay.
func (in *into) feed(ctx context.Context, r *postgres.Replayer, selection *script.Selection, single string) error {
	if single != "" {
		line := []byte(`\connect "` + strings.ReplaceAll(single, `"`, `""`) + "\"\n")
		if err := r.Item(script.Item{Kind: script.Meta, Text: line}); err != nil {
			return err
		}
	}
	read := in.Read
	read.Progress = adder(in.progress)
	in.progress.Start("restoring", in.backup.StoredSize())
	var apart int64 // bytes that do not come this way
	f := script.NewFeeder(func(it script.Item) error {
		it.Offset += apart
		return r.Item(it)
	})
	take := func(size int64, open postgres.RowSource) bool {
		ok := r.Rows(size, open)
		if ok {
			apart += size
		}
		return ok
	}
	if in.Selection.DataOnly {
		take = nil // the tables are not ours to truncate
	}
	left, err := selectRows(ctx, in.backup, f, selection, read, in.log, take)
	in.report.Left = left
	if err == nil {
		err = f.Close()
	}
	return err
}

// cleanUp removes the databases of a restore that failed, and says what is there.
func (in *into) cleanUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	lost := in.server.Revive(ctx)
	var stay []string
	direct := false
	for _, d := range in.plan.Databases {
		direct = direct || d.Direct
		if d.Direct || lost != nil {
			continue
		}
		exists, err := in.server.HasDatabase(ctx, d.loading)
		if err == nil && exists {
			_, err = in.server.DropDatabase(ctx, d.loading)
		}
		if err != nil {
			stay = append(stay, d.loading)
		}
	}
	if direct {
		in.say("the tables that were loaded before it failed have their rows, the table at which it failed has none of them")
	} else if !in.InPlace {
		in.say("the databases of the server are as they were")
	}
	if in.summary.GlobalObjects > 0 {
		in.say("roles and other global objects may have been created or changed")
	}
	switch {
	case direct:
	case lost != nil:
		in.say("the server does not answer (%v); what was restored so far, in databases whose names begin with %s, could not be removed: the next restore removes it", lost, loadingPrefix)
	case len(stay) > 0:
		in.say("the unfinished databases %s could not be removed; the next restore removes them", strings.Join(stay, ", "))
	default:
		in.say("what was restored so far was removed again")
	}
}

// swap puts the restored databases in the places of those that are there.
func (in *into) swap(ctx context.Context) error {
	if err := in.server.Revive(ctx); err != nil {
		return err
	}
	var swaps []postgres.Swap
	var old []string
	for _, d := range in.plan.Databases {
		in.report.Faulty = in.report.Faulty || len(in.report.Failures) > 0 || d.Ready && d.found == d.faulty
	}
	keep := in.KeepOld || in.report.Faulty // a restore with failures does not replace what it was to replace
	stamp := time.Now().UTC().Format("20060102_150405")
	ready := make([]postgres.Swap, 0, len(in.plan.Databases))
	for _, d := range in.plan.Databases {
		if d.Direct {
			continue
		}
		from := d.loading
		if d.Ready {
			from = d.found
		}
		to := d.ready
		if in.report.Faulty {
			to = d.faulty
		}
		ready = append(ready, postgres.Swap{From: from, To: to})
		exists, err := in.server.HasDatabase(ctx, d.Name)
		if err != nil {
			return err
		}
		if exists {
			to := d.replaced
			if keep && (d.Existing == nil || d.Existing.Objects != 0) {
				to = keptName(d.Name, stamp)
				in.report.Kept = append(in.report.Kept, to)
			} else {
				old = append(old, to)
			}
			swaps = append(swaps, postgres.Swap{From: d.Name, To: to})
		}
		swaps = append(swaps, postgres.Swap{From: from, To: d.Name})
	}
	if len(swaps) == 0 {
		return nil
	}
	in.progress.Start("putting databases in place", -1)
	var names []string
	for _, w := range swaps {
		names = append(names, w.From)
	}
	err := in.lookAgain(ctx)
	if err == nil {
		err = in.avoid(ctx, names)
	}
	if err == nil {
		err = in.server.Rename(ctx, swaps, in.Terminate)
	}
	if err != nil {
		in.keepReady(ctx, ready, names)
		in.report.Kept = nil
		return err
	}
	// Everything is in place. What could not be dropped is no failure of the restore.
	for _, name := range in.report.Kept {
		disabled, err := in.server.DisableSubscriptions(context.WithoutCancel(ctx), name)
		for _, s := range disabled {
			in.report.Remains = append(in.report.Remains, fmt.Sprintf("subscription %q of database %s, which was kept: it was disabled, so that it does not take what a restored one wants", s, name))
		}
		if err != nil {
			in.report.Remains = append(in.report.Remains, fmt.Sprintf("subscriptions of database %s, which was kept, may go on: %v", name, err))
		}
	}
	for _, name := range old {
		if err := in.drop(context.WithoutCancel(ctx), name); err != nil {
			in.report.Remains = append(in.report.Remains, fmt.Sprintf("database %s, which was replaced: %v; the next restore drops it", name, err))
		}
	}
	return nil
}

// lookAgain finds out whether somebody has filled a database meanwhile that the plan took for empty or absent.
func (in *into) lookAgain(ctx context.Context) error {
	if in.Clean {
		return nil // it says that what is there may go
	}
	have, err := in.server.Look(ctx)
	if err != nil {
		return err
	}
	for _, d := range in.plan.Databases {
		if e := have.Find(d.Name); e != nil && !d.Direct && e.Objects != 0 {
			return fmt.Errorf("database %q was empty or not there when the restore began, and holds something now: %s", d.Name, strings.Join(e.Examples, ", "))
		}
	}
	return nil
}

// keptName is the name of an old database that stays.
func keptName(name, stamp string) string {
	suffix := "_before_" + stamp
	for len(name)+len(suffix) > 63 { // NAMEDATALEN - 1
		name = name[:len(name)-1]
	}
	return strings.ToValidUTF8(name, "") + suffix
}

// keepReady keeps the restored databases for a second run, since they could not be put in place.
func (in *into) keepReady(ctx context.Context, ready []postgres.Swap, names []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	in.say("the databases of the server are as they were; those of the backup are restored, but not in their places")
	todo := slices.DeleteFunc(slices.Clone(ready), func(w postgres.Swap) bool { return w.From == w.To })
	if len(todo) > 0 {
		if err := in.server.Rename(ctx, todo, true); err != nil {
			in.say("run the restore again: it removes them and starts anew (%v)", err)
			return
		}
	}
	if connections, err := in.server.Connections(ctx, names); err == nil {
		for _, c := range connections {
			in.say("somebody is connected: %v", c)
		}
	}
	in.say("run the same restore again, with --terminate-connections where somebody is connected: it only puts them in place")
}

// runFile runs a script of the operator's.
func (in *into) runFile(ctx context.Context, file SQLFile) error {
	text, err := os.ReadFile(file.Path)
	if err != nil {
		return err
	}
	database := file.Database
	if database == "" {
		database = in.server.Info().Database
	}
	in.progress.Start("running "+file.Path, -1)
	r := postgres.NewReplayer(ctx, in.server, postgres.ReplayOptions{Jobs: 1, Logger: in.log})
	f := script.NewFeeder(r.Item)
	err = r.Item(script.Item{Kind: script.Meta, Text: []byte(`\connect "` + strings.ReplaceAll(database, `"`, `""`) + "\"\n")})
	if err == nil {
		_, err = io.Copy(f, bytes.NewReader(withEnd(text)))
	}
	if err == nil {
		err = f.Close()
	}
	if _, err = r.Finish(err); err != nil {
		return fmt.Errorf("%s: %w", file.Path, err)
	}
	return nil
}
