package postgres

// Replaying a script on several connections.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"encdump/dump/script"
)

// ReplayOptions says how a script is replayed. The zero value is a good one.
type ReplayOptions struct {
	// Jobs is the number of connections that work at once; 0 stands for 1.
	Jobs int
	// KeepGoing collects statements that fail instead of stopping at the first.
	KeepGoing bool
	// MaintenanceWorkMem is the memory that may be used for building indexes, in kB, shared by all jobs; 0 stands for 1 GB.
	MaintenanceWorkMem int
	// Analyze gathers statistics of each database at its end.
	Analyze bool
	// Defer holds statements back until Finish, on a connection to the maintenance database: it is asked of statements
	// that stand outside of databases. nil defers none.
	Defer func(step script.Step) bool
	// Skip leaves statements out; nil leaves out none.
	Skip func(step script.Step) bool
	// Harmless tells of a failed statement whether it changes nothing that matters; nil is HarmlessFailure.
	Harmless func(step script.Step, err *pgconn.PgError) bool
	// Names are what to call databases in reports, where that is not what they are called.
	Names map[string]string
	// Progress is told how the replay gets on; nil is silent. Calls come from several goroutines.
	Progress func(ReplayProgress)
	Logger   *slog.Logger
}

// ReplayProgress is how far a replay is.
type ReplayProgress struct {
	Database        string
	Phase           string // schema, data, indexes, statistics
	Rows            int64
	Tables, Indexes int
	Statements      int
}

// Failure is a statement that failed.
type Failure struct {
	Database  string
	Statement string // its beginning, without passwords
	Offset    int64  // of the statement, in bytes of the script; -1 where it is none of the script's
	Err       error  // of the server, or of the connection
}

// Error is the statement, its place, and what the server said of it.
func (f *Failure) Error() string {
	where := ""
	if f.Database != "" {
		where = fmt.Sprintf(" in database %q", f.Database)
	}
	if f.Offset >= 0 {
		where += fmt.Sprintf(" (at byte %d of the script)", f.Offset)
	}
	return fmt.Sprintf("%s%s: %s", f.Statement, where, ServerMessage(f.Err))
}

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// Hint names ways out of the usual failures.
func (f *Failure) Hint() string {
	var e *pgconn.PgError
	switch {
	case !errors.As(f.Err, &e):
		return "the log of the server says why the connection ended; run the restore again, it cleans up and completes"
	case e.Code == "42501": // insufficient_privilege
		return "connect as a superuser, or leave out what others own and may do: --no-owner --no-privileges --no-globals"
	case e.Code == "42704" && strings.HasPrefix(e.Message, "role "): // undefined_object
		return "create the role, or leave out what others own and may do: --no-owner --no-privileges"
	}
	return ""
}

// ServerMessage is what a server said, in one line: severity, text, SQLSTATE, detail, hint and context.
func ServerMessage(err error) string {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return err.Error()
	}
	s := fmt.Sprintf("%s: %s (SQLSTATE %s)", e.Severity, e.Message, e.Code)
	for _, part := range []struct{ name, text string }{{"detail", e.Detail}, {"hint", e.Hint}, {"context", e.Where}} {
		if part.text != "" {
			s += "; " + part.name + ": " + part.text
		}
	}
	return strings.Join(strings.Fields(s), " ")
}

// Step of a replay that took long.
type SlowStep struct {
	Database, Statement string
	Duration            time.Duration
}

// ReplayReport tells what a replay did.
type ReplayReport struct {
	Databases       []string
	Rows            int64
	Tables, Indexes int // COPY blocks, and indexes and constraints
	Statements      int
	Phases          []PhaseTime
	Slowest         []SlowStep
	Harmless        []*Failure // failed, for a known cause that changes nothing
	Failures        []*Failure // collected, with KeepGoing
	Skipped         []string   // statements that Skip left out
	Subscriptions   []Subscription
}

// Subscription was created by the script, without a connection to its publisher.
type Subscription struct{ Database, Name string }

// PhaseTime is the time that a phase took in all databases.
type PhaseTime struct {
	Name     string
	Duration time.Duration
}

// HarmlessFailure knows the failures of a script of pg_dumpall that change nothing that matters: a role, membership or
// tablespace that exists, the role that restores among them, and comments on extensions that belong to somebody else.
func HarmlessFailure(step script.Step, err *pgconn.PgError) bool {
	switch {
	case step.Verb == "create" && (step.Kind == "role" || step.Kind == "tablespace"):
		return err.Code == "42710" // duplicate_object
	case step.Verb == "comment" && step.Kind == "extension":
		return err.Code == "42501" // insufficient_privilege
	}
	return false
}

