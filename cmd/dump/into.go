package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"encdump/dump"
	"encdump/dump/archive"
	"encdump/dump/postgres"
	"encdump/dump/script"
)

// intoOnly are options of restore that mean nothing without --into.
var intoOnly = []string{
	"clean", "in-place", "keep-old", "terminate-connections", "drop-inactive-slots", "before-sql", "after-sql", "keep-going", "no-analyze",
	"maintenance-work-mem", "dry-run", "yes", "json",
}

// runInto restores a backup into a server.
func runInto(ctx context.Context, f flags, b *archive.Backup, selection *script.Selection, read archive.ReadOptions) error {
	log := newLogger(f.is("verbose"))
	dsn := f.text("into")
	if dsn != os.Getenv(variable("into")) && postgres.DSNHasPassword(dsn) {
		log.Warn("a password in --into can be seen by every user of this machine; use ~/.pgpass or PGPASSWORD")
	}
	for _, name := range []string{"in-place", "keep-old"} {
		if f.is(name) && !f.is("clean") {
			return usage("", "--%s goes with --clean", name)
		}
	}
	if f.is("in-place") && f.is("keep-old") {
		return usage("", "--in-place drops the old databases first, --keep-old keeps them")
	}
	memory, err := f.bytes("maintenance-work-mem")
	if err != nil {
		return err
	}
	before, err := f.sqlFiles("before-sql")
	if err != nil {
		return err
	}
	after, err := f.sqlFiles("after-sql")
	if err != nil {
		return err
	}
	progress := newProgress()
	o := &dump.IntoOptions{
		Target: postgres.Config{DSN: dsn, Logger: log}, Database: postgres.DSNDatabase(dsn),
		Selection: selection, Read: read,
		Clean: f.is("clean"), InPlace: f.is("in-place"), KeepOld: f.is("keep-old"), Terminate: f.is("terminate-connections"),
		DropInactiveSlots: f.is("drop-inactive-slots"), Before: before, After: after,
		Replay: postgres.ReplayOptions{
			Jobs: f.jobs(), KeepGoing: f.is("keep-going"), Analyze: !f.is("no-analyze"), MaintenanceWorkMem: int(memory >> 10),
			Progress: replayProgress(progress),
		},
		Confirm:  func(p *dump.IntoPlan) error { return f.confirmPlan(ctx, b, p) },
		Progress: progress, Logger: log,
	}
	start := time.Now()
	r, err := dump.RestoreInto(ctx, b, o)
	if errors.Is(err, errPlanShown) {
		return nil
	}
	if r == nil {
		var p *dump.PreflightError
		if errors.As(err, &p) {
			var texts []string
			for _, x := range p.Problems {
				report(errors.New(x.Text), x.Hint)
				texts = append(texts, x.Text)
			}
			if f.is("json") {
				if err := printJSON(struct {
					Error    string   `json:"error"`
					Problems []string `json:"problems"`
				}{"the server is not ready", texts}); err != nil {
					return err
				}
			}
			return &statusError{errors.New("nothing was restored: the server is not ready for it"), "", statusFailed}
		}
		return err
	}
	if f.is("json") {
		if jsonErr := printJSON(intoJSON(r, err, time.Since(start))); err == nil && jsonErr != nil {
			return jsonErr
		}
	} else {
		printInto(r, err, time.Since(start))
	}
	if err != nil {
		for _, s := range r.State {
			say("%s", s)
		}
		return err
	}
	switch {
	case len(r.Failures) > 0:
		return &statusError{fmt.Errorf("%d statement(s) failed", len(r.Failures)), "", statusInPart}
	case r.Faulty:
		return &statusError{errors.New("what was put in place is a restore in which statements had failed, as the run that made it has said"), "", statusInPart}
	}
	return nil
}

var errPlanShown = errors.New("the plan was shown")

