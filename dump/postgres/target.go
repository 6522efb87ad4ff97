package postgres

// A server to restore into: what is there, and how databases come and go.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// StandbyError says that a server cannot be restored into.
type StandbyError struct {
	Host     string
	Upstream string // whom it follows, where it tells
}

func (e *StandbyError) Error() string {
	return fmt.Sprintf("server %s is a standby, which cannot be restored into", e.Host)
}

// Hint names the primary, where it is known.
func (e *StandbyError) Hint() string {
	if e.Upstream != "" {
		return "it follows " + e.Upstream + ": restore into the primary; with several hosts in the connection string it is found"
	}
	return "restore into the primary; with several hosts in the connection string it is found"
}

// ConnectPrimary is Connect to the primary among the hosts that c names. Where only standbys answer, the error is a
// *StandbyError.
func ConnectPrimary(ctx context.Context, c Config) (*Server, error) {
	st, err := resolve(c.DSN)
	if err != nil {
		return nil, err
	}
	if st.values["target_session_attrs"] == "" || st.values["target_session_attrs"] == "any" {
		st.values["target_session_attrs"] = "primary"
	}
	server, err := connectServer(ctx, c, st)
	if err == nil && !server.info.Standby {
		return server, nil
	}
	if err == nil {
		server.Close()
	}
	if ctx.Err() != nil {
		return nil, err
	}
	// A server that answers and is none explains more than the refusal.
	st.values["target_session_attrs"] = "any"
	other, anyErr := connectServer(ctx, c, st)
	if anyErr != nil {
		return nil, anyErr
	}
	defer other.Close()
	if !other.info.Standby {
		return nil, err
	}
	standby := &StandbyError{Host: other.info.Host}
	if row, err := queryRow(ctx, other.conn, "SELECT sender_host, sender_port FROM pg_catalog.pg_stat_wal_receiver"); err == nil && row.at(0) != "" {
		standby.Upstream = net.JoinHostPort(row.at(0), row.at(1))
	}
	return nil, standby
}

// Contents is what a server holds, as far as a restore must know.
type Contents struct {
	Superuser, CreateDB, CreateRole bool
	DataDirectory                   string // empty where it may not be seen
	Local                           bool   // the connection goes through a socket, so that DataDirectory is on this machine
	Databases                       []TargetDatabase
	Roles, Tablespaces, Extensions  []string // that exist; extensions are those that could be created
	Slots                           []Slot
}

// TargetDatabase is a database of the server.
type TargetDatabase struct {
	Name     string
	Size     int64    // in bytes; -1 where it may not be seen
	Template bool     // is a template
	Closed   bool     // accepts no connections
	Objects  int      // that a user has made; -1 where one could not look
	Examples []string // names of some of these
}

// Slot is a replication slot.
type Slot struct {
	Name, Database string
	Active         bool
}

// Connection to a database.
type Connection struct {
	PID                         int
	Database, User, Application string
	Client                      string
}

func (c Connection) String() string {
	s := fmt.Sprintf("process %d, user %q, database %q", c.PID, c.User, c.Database)
	if c.Application != "" {
		s += fmt.Sprintf(", application %q", c.Application)
	}
	if c.Client != "" {
		s += ", client " + c.Client
	}
	return s
}

// Find returns the database of that name, or nil.
func (c *Contents) Find(name string) *TargetDatabase {
	for i := range c.Databases {
		if c.Databases[i].Name == name {
			return &c.Databases[i]
		}
	}
	return nil
}

// firstUserOID is FirstNormalObjectId of access/transam.h: objects below are of the system.
const firstUserOID = "16384"