// Replayer replays a script that is given to it item by item. Statements take effect in the order of the script, as
// far as one could tell the difference: rows are loaded on several connections, also into one table, and indexes and
// constraints are made side by side. One goroutine calls Item and Finish.
type Replayer struct {
	server *Server
	o      ReplayOptions
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelCauseFunc
	sched  *schedule
	conns  []*workerConn // by worker; the first is also that of statements that run alone

	database string // that the script is in; empty: outside, on the maintenance database
	steps    *script.Steps
	settings []setting // that the script has made in this database
	version  int       // of settings

	text   []byte // of a statement whose pieces come one by one
	textAt int64

	copy    *copyIn
	apart   []*copyIn        // those that Rows has taken and no worker was given yet
	taken   bool             // Rows has taken the rows of the COPY under way
	chunk   []byte           // rows that are not yet on their way
	free    chan []byte      // chunks
	made    int              // chunks
	loaded  map[string]int64 // bytes by table, in this database
	pending []statement      // that Defer holds back

	phase     string
	phaseFrom time.Time
	inTx      bool   // the script has begun a transaction: everything stays on the first connection
	restoring string // schema of TimescaleDB, between its pre- and its post-restore call

	mu     sync.Mutex
	report ReplayReport
	phases []PhaseTime
	rows   atomic.Int64 // that are committed
	live   atomic.Int64 // that are on their way or committed
	total  ReplayProgress
}

// workerConn is a connection of a worker.
type workerConn struct {
	conn     *pgconn.PgConn
	version  int // of the settings that it has
	parallel int // max_parallel_maintenance_workers
	memory   int // maintenance_work_mem in kB
}

// setting is a statement that changes its session.
type setting struct {
	name, sql string
	version   int
}

// statement of the script.
type statement struct {
	step script.Step
	sql  string
	at   int64
}

// chunkSize is the number of bytes of rows that go to a connection at once. Larger ones are not faster; smaller tables than this are
// loaded by one connection.
const chunkSize = 1 << 20