// confirmPlan shows what is going to be done, and asks where something is lost.
func (f flags) confirmPlan(ctx context.Context, b *archive.Backup, p *dump.IntoPlan) error {
	destructive := len(p.Slots) > 0
	for _, d := range p.Databases {
		destructive = destructive || d.Replaces()
	}
	if f.is("dry-run") && f.is("json") {
		if err := printJSON(f.planJSON(p)); err != nil {
			return err
		}
	} else if f.is("dry-run") || destructive && !f.is("yes") || f.is("verbose") {
		w := os.Stdout
		if !f.is("dry-run") {
			w = os.Stderr
		}
		fmt.Fprintf(w, "restore %s\ninto %s, port %d, PostgreSQL %s:\n", describe(b), p.Host, p.Port, p.Version)
		for _, name := range p.Leftovers {
			fmt.Fprintf(w, "  database %s: left by a restore that was cut off; is dropped\n", name)
		}
		for _, d := range p.Databases {
			fmt.Fprintf(w, "  database %s: %s\n", printable(d.Name), f.fate(&d))
		}
		if n := len(p.Roles); n > 0 {
			fmt.Fprintf(w, "  roles: %d", n)
			if len(p.ExistingRoles) > 0 {
				text := "get the passwords and attributes of the backup"
				if f.is("keep-roles") {
					text = "stay as they are"
				}
				fmt.Fprintf(w, ", of which %d exist and %s", len(p.ExistingRoles), text)
			}
			fmt.Fprintln(w)
		}
		if len(p.Slots) > 0 {
			fmt.Fprintf(w, "  replication slots that are dropped: %s\n", printable(strings.Join(p.Slots, ", ")))
		}
	}
	for _, text := range p.Warnings {
		say("warning: %s", text)
	}
	if f.is("dry-run") {
		return errPlanShown
	}
	if destructive && !f.is("yes") {
		return confirm(ctx, "do this?")
	}
	return nil
}

// planJSON is the plan as a document.
func (f flags) planJSON(p *dump.IntoPlan) any {
	type database struct {
		Name    string `json:"name"`
		Source  string `json:"source"`
		Exists  bool   `json:"exists"`
		Objects int    `json:"objects"` // -1: not known
		Bytes   int64  `json:"bytes"`
		Plan    string `json:"plan"`
	}
	out := struct {
		BackupID      string     `json:"backup_id"`
		Host          string     `json:"host"`
		Port          int        `json:"port"`
		Server        string     `json:"server"`
		Databases     []database `json:"databases"`
		Roles         []string   `json:"roles"`
		ExistingRoles []string   `json:"existing_roles"`
		Leftovers     []string   `json:"leftovers"`
		Slots         []string   `json:"slots"`
		Warnings      []string   `json:"warnings"`
	}{
		p.Backup.String(), p.Host, p.Port, p.Version,
		[]database{},
		append([]string{}, p.Roles...), append([]string{}, p.ExistingRoles...), append([]string{}, p.Leftovers...), append([]string{}, p.Slots...), append([]string{}, p.Warnings...),
	}
	for _, d := range p.Databases {
		x := database{Name: d.Name, Source: d.Source, Plan: f.fate(&d)}
		if e := d.Existing; e != nil {
			x.Exists, x.Objects, x.Bytes = true, e.Objects, e.Size
		}
		out.Databases = append(out.Databases, x)
	}
	return out
}

// fate says what becomes of a database.
func (f flags) fate(d *dump.PlannedDatabase) string {
	text := "new"
	switch {
	case d.Direct:
		return "gets the rows, beside those that it has"
	case d.Existing != nil && d.Existing.Objects == 0:
		text = "takes the place of the empty one"
	case d.Existing != nil:
		held := "contents not known"
		if d.Existing.Objects > 0 {
			held = fmt.Sprintf("%d object(s)", d.Existing.Objects)
		}
		if d.Existing.Size >= 0 {
			held += ", " + size(d.Existing.Size)
		}
		switch {
		case f.is("in-place"):
			text = "is dropped (" + held + ") and restored: should that fail, nothing is left of it but the backup"
		case f.is("keep-old"):
			text = "takes the place of the one that is there (" + held + "), which stays under another name"
		default:
			text = "takes the place of the one that is there (" + held + "), which is dropped at the end"
		}
	}
	if d.Ready {
		text += "; is restored already and only put in its place"
	}
	return text
}