// userObjects finds what a user has made. Extensions are named, and stand for what they have; the rest is what a
// database has when initdb has made it.
const userObjects = `WITH objects AS (
	SELECT 1 AS rank, 'pg_catalog.pg_class'::pg_catalog.regclass AS class, c.oid, n.nspname || '.' || c.relname AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname !~ '^pg_'
	UNION ALL SELECT 2, 'pg_catalog.pg_extension'::pg_catalog.regclass, oid, 'extension ' || extname FROM pg_catalog.pg_extension
	UNION ALL SELECT 3, 'pg_catalog.pg_proc'::pg_catalog.regclass, oid, proname FROM pg_catalog.pg_proc
	UNION ALL SELECT 4, 'pg_catalog.pg_type'::pg_catalog.regclass, oid, typname FROM pg_catalog.pg_type WHERE typtype IN ('b', 'd', 'e', 'r') AND typelem = 0 OR typtype = 'c' AND typrelid IN (SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'c')
	UNION ALL SELECT 5, 'pg_catalog.pg_namespace'::pg_catalog.regclass, oid, nspname FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_'
	UNION ALL SELECT 6, 'pg_catalog.pg_largeobject'::pg_catalog.regclass, oid, 'large object ' || oid FROM pg_catalog.pg_largeobject_metadata
	UNION ALL SELECT 7, 'pg_catalog.pg_operator'::pg_catalog.regclass, oid, 'operator ' || oprname FROM pg_catalog.pg_operator
	UNION ALL SELECT 7, 'pg_catalog.pg_opfamily'::pg_catalog.regclass, oid, 'operator family ' || opfname FROM pg_catalog.pg_opfamily
	UNION ALL SELECT 7, 'pg_catalog.pg_am'::pg_catalog.regclass, oid, 'access method ' || amname FROM pg_catalog.pg_am
	UNION ALL SELECT 7, 'pg_catalog.pg_cast'::pg_catalog.regclass, oid, 'cast' FROM pg_catalog.pg_cast
	UNION ALL SELECT 7, 'pg_catalog.pg_collation'::pg_catalog.regclass, c.oid, 'collation ' || collname FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = collnamespace WHERE nspname <> 'pg_catalog'
	UNION ALL SELECT 7, 'pg_catalog.pg_conversion'::pg_catalog.regclass, oid, 'conversion ' || conname FROM pg_catalog.pg_conversion
	UNION ALL SELECT 7, 'pg_catalog.pg_language'::pg_catalog.regclass, oid, 'language ' || lanname FROM pg_catalog.pg_language
	UNION ALL SELECT 7, 'pg_catalog.pg_ts_config'::pg_catalog.regclass, oid, 'text search configuration ' || cfgname FROM pg_catalog.pg_ts_config
	UNION ALL SELECT 7, 'pg_catalog.pg_ts_dict'::pg_catalog.regclass, oid, 'text search dictionary ' || dictname FROM pg_catalog.pg_ts_dict
	UNION ALL SELECT 7, 'pg_catalog.pg_foreign_data_wrapper'::pg_catalog.regclass, oid, 'foreign data wrapper ' || fdwname FROM pg_catalog.pg_foreign_data_wrapper
	UNION ALL SELECT 7, 'pg_catalog.pg_foreign_server'::pg_catalog.regclass, oid, 'foreign server ' || srvname FROM pg_catalog.pg_foreign_server
	UNION ALL SELECT 7, 'pg_catalog.pg_event_trigger'::pg_catalog.regclass, oid, 'event trigger ' || evtname FROM pg_catalog.pg_event_trigger
	UNION ALL SELECT 7, 'pg_catalog.pg_default_acl'::pg_catalog.regclass, oid, 'default privileges' FROM pg_catalog.pg_default_acl%s
)
SELECT (count(*) OVER ()), name FROM objects o WHERE o.oid >= ` + firstUserOID + `
	AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
ORDER BY rank, class, name LIMIT 3`

// replicationObjects are those of userObjects that came with version 10.
const replicationObjects = `
	UNION ALL SELECT 8, 'pg_catalog.pg_publication'::pg_catalog.regclass, oid, 'publication ' || pubname FROM pg_catalog.pg_publication
	UNION ALL SELECT 8, 'pg_catalog.pg_subscription'::pg_catalog.regclass, oid, 'subscription ' || subname FROM pg_catalog.pg_subscription WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())`