// NewReplayer starts a replay on a server, in the maintenance database that it is connected to. The caller calls
// Finish, also after a failure.
func NewReplayer(ctx context.Context, server *Server, o ReplayOptions) *Replayer {
	o.Jobs = max(o.Jobs, 1)
	if o.MaintenanceWorkMem <= 0 {
		o.MaintenanceWorkMem = 1 << 20
	}
	if o.Harmless == nil {
		o.Harmless = HarmlessFailure
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Replayer{server: server, o: o, log: o.Logger, conns: make([]*workerConn, o.Jobs), free: make(chan []byte, 2*o.Jobs+2)}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	r.sched = newSchedule(o.Jobs)
	r.steps, r.loaded = &script.Steps{}, map[string]int64{}
	r.enterPhase("globals")
	return r
}

// Item takes the next item of the script. An error ends the replay.
func (r *Replayer) Item(it script.Item) error {
	if err := context.Cause(r.ctx); err != nil {
		return err
	}
	switch it.Kind {
	case script.Statement:
		if len(r.text) == 0 {
			r.textAt = it.Offset
		}
		if it.More || len(r.text) > 0 {
			r.text = append(r.text, it.Text...)
			if it.More {
				return nil
			}
			text := r.text
			r.text = nil
			r.statement(text, r.textAt)
		} else {
			r.statement(it.Text, it.Offset)
		}
	case script.CopyRows:
		r.fill(it.Text)
	case script.CopyEnd:
		r.taken = false
		r.endCopy()
	case script.Meta:
		return r.meta(it)
	}
	return context.Cause(r.ctx)
}

// RowSource opens the rows of a COPY, as they stand in the script. It is called from any goroutine, perhaps more than
// once; who calls it closes what it returns. share tells that several are read at once.
type RowSource func(ctx context.Context, share bool) (io.ReadCloser, error)

// Rows takes the rows of the COPY whose statement Item was given last, and reports whether it does: then they are not
// given to Item, which is given the end of the data next. size is that of the rows in bytes. Such tables are loaded side by
// side, each on a connection of its own, which costs the server less than several connections in one table.
func (r *Replayer) Rows(size int64, open RowSource) bool {
	c := r.copy
	if c == nil || c.bytes > 0 || r.chunk != nil || r.inTx || r.restoring != "" || r.ctx.Err() != nil {
		return false
	}
	if r.o.Jobs == 1 {
		r.wait() // one after the other, as the script has them
		defer r.wait()
	}
	c.bytes, c.open = size, open
	r.copy, r.taken, r.apart = nil, true, append(r.apart, c)
	return true
}

// Finish ends the replay, when the whole script was given and err is nil, or when it failed with err, and closes its
// connections. The report is there in either case. The error is err, the first Failure, or why the context ended; with
// KeepGoing failures are in the report alone.
func (r *Replayer) Finish(err error) (*ReplayReport, error) {
	if err == nil && (len(r.text) > 0 || r.copy != nil || r.taken) {
		err = errors.New("the script ends within a statement")
	}
	if err != nil {
		r.cancel(err)
	}
	if r.copy != nil {
		r.endCopy()
	}
	r.leave()
	for _, s := range r.pending {
		r.alone(s)
	}
	r.wait()
	r.closeSessions()
	r.enterPhase("")
	err = context.Cause(r.ctx)
	r.sched.close()
	r.cancel(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Rows = r.rows.Load()
	r.report.Phases = r.phases
	return &r.report, err
}

// Replayable tells whether a meta-command is one of those that pg_dump and pg_dumpall write, which a Replayer knows.
func Replayable(it script.Item) bool {
	switch metaCommand(it) {
	case `\restrict`, `\unrestrict`, `\encoding`:
		return true
	case `\connect`, `\c`:
		_, ok := script.ParseConnect(it.Text)
		return ok
	}
	return false
}

func metaCommand(it script.Item) string {
	command, _, _ := bytes.Cut(bytes.TrimRight(it.Text, "\r\n"), []byte(" "))
	return string(command)
}

// meta takes a meta-command.
func (r *Replayer) meta(it script.Item) error {
	switch metaCommand(it) {
	case `\restrict`, `\unrestrict`, `\encoding`: // what psql needs
		return nil
	case `\connect`, `\c`:
		name, ok := script.ParseConnect(it.Text)
		if !ok {
			break
		}
		r.leave()
		r.database = name
		r.enterPhase("schema")
		r.tell(func(p *ReplayProgress) { p.Database = r.shown(name) })
		r.mu.Lock()
		r.report.Databases = append(r.report.Databases, r.shown(name))
		r.mu.Unlock()
		return context.Cause(r.ctx)
	}
	err := fmt.Errorf("byte %d of the script: only psql knows %s: restore to standard output, and pipe that into psql",
		it.Offset, script.Brief(it.Text, 60))
	r.cancel(err)
	return err
}

// leave ends the work in the database that the script was in.
func (r *Replayer) leave() {
	r.wait()
	if r.database != "" && r.ctx.Err() == nil {
		r.enterPhase("statistics")
		if r.o.Analyze && len(r.loaded) > 0 {
			r.analyze()
		}
		if r.restoring != "" {
			r.alone(statement{sql: fmt.Sprintf("SELECT %s.timescaledb_post_restore()", quoteIdent(r.restoring)), at: -1})
		}
	}
	r.closeSessions()
	r.database, r.restoring = "", ""
	r.steps, r.settings, r.loaded = &script.Steps{}, nil, map[string]int64{}
}

func (r *Replayer) closeSessions() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	for i, s := range r.conns {
		if s != nil {
			s.conn.Close(ctx)
			r.conns[i] = nil
		}
	}
}

func (r *Replayer) enterPhase(name string) {
	if name == r.phase {
		return
	}
	now := time.Now()
	if r.phase != "" {
		i := slices.IndexFunc(r.phases, func(p PhaseTime) bool { return p.Name == r.phase })
		if i < 0 {
			i = len(r.phases)
			r.phases = append(r.phases, PhaseTime{Name: r.phase})
		}
		r.phases[i].Duration += now.Sub(r.phaseFrom)
	}
	r.phase, r.phaseFrom = name, now
	r.tell(func(p *ReplayProgress) { p.Phase = name })
}

// wait has all that was given take effect.
func (r *Replayer) wait() {
	r.copyApart()
	r.sched.wait()
}

// tell changes the progress, and tells of it.
func (r *Replayer) tell(change func(*ReplayProgress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.total)
	r.total.Rows = r.live.Load()
	if r.o.Progress != nil {
		r.o.Progress(r.total)
	}
}

// statement takes a whole statement.
func (r *Replayer) statement(text []byte, at int64) {
	step := r.steps.Next(text)
	if r.o.Skip != nil && r.o.Skip(step) {
		r.mu.Lock()
		r.report.Skipped = append(r.report.Skipped, r.brief(string(text)))
		r.mu.Unlock()
		return
	}
	s := statement{step, string(text), at}
	if r.database == "" && r.o.Defer != nil && r.o.Defer(step) {
		r.pending = append(r.pending, s)
		return
	}
	if step.Phase == script.PhaseData && r.phase == "schema" {
		r.enterPhase("data")
	}
	if step.Phase == script.PhaseIndexes && (r.phase == "schema" || r.phase == "data") {
		// What an index or a check computes may look at any table.
		r.wait()
		r.enterPhase("indexes")
	}
	if r.inTx && step.Lane != script.CopyIn {
		step.Lane = script.Alone
	}
	switch step.Lane {
	case script.CopyIn:
		r.beginCopy(s)
	case script.Beside:
		size := r.loaded[tableKey(step)]
		r.sched.give(&job{needs: step.Needs, weight: 1 + size, run: func(worker int, alone bool) { r.beside(worker, alone, s, size) }})
	case script.Session:
		if r.alone(s) {
			name, _, ok := script.ParseSet(text)
			if !ok {
				name = s.sql
			}
			r.settings = slices.DeleteFunc(r.settings, func(x setting) bool { return x.name == name })
			r.version++
			r.settings = append(r.settings, setting{name, s.sql, r.version})
			if c := r.conns[0]; c != nil {
				c.version = r.version
			}
		}
	default:
		ok := r.alone(s)
		if ok && step.Verb == "create" && step.Kind == "subscription" {
			r.mu.Lock()
			r.report.Subscriptions = append(r.report.Subscriptions, Subscription{r.shown(r.database), step.Name})
			r.mu.Unlock()
		}
		if ok && step.Verb == "create" && step.Kind == "extension" && step.Name == "timescaledb" {
			r.beginTimescale()
		}
	}
}

func tableKey(s script.Step) string { return s.Schema + "." + s.Name }

// briefLength is how much of a statement is shown.
const briefLength = 160

// session returns the connection of a worker, with the settings that the script has made.
func (r *Replayer) session(worker int) (*workerConn, error) {
	s := r.conns[worker]
	if s == nil {
		database := r.database
		if database == "" {
			database = r.server.info.Database
		}
		conn, err := r.server.Open(r.ctx, database)
		if err != nil {
			return nil, err
		}
		s = &workerConn{conn: conn, parallel: -1, memory: r.o.MaintenanceWorkMem / r.o.Jobs}
		r.conns[worker] = s
		// A crash of the server may lose commits of the last moments, and then the restore is run again anyway.
		if err := runSQL(r.ctx, conn, fmt.Sprintf("SET synchronous_commit = off; SET jit = off; SET maintenance_work_mem = %d", s.memory)); err != nil {
			return nil, err
		}
	}
	for _, x := range r.settings {
		if x.version > s.version {
			if err := runSQL(r.ctx, s.conn, x.sql); err != nil {
				return nil, err
			}
		}
	}
	s.version = r.version
	return s, nil
}

// runSQL runs statements and passes over what they return.
func runSQL(ctx context.Context, conn *pgconn.PgConn, sql string) error {
	results := conn.Exec(ctx, sql)
	for results.NextResult() {
		result := results.ResultReader()
		for result.NextRow() {
			continue
		}
		result.Close() // its error comes again
	}
	return results.Close()
}

// alone runs a statement when all before it have ended, and reports whether it succeeded.
func (r *Replayer) alone(s statement) bool {
	r.wait()
	ok := r.run(0, s, func(c *workerConn) error { return runSQL(r.ctx, c.conn, s.sql) })
	r.inTx = r.conns[0] != nil && !r.conns[0].conn.IsClosed() && r.conns[0].conn.TxStatus() != 'I'
	return ok
}

// beside runs a statement beside others. size is that of its table's rows in the script, in bytes; 0 where it is not known.
func (r *Replayer) beside(worker int, alone bool, s statement, size int64) {
	ok := r.run(worker, s, func(c *workerConn) error {
		// An index that is built while nothing else can be done may use the other processors in its own way.
		parallel := 0
		if alone {
			parallel = r.o.Jobs - 1
		}
		if s.step.Phase == script.PhaseIndexes {
			memory := c.memory
			if s.step.Kind == "index" || s.step.Kind == "constraint" || s.step.Kind == "foreign key" {
				memory = r.o.MaintenanceWorkMem / r.o.Jobs
			}
			if size > 0 && sorts(s) {
				memory = min(memory, sortMemory(size)*(1+parallel))
			}
			if c.parallel != parallel || c.memory != memory {
				if err := runSQL(r.ctx, c.conn, fmt.Sprintf("SET max_parallel_maintenance_workers = %d; SET maintenance_work_mem = %d", parallel, memory)); err != nil {
					return err
				}
				c.parallel, c.memory = parallel, memory
			}
		}
		return runSQL(r.ctx, c.conn, s.sql)
	})
	if ok && (s.step.Kind == "index" && s.step.Verb == "create" || s.step.Kind == "constraint" && s.step.Verb == "alter" || s.step.Kind == "foreign key") {
		r.mu.Lock()
		r.report.Indexes++
		r.mu.Unlock()
		r.tell(func(p *ReplayProgress) { p.Indexes++ })
	}
}

// sorts tells whether a statement makes a B-tree, which is done by sorting.
func sorts(s statement) bool {
	switch {
	case s.step.Kind == "constraint" && s.step.Verb == "alter":
		return !strings.Contains(s.sql, " EXCLUDE ") && !strings.Contains(s.sql, " WITHOUT OVERLAPS")
	case s.step.Kind == "index" && s.step.Verb == "create":
		return strings.Contains(s.sql, " USING btree ")
	}
	return false
}

// sortMemory is the maintenance_work_mem, in kB, with which a B-tree on a table of that size, in bytes, is built
// fastest. More of it makes sorting slower, as it then happens outside of the processor's caches. It is enough where
// all sorted runs are merged in one pass: each takes 264 kB of it then (MERGE_BUFFER_SIZE and TAPE_BUFFER_OVERHEAD in
// tuplesort.c), and is as long as it is large. What is sorted is taken for four times the bytes of the script, as it may
// be where rows are narrow.
func sortMemory(size int64) int {
	return max(64<<10, int(math.Sqrt(4*float64(size)*(264<<10)))>>10)
}

// run runs what a statement asks for on a worker's connection, and keeps the books.
func (r *Replayer) run(worker int, s statement, do func(*workerConn) error) bool {
	if r.ctx.Err() != nil {
		return false
	}
	start := time.Now()
	c, err := r.session(worker)
	if err == nil {
		err = do(c)
	}
	r.slow(s, time.Since(start))
	r.mu.Lock()
	r.report.Statements++
	r.total.Statements++
	r.mu.Unlock()
	if err != nil {
		r.fail(s, err)
	}
	return err == nil
}

// slowest is how many slow steps are reported.
const slowest = 10

func (r *Replayer) slow(s statement, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.report.Slowest
	if len(list) == slowest && list[slowest-1].Duration >= d {
		return
	}
	i, _ := slices.BinarySearchFunc(list, d, func(x SlowStep, d time.Duration) int { return int(d - x.Duration) })
	list = slices.Insert(list, i, SlowStep{r.shown(r.database), r.brief(s.sql), d})
	r.report.Slowest = list[:min(len(list), slowest)]
}

// shown is what to call a database.
func (r *Replayer) shown(database string) string {
	if name, ok := r.o.Names[database]; ok {
		return name
	}
	return database
}

// publicNames puts what databases are to be called into a text.
func (r *Replayer) publicNames(text string) string {
	for name, shown := range r.o.Names {
		if strings.Contains(text, name) {
			text = strings.ReplaceAll(strings.ReplaceAll(text, quoteIdent(name), quoteIdent(shown)), name, shown)
		}
	}
	return text
}

// brief is the beginning of a statement, for reports.
func (r *Replayer) brief(sql string) string {
	return r.publicNames(script.Brief([]byte(sql), briefLength))
}

// fail notes that a statement failed, and ends the replay unless that does not matter.
func (r *Replayer) fail(s statement, err error) {
	if r.ctx.Err() != nil {
		return // it follows from what ended the replay
	}
	var e *pgconn.PgError
	if errors.As(err, &e) {
		shown := *e
		shown.Message, shown.Detail = r.publicNames(e.Message), r.publicNames(e.Detail)
		err = &shown
	}
	f := &Failure{r.shown(r.database), r.brief(s.sql), s.at, err}
	isServer := e != nil && e.Severity != "FATAL" && e.Severity != "PANIC"
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case isServer && (r.o.Harmless(s.step, e) || s.step.Lane == script.Session && e.Code == "42704"):
		// A setting that this server does not know is one of a newer pg_dump.
		r.report.Harmless = append(r.report.Harmless, f)
		r.log.Debug("statement failed, which does no harm", "statement", f.Statement, "err", ServerMessage(err))
	case isServer && r.o.KeepGoing:
		r.report.Failures = append(r.report.Failures, f)
		r.log.Warn("statement failed", "err", f)
	default:
		r.cancel(f)
	}
}