// replayProgress shows how far a replay is beside the bytes.
func replayProgress(p dump.Progress) func(postgres.ReplayProgress) {
	b, ok := p.(*bar)
	if !ok {
		return nil
	}
	var mu sync.Mutex
	var last time.Time
	var phase string
	return func(r postgres.ReplayProgress) {
		mu.Lock()
		defer mu.Unlock()
		if r.Phase == phase && time.Since(last) < 200*time.Millisecond {
			return
		}
		last, phase = time.Now(), r.Phase
		text := strings.TrimSpace("restoring " + r.Phase)
		if r.Rows > 0 {
			text += ", " + count(r.Rows, "row")
		}
		if r.Tables > 0 {
			text += ", " + count(int64(r.Tables), "table")
		}
		if r.Indexes > 0 {
			text += fmt.Sprintf(", %d indexes", r.Indexes)
		}
		b.describe(text)
	}
}

// printInto prints what a restore did.
func printInto(r *dump.IntoReport, err error, took time.Duration) {
	for _, text := range r.Left {
		say("warning: left out: %s", text)
	}
	for _, x := range r.Failures {
		say("failed: %v", x)
	}
	if err != nil {
		return
	}
	fmt.Printf("restored %s into %s, port %d, in %v: %s rows in %d table(s), %d index(es) and constraint(s)\n",
		r.Plan.Backup, r.Plan.Host, r.Plan.Port, took.Round(100*time.Millisecond), humanize.Comma(r.Rows), r.Tables, r.Indexes)
	var phases []string
	for _, p := range r.Phases {
		phases = append(phases, fmt.Sprintf("%s %v", p.Name, p.Duration.Round(10*time.Millisecond)))
	}
	if len(phases) > 0 {
		fmt.Println("  time: " + strings.Join(phases, ", "))
	}
	for i, s := range r.Slowest {
		if i == 3 {
			break
		}
		fmt.Printf("  slowest: %v  %s: %s\n", s.Duration.Round(10*time.Millisecond), printable(s.Database), printable(s.Statement))
	}
	for _, x := range r.Harmless {
		fmt.Printf("  harmless: %s\n", printable(x.Error()))
	}
	for _, x := range r.Skipped {
		fmt.Printf("  left out: %s\n", printable(x))
	}
	for _, x := range r.Kept {
		fmt.Printf("  old database kept: %s\n", printable(x))
	}
	for _, x := range r.Remains {
		say("warning: %s", x)
	}
	if len(r.Subscriptions) > 0 {
		fmt.Println("  subscriptions were restored without a connection; to resume replication, in each database:")
		for _, s := range r.Subscriptions {
			for _, c := range subscriptionCommands(r.Plan.Backup, s) {
				fmt.Printf("    %s\n", printable(c))
			}
		}
	}
	fmt.Println("  a new backup is due: dump create")
}

// subscriptionCommands are what brings a restored subscription up to date. It has the rows of the time of the backup,
// which its publisher has not: its tables are emptied, and copied anew by a new subscription.
func subscriptionCommands(id archive.ID, s postgres.Subscription) []string {
	name := script.QuoteName(s.Name)
	return []string{
		`\connect ` + script.QuoteName(s.Database),
		"ALTER SUBSCRIPTION " + name + " ENABLE;",
		"ALTER SUBSCRIPTION " + name + " REFRESH PUBLICATION WITH (copy_data = false);",
		"ALTER SUBSCRIPTION " + name + " DISABLE;",
		`SELECT format('TRUNCATE %s CASCADE', srrelid::regclass) FROM pg_subscription_rel JOIN pg_subscription s ON s.oid = srsubid WHERE subname = ` + postgres.QuoteLiteral(s.Name) + ` \gexec`,
		"DROP SUBSCRIPTION " + name + ";",
		"CREATE SUBSCRIPTION " + name + " CONNECTION '…' PUBLICATION …;  -- as it was: see dump restore --backup-id " + id.String() + " --schema-only --database " + script.QuoteName(s.Database),
	}
}