// Look returns what the server holds. It connects to every database that can be connected to.
func (s *Server) Look(ctx context.Context) (*Contents, error) {
	c := &Contents{Local: strings.HasPrefix(s.target.host, "/")}
	row, err := queryRow(ctx, s.conn, "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user")
	if err != nil {
		return nil, err
	}
	c.Superuser, c.CreateDB, c.CreateRole = row.at(0) == "t", row.at(1) == "t", row.at(2) == "t"
	if row, err := queryRow(ctx, s.conn, "SHOW data_directory"); err == nil {
		c.DataDirectory = row.at(0)
	}
	for _, list := range []struct {
		to  *[]string
		sql string
	}{
		{&c.Roles, "SELECT rolname FROM pg_catalog.pg_roles"},
		{&c.Tablespaces, "SELECT spcname FROM pg_catalog.pg_tablespace"},
		{&c.Extensions, "SELECT name FROM pg_catalog.pg_available_extensions"},
	} {
		rows, err := s.query(ctx, list.sql)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			*list.to = append(*list.to, r[0])
		}
	}
	slots, err := s.query(ctx, "SELECT slot_name, coalesce(database, ''), active FROM pg_catalog.pg_replication_slots ORDER BY 1")
	if err != nil {
		return nil, err
	}
	for _, r := range slots {
		c.Slots = append(c.Slots, Slot{r[0], r[1], r[2] == "t"})
	}
	databases, err := s.query(ctx, `SELECT datname, datistemplate, datallowconn AND datconnlimit <> -2,
		CASE WHEN pg_catalog.has_database_privilege(oid, 'CONNECT') THEN pg_catalog.pg_database_size(oid) ELSE -1 END
		FROM pg_catalog.pg_database WHERE datname <> 'template0' ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	for _, r := range databases {
		d := TargetDatabase{Name: r[0], Template: r[1] == "t", Closed: r[2] != "t", Objects: -1}
		d.Size, _ = strconv.ParseInt(r[3], 10, 64)
		if !d.Closed {
			if err := s.lookInto(ctx, &d); err != nil {
				return nil, err
			}
		}
		c.Databases = append(c.Databases, d)
	}
	return c, nil
}

// lookInto counts what users have made in a database.
func (s *Server) lookInto(ctx context.Context, d *TargetDatabase) error {
	conn, err := s.Open(ctx, d.Name)
	if err != nil {
		var e *pgconn.PgError
		if errors.As(err, &e) {
			return nil // not for us, or gone
		}
		return err
	}
	defer closeConn(conn)
	s.looked = append(s.looked, int(conn.PID()))
	later := ""
	if s.info.Version >= 100000 {
		later = replicationObjects
	}
	results, err := conn.Exec(ctx, fmt.Sprintf(userObjects, later)).ReadAll()
	if err != nil {
		return err
	}
	d.Objects = 0
	for _, row := range results[0].Rows {
		d.Objects, _ = strconv.Atoi(string(row[0]))
		d.Examples = append(d.Examples, string(row[1]))
	}
	return nil
}

func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	conn.Close(ctx)
}

// query returns the rows of a statement on the maintenance database.
func (s *Server) query(ctx context.Context, sql string) ([]row, error) {
	results, err := s.conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, r := range results {
		for _, values := range r.Rows {
			var out row
			for _, v := range values {
				out = append(out, string(v))
			}
			rows = append(rows, out)
		}
	}
	return rows, nil
}

// Connections returns who is connected to one of the databases, this connection, those of Look and the server's own
// workers excepted.
func (s *Server) Connections(ctx context.Context, databases []string) ([]Connection, error) {
	rows, err := s.query(ctx, `SELECT pid, coalesce(datname, ''), coalesce(usename, ''), coalesce(application_name, ''), coalesce(client_addr::text, '')
		FROM pg_catalog.pg_stat_activity WHERE datname = ANY (`+textArray(databases)+`) AND pid <> pg_backend_pid() AND NOT `+s.worker()+` ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	var out []Connection
	for _, r := range rows {
		pid, _ := strconv.Atoi(r[0])
		if slices.Contains(s.looked, pid) {
			continue // the server may not have noticed yet that we have gone
		}
		out = append(out, Connection{pid, r[1], r[2], r[3], r[4]})
	}
	return out, nil
}

// worker is the condition on a row of pg_stat_activity that it is of the server's own, which goes without harm and
// comes again by itself: autovacuum's workers and those that apply what subscriptions receive. (backend_type is null in
// rows that the role may not see.)
func (s *Server) worker() string {
	if s.info.Version < 100000 {
		return "(usename IS NULL)"
	}
	return "(coalesce(backend_type, '') ~ '^(autovacuum|logical replication) ')"
}