// analyze gathers statistics of all tables, side by side.
func (r *Replayer) analyze() {
	var tables [][2]string
	ok := r.run(0, statement{sql: "list of tables to analyze", at: -1}, func(c *workerConn) error {
		results, err := c.conn.Exec(r.ctx, `SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY pg_catalog.pg_relation_size(c.oid) DESC`).ReadAll()
		if err != nil {
			return err
		}
		for _, row := range results[0].Rows {
			tables = append(tables, [2]string{string(row[0]), string(row[1])})
		}
		return nil
	})
	if !ok {
		return
	}
	for _, t := range tables {
		s := statement{sql: fmt.Sprintf("ANALYZE %s.%s", quoteIdent(t[0]), quoteIdent(t[1])), at: -1}
		r.sched.give(&job{run: func(worker int, _ bool) {
			r.run(worker, s, func(c *workerConn) error { return runSQL(r.ctx, c.conn, s.sql) })
		}})
	}
	r.sched.wait()
}

// beginTimescale makes the call that TimescaleDB wants before its tables are filled. It sets a parameter of the
// database, which sessions take when they begin.
func (r *Replayer) beginTimescale() {
	s := statement{sql: "SELECT timescaledb_pre_restore()", at: -1}
	ok := r.run(0, s, func(c *workerConn) error {
		row, err := queryRow(r.ctx, c.conn, `SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb'`)
		if err != nil || len(row) == 0 {
			return err
		}
		r.restoring = row[0]
		return runSQL(r.ctx, c.conn, fmt.Sprintf("SELECT %s.timescaledb_pre_restore()", quoteIdent(r.restoring)))
	})
	if ok {
		r.closeSessions()
	}
}