// intoJSON is the report as a document.
func intoJSON(r *dump.IntoReport, err error, took time.Duration) any {
	type failure struct {
		Database  string `json:"database,omitempty"`
		Statement string `json:"statement"`
		Offset    int64  `json:"offset"`
		Error     string `json:"error"`
	}
	failures := func(list []*postgres.Failure) []failure {
		out := []failure{}
		for _, x := range list {
			out = append(out, failure{x.Database, x.Statement, x.Offset, postgres.ServerMessage(x.Err)})
		}
		return out
	}
	type step struct {
		Database  string  `json:"database,omitempty"`
		Statement string  `json:"statement"`
		Seconds   float64 `json:"seconds"`
	}
	type subscription struct {
		Database string   `json:"database"`
		Name     string   `json:"name"`
		Commands []string `json:"commands"`
	}
	out := struct {
		BackupID      string             `json:"backup_id"`
		Host          string             `json:"host"`
		Port          int                `json:"port"`
		Error         string             `json:"error,omitempty"`
		State         []string           `json:"state,omitempty"`
		Seconds       float64            `json:"seconds"`
		Rows          int64              `json:"rows"`
		Tables        int                `json:"tables"`
		Indexes       int                `json:"indexes"`
		Databases     []string           `json:"databases"`
		Phases        map[string]float64 `json:"phases"`
		Slowest       []step             `json:"slowest"`
		Harmless      []failure          `json:"harmless"`
		Failures      []failure          `json:"failures"`
		Skipped       []string           `json:"skipped,omitempty"`
		LeftOut       []string           `json:"left_out,omitempty"`
		Kept          []string           `json:"kept,omitempty"`
		Remains       []string           `json:"remains,omitempty"`
		Subscriptions []subscription     `json:"subscriptions,omitempty"`
		DroppedSlots  []string           `json:"dropped_slots,omitempty"`
		Faulty        bool               `json:"faulty"` // statements failed, in this run or in the one that restored what was put in place
	}{
		BackupID: r.Plan.Backup.String(), Host: r.Plan.Host, Port: r.Plan.Port, State: r.State, Seconds: took.Seconds(),
		Rows: r.Rows, Tables: r.Tables, Indexes: r.Indexes, Databases: []string{}, Phases: map[string]float64{}, Slowest: []step{},
		Harmless: failures(r.Harmless), Failures: failures(r.Failures), Skipped: r.Skipped, LeftOut: r.Left, Kept: r.Kept, Remains: r.Remains,
		DroppedSlots: r.Plan.Slots, Faulty: r.Faulty || len(r.Failures) > 0,
	}
	if err != nil {
		out.Error = err.Error()
	}
	for _, d := range r.Plan.Databases {
		out.Databases = append(out.Databases, d.Name)
	}
	for _, p := range r.Phases {
		out.Phases[p.Name] = p.Duration.Seconds()
	}
	for _, s := range r.Slowest {
		out.Slowest = append(out.Slowest, step{s.Database, s.Statement, s.Duration.Seconds()})
	}
	for _, s := range r.Subscriptions {
		out.Subscriptions = append(out.Subscriptions, subscription{s.Database, s.Name, subscriptionCommands(r.Plan.Backup, s)})
	}
	return out
}

// sqlFiles reads FILE or DATABASE=FILE.
func (f flags) sqlFiles(name string) ([]dump.SQLFile, error) {
	var out []dump.SQLFile
	for _, v := range f.list(name) {
		file := dump.SQLFile{Path: v}
		if database, path, ok := strings.Cut(v, "="); ok {
			file = dump.SQLFile{Database: database, Path: path}
		}
		if _, err := os.Stat(file.Path); err != nil {
			return nil, usage("FILE, or DATABASE=FILE", "--%s: %v", name, err)
		}
		out = append(out, file)
	}
	return out, nil
}