// Terminate ends the connections to the databases, ourselves excepted.
func (s *Server) Terminate(ctx context.Context, databases []string) error {
	return s.terminate(ctx, databases, "true")
}

func (s *Server) terminate(ctx context.Context, databases []string, condition string) error {
	return runSQL(ctx, s.conn, "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = ANY ("+
		textArray(databases)+") AND pid <> pg_backend_pid() AND "+condition)
}

// EndStatements ends the sessions whose statement holds a text, and waits until they have ended: what a process that
// was killed has begun goes on in the server.
func (s *Server) EndStatements(ctx context.Context, text string) error {
	for {
		rows, err := s.query(ctx, `SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
			WHERE pid <> pg_backend_pid() AND state = 'active' AND pg_catalog.strpos(query, `+QuoteLiteral(text)+`) > 0`)
		if err != nil || len(rows) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// DropInactiveSlots drops the replication slots that nobody uses, and returns their names.
func (s *Server) DropInactiveSlots(ctx context.Context) ([]string, error) {
	rows, err := s.query(ctx, "SELECT slot_name, pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE NOT active")
	var names []string
	for _, r := range rows {
		names = append(names, r[0])
	}
	return names, err
}

// textArray writes names as a literal of type name[].
func textArray(names []string) string {
	var quoted []string
	for _, n := range names {
		quoted = append(quoted, QuoteLiteral(n))
	}
	return "ARRAY[" + strings.Join(quoted, ", ") + "]::pg_catalog.name[]"
}

// QuoteLiteral writes a string for SQL, whatever standard_conforming_strings says.
func QuoteLiteral(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}

// DropDatabase drops a database that exists, also one that is a template or has subscriptions. Whoever is connected is
// disconnected. It returns descriptions of what stays behind elsewhere: replication slots at the publishers of the
// subscriptions.
func (s *Server) DropDatabase(ctx context.Context, name string) (left []string, err error) {
	left, err = s.dropSubscriptions(ctx, name)
	if err != nil {
		return left, fmt.Errorf("drop database %q: %w", name, err)
	}
	sql := "DROP DATABASE " + quoteIdent(name)
	if s.info.Version >= 130000 {
		sql += " WITH (FORCE)"
	} else if err := s.Terminate(ctx, []string{name}); err != nil {
		return left, fmt.Errorf("drop database %q: %w", name, err)
	}
	if err := runSQL(ctx, s.conn, "ALTER DATABASE "+quoteIdent(name)+" IS_TEMPLATE false"); err != nil {
		return left, fmt.Errorf("drop database %q: %w", name, err)
	}
	if err := runSQL(ctx, s.conn, sql); err != nil {
		return left, fmt.Errorf("drop database %q: %w", name, err)
	}
	return left, nil
}

// dropSubscriptions drops the subscriptions of a database, without telling their publishers, which may be needed by
// the database that comes instead.
func (s *Server) dropSubscriptions(ctx context.Context, database string) (left []string, err error) {
	rows, err := s.query(ctx, `SELECT subname, coalesce(subslotname, '') FROM pg_catalog.pg_subscription sub
		JOIN pg_catalog.pg_database d ON d.oid = sub.subdbid WHERE d.datname = `+QuoteLiteral(database))
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Code == "42501" || err == nil && len(rows) == 0 {
		return nil, nil // for superusers alone, before version 16 in part
	}
	if err != nil {
		return nil, err
	}
	conn, err := s.Open(ctx, database)
	if err != nil {
		return nil, err
	}
	defer closeConn(conn)
	for _, r := range rows {
		name := quoteIdent(r[0])
		for _, sql := range []string{"ALTER SUBSCRIPTION " + name + " DISABLE", "ALTER SUBSCRIPTION " + name + " SET (slot_name = NONE)", "DROP SUBSCRIPTION " + name} {
			if err := runSQL(ctx, conn, sql); err != nil {
				return left, err
			}
		}
		if r[1] != "" {
			left = append(left, fmt.Sprintf("replication slot %q at the publisher of subscription %q, which went with database %q: drop it there, unless a restored subscription goes on with it", r[1], r[0], database))
		}
	}
	return left, nil
}

// DisableSubscriptions has the subscriptions of a database rest, and returns their names.
func (s *Server) DisableSubscriptions(ctx context.Context, database string) (names []string, err error) {
	conn, err := s.Open(ctx, database)
	if err != nil {
		return nil, err
	}
	defer closeConn(conn)
	results, err := conn.Exec(ctx, "SELECT subname FROM pg_catalog.pg_subscription WHERE subenabled AND subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())").ReadAll()
	var e *pgconn.PgError
	if errors.As(err, &e) && (e.Code == "42501" || e.Code == "42P01") {
		return nil, nil // for superusers alone, before version 16 in part; none before 10
	}
	if err != nil {
		return nil, err
	}
	for _, row := range results[0].Rows {
		if err := runSQL(ctx, conn, "ALTER SUBSCRIPTION "+quoteIdent(string(row[0]))+" DISABLE"); err != nil {
			return names, err
		}
		names = append(names, string(row[0]))
	}
	return names, nil
}

// Swap is a renaming of databases.
type Swap struct{ From, To string }

// Rename renames databases in one transaction, in the order given: all of them, or none. With terminate, connections
// that are in the way are ended; otherwise they make it fail. The server's own workers are ended anyway. The connection
// of s must not be to one of the databases.
func (s *Server) Rename(ctx context.Context, swaps []Swap, terminate bool) error {
	conn, err := s.Open(ctx, s.info.Database)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	var names []string
	for _, w := range swaps {
		names = append(names, w.From)
	}
	condition := "true"
	if !terminate {
		condition = s.worker()
	}
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		// ALTER DATABASE … RENAME keeps new sessions out from its beginning, and waits 5 seconds for others to go
		// (CountOtherDBBackends in procarray.c). In that time they are ended.
		for {
			if err := s.terminate(ctx, names, condition); err != nil && ctx.Err() != nil {
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	err = runSQL(ctx, conn, "BEGIN")
	for _, w := range swaps {
		if err == nil {
			if err = runSQL(ctx, conn, "ALTER DATABASE "+quoteIdent(w.From)+" RENAME TO "+quoteIdent(w.To)); err != nil {
				err = fmt.Errorf("rename database %q to %q: %w", w.From, w.To, err)
			}
		}
	}
	if err == nil {
		err = runSQL(ctx, conn, "COMMIT")
	}
	close(stop)
	<-stopped
	return err
}

// Revive makes the connection for maintenance anew where it was lost, as it may be after hours of a restore. A server
// that is coming back after a crash is waited for.
func (s *Server) Revive(ctx context.Context) error {
	if !s.conn.IsClosed() && runSQL(ctx, s.conn, "SELECT") == nil {
		return nil
	}
	for {
		err := s.MoveTo(ctx, s.info.Database)
		var e *pgconn.PgError
		if !errors.As(err, &e) || e.Code != "57P03" { // cannot_connect_now
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// MoveTo connects s to another database for maintenance, and leaves the one that it was connected to.
func (s *Server) MoveTo(ctx context.Context, database string) error {
	conn, err := s.Open(ctx, database)
	if err != nil {
		return err
	}
	closeConn(s.conn)
	s.conn, s.info.Database = conn, database
	return nil
}

// Maintenance are the databases that one connects to for work on the others.
var Maintenance = []string{"postgres", "template1"}

// Available returns a database that s may move to for maintenance, none of those named; empty where there is none.
func (s *Server) Available(ctx context.Context, without []string) (string, error) {
	for _, name := range append([]string{s.info.Database}, Maintenance...) {
		if slices.Contains(without, name) {
			continue
		}
		if exists, err := s.HasDatabase(ctx, name); err != nil || exists {
			return name, err
		}
	}
	return "", nil
}

// HasDatabase tells whether there is a database of that name.
func (s *Server) HasDatabase(ctx context.Context, name string) (bool, error) {
	row, err := queryRow(ctx, s.conn, "SELECT FROM pg_catalog.pg_database WHERE datname = "+QuoteLiteral(name))
	return row != nil, err
}

// HasDirectory tells whether the server, which must be asked by a superuser, has a directory.
func (s *Server) HasDirectory(ctx context.Context, path string) (bool, error) {
	row, err := queryRow(ctx, s.conn, "SELECT isdir FROM pg_catalog.pg_stat_file("+QuoteLiteral(path)+", true)")
	return row.at(0) == "t", err
}