// quoteIdent writes a name for SQL.
func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// copyIn is a COPY under way. Unless copyWhole reads them, rows come in chunks through a queue, from which one or
// several connections take them. All of these commit when all have succeeded, so that of a COPY that fails no row stays.
type copyIn struct {
	statement
	table  string
	job    *job
	queue  chan []byte
	failed chan struct{} // closed when nobody takes rows any more
	rows   atomic.Int64
	bytes  int64
	open   RowSource // the rows, where they are apart

	mu             sync.Mutex
	ended          sync.Cond
	joined, copied int // connections that take part, and those that have sent all they had
	finished       bool
	err            error
}

func (r *Replayer) beginCopy(s statement) {
	c := &copyIn{statement: s, table: tableKey(s.step), queue: make(chan []byte, r.o.Jobs+1), failed: make(chan struct{})}
	c.ended.L = &c.mu
	r.copy = c
}

// copyApart gives the tables whose rows are apart to the workers, the largest first. The largest are loaded by all of
// them where some would have nothing to do in the end otherwise, and so are tables that keep others waiting.
func (r *Replayer) copyApart() {
	list := r.apart
	r.apart = nil
	slices.SortStableFunc(list, func(a, b *copyIn) int { return cmp.Compare(b.bytes, a.bytes) })
	var whole, shared []*copyIn
	var total int64
	for _, c := range list {
		total += c.bytes
		if r.o.Jobs > 1 && slices.ContainsFunc(c.step.Needs, func(n script.Need) bool { return n.Exclusive }) {
			shared = append(shared, c)
		} else {
			whole = append(whole, c)
		}
	}
	for len(whole) > 0 && longest(whole, r.o.Jobs) > total/int64(r.o.Jobs)*13/10 {
		shared, whole = append(shared, whole[0]), whole[1:]
	}
	for _, c := range whole {
		r.loaded[c.table] += c.bytes
		r.sched.give(&job{needs: c.step.Needs, weight: c.bytes, run: func(worker int, _ bool) { r.copyWhole(worker, c) }})
	}
	for _, c := range shared {
		if r.ctx.Err() != nil {
			return
		}
		r.copy = c
		c.bytes = 0
		rows, err := c.open(r.ctx, false)
		if err == nil {
			err = r.fillFrom(rows)
			rows.Close()
		}
		if err != nil {
			r.cancel(err)
		}
		r.endCopy()
	}
}

// longest returns how many bytes the busiest of the jobs has, when each takes the next table as it is free.
func longest(list []*copyIn, jobs int) int64 {
	work := make([]int64, jobs)
	for _, c := range list {
		least := slices.Index(work, slices.Min(work))
		work[least] += c.bytes
	}
	return slices.Max(work)
}

// fillFrom takes rows from a reader. The last of them wait for endCopy.
func (r *Replayer) fillFrom(rows io.Reader) error {
	var rest []byte // of a row
	for {
		chunk := r.getChunk()
		if chunk == nil {
			return nil // the replay has ended
		}
		chunk = append(chunk, rest...)
		end := 0
		var err error
		for end == 0 && err == nil {
			if len(chunk) == cap(chunk) {
				chunk = slices.Grow(chunk, len(chunk))
			}
			for len(chunk) < cap(chunk) && err == nil {
				var n int
				n, err = rows.Read(chunk[len(chunk):cap(chunk)])
				chunk = chunk[:len(chunk)+n]
			}
			if end = rowEnd(chunk, len(chunk)); !endsRow(chunk[:end]) {
				end = 0
			}
		}
		if err == io.EOF {
			r.chunk = chunk
			return nil
		}
		if err != nil {
			r.putChunk(chunk)
			return err
		}
		rest = append(rest[:0], chunk[end:]...)
		r.chunk = chunk[:end]
		r.send(false)
	}
}

// copyWhole loads a table on one worker's connection, from a reader of its own.
func (r *Replayer) copyWhole(worker int, c *copyIn) {
	start := time.Now()
	rows, err := r.copyAlone(worker, c, true)
	var e *pgconn.PgError
	if errors.As(err, &e) && (e.Code == "25000" || e.Code == "55000") {
		// invalid_transaction_state, object_not_in_prerequisite_state: FREEZE is refused, before any row.
		rows, err = r.copyAlone(worker, c, false)
	}
	r.slow(c.statement, time.Since(start))
	if err != nil {
		r.fail(c.statement, err)
		return
	}
	r.loadedTable(rows)
}

// copyAlone is one attempt of copyWhole, and returns the number of rows that are committed. With freeze they are frozen
// where that is possible.
func (r *Replayer) copyAlone(worker int, c *copyIn, freeze bool) (int64, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	session, err := r.session(worker)
	if err != nil {
		return 0, err
	}
	conn := session.conn
	rows, err := c.open(r.ctx, true)
	if err != nil {
		r.cancel(err)
		return 0, err
	}
	defer rows.Close()
	sql := c.sql
	if freeze {
		if sql, err = r.beginFrozen(conn, c); err != nil {
			return 0, err
		}
	}
	if conn.TxStatus() == 'I' {
		if err := runSQL(r.ctx, conn, "BEGIN"); err != nil {
			return 0, err
		}
	}
	src := &sender{r: r, rows: rows}
	tag, err := conn.CopyFrom(r.ctx, src, sql)
	if failed := src.failed(); failed != nil {
		r.cancel(failed) // the backup's failure, not the server's
	}
	if err != nil {
		if !conn.IsClosed() {
			runSQL(r.ctx, conn, "ROLLBACK") // what fails here has failed above
		}
		return 0, err
	}
	if err := runSQL(r.ctx, conn, "COMMIT"); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	return tag.RowsAffected(), nil
}

// beginFrozen begins a transaction in which rows are written as frozen, and returns the COPY for that. It needs a table
// that nothing was ever in; for others, and where it is not permitted, no transaction is begun, and the COPY is the
// script's. Who reads frozen rows first, which is whoever builds the indexes, need not write their pages a second time,
// and from version 14 on autovacuum need not either. The server wants the table to be truncated in that transaction,
// and then writes no WAL for it at wal_level minimal.
func (r *Replayer) beginFrozen(conn *pgconn.PgConn, c *copyIn) (sql string, err error) {
	head, ok := strings.CutSuffix(strings.TrimSpace(c.sql), "FROM stdin;")
	if !ok {
		return c.sql, nil
	}
	table := quoteIdent(c.step.Name)
	if c.step.Schema != "" {
		table = quoteIdent(c.step.Schema) + "." + table
	}
	// A snapshot of the transaction would forbid FREEZE. Nobody is waited for: connections that load another table, and
	// read this one in a check, may wait for each other. A heap table has access method 2, before version 12 none.
	err = runSQL(r.ctx, conn, "BEGIN ISOLATION LEVEL READ COMMITTED; LOCK TABLE ONLY "+table+" IN ACCESS EXCLUSIVE MODE NOWAIT")
	var fit row
	if err == nil {
		fit, err = queryRow(r.ctx, conn, "SELECT 1 FROM pg_catalog.pg_class WHERE oid = "+QuoteLiteral(table)+
			"::pg_catalog.regclass AND relkind = 'r' AND relam IN (0, 2) AND NOT relhastriggers AND pg_catalog.pg_relation_size(oid) = 0")
	}
	if err == nil && len(fit) > 0 {
		if err = runSQL(r.ctx, conn, "TRUNCATE ONLY "+table); err == nil {
			return head + "FROM stdin WITH (FREEZE)", nil
		}
	}
	var e *pgconn.PgError
	if err != nil && (!errors.As(err, &e) || conn.IsClosed()) {
		return "", err
	}
	return c.sql, runSQL(r.ctx, conn, "ROLLBACK")
}

// fill takes rows, whole but for the last.
func (r *Replayer) fill(text []byte) {
	for len(text) > 0 && r.ctx.Err() == nil {
		if r.chunk == nil {
			if r.chunk = r.getChunk(); r.chunk == nil {
				return
			}
		}
		n := len(text)
		if room := chunkSize - len(r.chunk); n > room {
			n = rowEnd(text, max(room, 0))
		}
		r.chunk = append(r.chunk, text[:n]...)
		text = text[n:]
		if len(text) > 0 || len(r.chunk) >= chunkSize && endsRow(r.chunk) {
			r.send(false)
		}
	}
}

// endsRow tells whether text ends behind a row: with a newline that no backslash makes a part of the row.
func endsRow(text []byte) bool {
	n := len(text)
	return n > 0 && text[n-1] == '\n' && (n < 2 || text[n-2] != '\\')
}

// rowEnd returns where the last row ends that ends within n bytes; otherwise, where the first one ends behind those, and
// the length of text if none ends in it.
func rowEnd(text []byte, n int) int {
	for i := n; i > 0; i-- {
		if i = bytes.LastIndexByte(text[:i], '\n') + 1; i > 0 && endsRow(text[:i]) {
			return i
		}
	}
	for i := n; i < len(text); {
		k := bytes.IndexByte(text[i:], '\n') + 1
		if k == 0 {
			break
		}
		if i += k; endsRow(text[:i]) {
			return i
		}
	}
	return len(text)
}

func (r *Replayer) getChunk() []byte {
	select {
	case b := <-r.free:
		return b
	default:
	}
	if r.made < cap(r.free) {
		r.made++
		return make([]byte, 0, chunkSize+chunkSize/4)
	}
	select {
	case b := <-r.free:
		return b
	case <-r.ctx.Done():
		return nil
	}
}

func (r *Replayer) putChunk(b []byte) {
	if cap(b) > 4*chunkSize { // of one huge row
		b = make([]byte, 0, chunkSize+chunkSize/4)
	}
	r.free <- b[:0]
}

// send puts the chunk on its way. The first one of a table that has more starts its COPY.
func (r *Replayer) send(last bool) {
	c, chunk := r.copy, r.chunk
	r.chunk = nil
	if chunk == nil {
		return
	}
	if c == nil {
		r.putChunk(chunk) // rows without a COPY, which the server has refused
		return
	}
	c.bytes += int64(len(chunk))
	if c.job == nil {
		r.start(c, last)
	}
	select {
	case c.queue <- chunk:
		r.sched.poke()
	case <-c.failed:
		r.putChunk(chunk)
	case <-r.ctx.Done():
		r.putChunk(chunk)
	}
}

// more tells that rows wait for a further connection.
func (c *copyIn) more() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.finished && len(c.queue) > 0
}

// start gives the COPY to the workers. Where all rows are in one chunk, one connection loads them.
func (r *Replayer) start(c *copyIn, small bool) {
	c.job = &job{needs: c.step.Needs, run: func(worker int, _ bool) { r.copyRows(worker, c) }}
	switch {
	case r.inTx:
		// Only the script's own connection sees what its transaction has done.
		go r.copyRows(0, c)
		return
	case !small:
		c.job.more = c.more
	}
	r.sched.give(c.job)
}

// endCopy ends the rows of a COPY.
func (r *Replayer) endCopy() {
	c := r.copy
	if c == nil {
		return
	}
	if r.chunk == nil && c.job == nil {
		r.chunk = r.getChunk() // of a table without rows, which must exist all the same
	}
	r.send(true)
	close(c.queue)
	r.sched.poke()
	r.copy = nil
	select {
	case <-c.failed:
		r.drain(c)
	default:
	}
	r.loaded[c.table] += c.bytes
	if r.inTx && c.job != nil {
		c.mu.Lock()
		for !c.finished {
			c.ended.Wait()
		}
		c.mu.Unlock()
	}
}

// copyRows takes part in a COPY on a worker's connection.
func (r *Replayer) copyRows(worker int, c *copyIn) {
	c.mu.Lock()
	if c.finished {
		c.mu.Unlock()
		return
	}
	c.joined++
	c.mu.Unlock()

	start := time.Now()
	session, err := r.session(worker)
	own := false
	if err == nil && session.conn.TxStatus() == 'I' {
		own = true
		err = runSQL(r.ctx, session.conn, "BEGIN")
	}
	src := r.newRowReader(c.queue)
	var tag pgconn.CommandTag
	if err == nil {
		tag, err = session.conn.CopyFrom(r.ctx, src, c.sql)
	}
	src.release()
	c.rows.Add(tag.RowsAffected())

	c.mu.Lock()
	c.copied++
	if err != nil && c.err == nil {
		c.err = err
		close(c.failed)
	}
	last := c.copied == c.joined
	if last {
		c.finished = true
		c.ended.Broadcast()
	}
	for !c.finished {
		c.ended.Wait()
	}
	failure := c.err
	c.mu.Unlock()

	if own && session != nil && !session.conn.IsClosed() {
		end := "COMMIT"
		if failure != nil {
			end = "ROLLBACK"
		}
		if err := runSQL(r.ctx, session.conn, end); err != nil && failure == nil {
			failure = fmt.Errorf("commit: %w", err)
			r.fail(c.statement, failure)
		}
	}
	if !last {
		return
	}
	if failure != nil {
		r.drain(c)
	}
	r.slow(c.statement, time.Since(start))
	if failure != nil {
		if c.joined > 1 {
			failure = withoutLine(failure)
		}
		r.fail(c.statement, failure)
		return
	}
	r.loadedTable(c.rows.Load())
}

// loadedTable counts a table that is committed.
func (r *Replayer) loadedTable(rows int64) {
	r.rows.Add(rows)
	r.mu.Lock()
	r.report.Tables++
	r.report.Statements++
	r.mu.Unlock()
	r.tell(func(p *ReplayProgress) { p.Tables++ })
}

// sender is what a connection reads the rows of a whole table from. As with rowReader, Read may still be under way when
// CopyFrom has returned.
type sender struct {
	r      *Replayer
	rows   io.Reader
	unsaid int // bytes since the progress was told

	mu  sync.Mutex
	err error
}

func (s *sender) Read(p []byte) (int, error) {
	n, err := s.rows.Read(p)
	if s.r.o.Progress != nil {
		s.r.live.Add(int64(bytes.Count(p[:n], []byte{'\n'})))
		if s.unsaid += n; s.unsaid >= chunkSize {
			s.unsaid = 0
			s.r.tell(func(*ReplayProgress) {})
		}
	}
	if err != nil && err != io.EOF {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

// failed returns why the rows could not be read.
func (s *sender) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// drain gives back what waits in the queue of a COPY that failed.
func (r *Replayer) drain(c *copyIn) {
	for {
		select {
		case chunk, ok := <-c.queue:
			if !ok {
				return
			}
			r.putChunk(chunk)
		default:
			return
		}
	}
}

var copyLine = regexp.MustCompile(`, line [0-9]+`)

// withoutLine takes the number of the line out of the context of an error, which counts the rows of one connection.
func withoutLine(err error) error {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return err
	}
	other := *e
	other.Where = copyLine.ReplaceAllString(other.Where, "")
	return &other
}

// rowReader reads the chunks of a queue one after the other. After a connection is lost CopyFrom returns while it may still be
// in Read, which is why that takes part in no more than the reader's own.
type rowReader struct {
	r     *Replayer
	queue chan []byte
	done  chan struct{} // closed by release

	mu          sync.Mutex
	chunk, rest []byte
}

func (r *Replayer) newRowReader(queue chan []byte) *rowReader {
	return &rowReader{r: r, queue: queue, done: make(chan struct{})}
}

var errReleased = errors.New("the rows are not wanted any more")

func (s *rowReader) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.rest) == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// next gives the chunk back and takes another one. It is called, and returns, with mu held.
func (s *rowReader) next() error {
	s.giveBack()
	s.mu.Unlock()
	var chunk []byte
	err := io.EOF
	select {
	case <-s.done:
		err = errReleased
	case <-s.r.ctx.Done():
		err = context.Cause(s.r.ctx)
	case c, ok := <-s.queue:
		if ok {
			chunk, err = c, nil
			if s.r.o.Progress != nil {
				s.r.live.Add(int64(bytes.Count(chunk, []byte{'\n'})))
				s.r.tell(func(*ReplayProgress) {})
			}
		}
	}
	s.mu.Lock()
	if err != nil {
		return err
	}
	s.chunk, s.rest = chunk, chunk
	select {
	case <-s.done: // meanwhile
		s.giveBack()
		return errReleased
	default:
		return nil
	}
}

func (s *rowReader) giveBack() {
	if s.chunk != nil {
		s.r.putChunk(s.chunk)
		s.chunk, s.rest = nil, nil
	}
}

// release ends the reading.
func (s *rowReader) release() {
	close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveBack()
}
