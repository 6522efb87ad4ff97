package postgres

// A server that was found: connecting to it, and what it says about itself.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgpassfile"
	"github.com/jackc/pgx/v5/pgconn"
)

// appName is what our own connections are called in pg_stat_activity.
const appName = "dump"

// Server is a PostgreSQL server that a Config led to. Every later connection and child process goes to the same one,
// also where the Config names several or a name has several addresses. Methods may be called concurrently, but for those that change
// the server or where it is connected to.
type Server struct {
	cfg      Config
	settings *settings
	target   target // pinned
	user     string
	conn     *pgconn.PgConn
	info     Info
	sysID    uint64
	sysIDErr error
	looked   []int // server processes of connections that Look has closed
}

// Info is what a server says about itself.
type Info struct {
	Version     int    // as in server_version_num: 150018
	VersionText string // "15.18"
	Host        string // as the operator named it; this machine's name for a socket
	Port        int
	User        string
	Database    string // the one that was connected to: postgres, template1 or that of the connection string
	Standby     bool   // in recovery
	Databases   int    // number of databases that allow connections; 0 when it could not be found out
	Size        int64  // their size on disk in bytes; -1 when it could not be found out
}

// Connect finds the server and asks what it is. It connects to the database postgres, and where that is missing or
// closed to us to template1, then to the database that the settings name, as pg_dumpall would. The caller closes the
// Server. Errors name host, port, user and database, never a password; where there is a way out they are HintErrors.
func Connect(ctx context.Context, c Config) (*Server, error) {
	st, err := resolve(c.DSN)
	if err != nil {
		return nil, err
	}
	return connectServer(ctx, c, st)
}

// connectServer is Connect with settings that were looked up.
func connectServer(ctx context.Context, c Config, st *settings) (*Server, error) {
	var err error
	for _, name := range []string{"sslcrl", "sslcrldir", "requirepeer", "gssencmode"} {
		if v := st.values[name]; v != "" && v != "disable" && v != "prefer" {
			c.logger().Warn("a connection setting is honoured by pg_dumpall only, not by our own connections", "setting", name)
		}
	}
	s := &Server{cfg: c, settings: st}
	if s.conn, err = s.find(ctx); err != nil {
		return nil, err
	}
	if err := s.look(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the connection. Locks and dumps that were made from the Server stay, and are closed by their own methods.
// Closing twice is no error.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.conn.Close(ctx)
}

// Info returns what the server said when Connect was called.
func (s *Server) Info() Info { return s.info }

// SystemIdentifier returns the number that initdb gave to the cluster; standbys have that of their primary. The error
// is that of the query: the role may lack the privilege to call pg_control_system.
func (s *Server) SystemIdentifier() (uint64, error) { return s.sysID, s.sysIDErr }

// Open makes another connection to the same server, to the database named. The caller closes it.
func (s *Server) Open(ctx context.Context, database string) (*pgconn.PgConn, error) {
	return s.settings.connect(ctx, s.target, database, "any")
}

// find tries the hosts in order, and on the first that answers the databases, and pins the server.
func (s *Server) find(ctx context.Context) (*pgconn.PgConn, error) {
	// prefer-standby takes a standby from anywhere in the list before a primary.
	rounds := []string{s.settings.values["target_session_attrs"]}
	if rounds[0] == "prefer-standby" {
		rounds = []string{"standby", "any"}
	}
	var failures []error
	for _, attrs := range rounds {
		failures = nil
		for _, t := range s.settings.targets {
			conn, database, err := s.findDatabase(ctx, t, attrs)
			if err != nil {
				failures = append(failures, err)
				continue
			}
			s.target, s.user = t, conn.userName
			s.info.Host, s.info.Port, s.info.User, s.info.Database = nameOfHost(t), int(t.port), conn.userName, database
			if addr, ok := conn.Conn().RemoteAddr().(*net.TCPAddr); ok {
				s.target.hostaddr = addr.AddrPort().Addr().Unmap().String()
			}
			return conn.PgConn, nil
		}
	}
	if len(failures) == 1 {
		return nil, failures[0]
	}
	texts := make([]string, len(failures))
	for i, err := range failures {
		texts[i] = err.Error()
	}
	return nil, withHint(&multiError{strings.Join(texts, "; "), failures}, hintOf(failures[0]))
}

type multiError struct {
	text string
	errs []error
}

func (e *multiError) Error() string   { return e.text }
func (e *multiError) Unwrap() []error { return e.errs }

type userConn struct {
	*pgconn.PgConn
	userName string
}

func (s *Server) findDatabase(ctx context.Context, t target, attrs string) (*userConn, string, error) {
	databases := []string{"postgres", "template1"}
	if name := s.settings.values["dbname"]; name != "" && !slices.Contains(databases, name) {
		databases = append(databases, name)
	}
	var first error
	for _, name := range databases {
		conn, err := s.settings.connect(ctx, t, name, attrs)
		if err == nil {
			cfg, err := s.settings.connConfig(t, name, attrs)
			if err != nil {
				return nil, "", err
			}
			return &userConn{conn, cfg.User}, name, nil
		}
		if first == nil {
			first = err
		}
		// Missing, closed to everybody, not allowed by pg_hba.conf, no privilege, and what poolers say for missing.
		// Anything else would only be repeated by the next database.
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || !slices.Contains([]string{"3D000", "55000", "28000", "42501", "08P01"}, pgErr.Code) {
			break
		}
	}
	return nil, "", first
}

// nameOfHost is how an operator calls the host: by its name, or by this machine's where a socket was used.
func nameOfHost(t target) string {
	if filepath.IsAbs(t.host) {
		if name, err := os.Hostname(); err == nil {
			return name
		}
	}
	return t.host
}

// connConfig makes the configuration of one of our own connections. Everything is given to pgconn explicitly, so that
// it finds nothing in the environment that libpq would not.
func (s *settings) connConfig(t target, database, attrs string) (*pgconn.Config, error) {
	host := t.host
	if filepath.IsAbs(host) && t.hostaddr != "" {
		host = t.hostaddr
	}
	pairs := map[string]string{
		"host": host, "port": strconv.Itoa(int(t.port)), "dbname": database,
		"target_session_attrs": attrs, "connect_timeout": s.values["connect_timeout"],
	}
	if s.service != "" {
		// It was read already, and every setting in it is given here. But pgconn insists on reading it again when the
		// environment names it, and does not know the system's file.
		pairs["service"], pairs["servicefile"] = s.service, s.serviceFile
	}
	if attrs == "" {
		pairs["target_session_attrs"] = "any"
	}
	if n, err := strconv.Atoi(pairs["connect_timeout"]); err != nil || n < 0 {
		pairs["connect_timeout"] = "0"
	}
	for _, name := range []string{
		"user", "password", "passfile", "sslmode", "sslkey", "sslcert", "sslcertmode", "sslrootcert",
		"sslnegotiation", "sslpassword", "sslsni", "krbsrvname", "min_protocol_version", "max_protocol_version",
		"channel_binding", "require_auth",
	} {
		if v, ok := s.values[name]; ok {
			pairs[name] = v
		}
	}
	var b strings.Builder
	for name, v := range pairs {
		fmt.Fprintf(&b, "%s=%s ", name, quoteValue(v))
	}
	cfg, err := pgconn.ParseConfig(b.String())
	if err != nil {
		// Its text may quote the string that was parsed.
		var cause *pgconn.ParseConfigError
		if errors.As(err, &cause) && errors.Unwrap(cause) != nil {
			err = errors.Unwrap(cause)
		}
		return nil, fmt.Errorf("connection settings: %s", s.redact(err.Error()))
	}
	if t.hostaddr != "" {
		cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{t.hostaddr}, nil }
	}
	if cfg.Password == "" && filepath.IsAbs(t.host) {
		// libpq looks for a socket directory by its path, unless it is the default one.
		file := s.values["passfile"]
		if home, err := os.UserHomeDir(); err == nil && file == "" {
			file = filepath.Join(home, ".pgpass")
		}
		if entries, err := pgpassfile.ReadPassfile(file); err == nil {
			cfg.Password = entries.FindPassword(t.host, strconv.Itoa(int(t.port)), database, cfg.User)
		}
	}
	cfg.RuntimeParams = map[string]string{"application_name": appName}
	if v := s.values["options"]; v != "" {
		cfg.RuntimeParams["options"] = v
	}
	versions := map[string]uint16{"TLSv1": tls.VersionTLS10, "TLSv1.1": tls.VersionTLS11, "TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}
	for _, c := range append([]*pgconn.FallbackConfig{{TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...) {
		if c.TLSConfig != nil {
			c.TLSConfig.MinVersion = versions[s.values["ssl_min_protocol_version"]]
			c.TLSConfig.MaxVersion = versions[s.values["ssl_max_protocol_version"]]
		}
	}
	return cfg, nil
}

// redact removes passwords from a text.
func (s *settings) redact(text string, more ...string) string {
	for _, secret := range append(more, s.values["password"], s.values["sslpassword"]) {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	return text
}

// connect makes one of our own connections to one target.
func (s *settings) connect(ctx context.Context, t target, database, attrs string) (*pgconn.PgConn, error) {
	cfg, err := s.connConfig(t, database, attrs)
	if err != nil {
		return nil, err
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err == nil {
		return conn, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, &connectError{
		text: fmt.Sprintf("connect to host %q, port %d, as user %q, database %q: %s",
			t.host, t.port, cfg.User, database, s.redact(plainText(err), cfg.Password)),
		cause: err,
	}
}

// connectError is a failure to connect, in one line and without secrets.
type connectError struct {
	text  string
	cause error
}

func (e *connectError) Error() string { return e.text }
func (e *connectError) Unwrap() error { return e.cause }

// Hint tells what to look at.
func (e *connectError) Hint() string {
	var pgErr *pgconn.PgError
	var netErr *net.OpError
	switch {
	case errors.As(e.cause, &pgErr) && (pgErr.Code == "28P01" || pgErr.Code == "28000"):
		return "check user and password (PGUSER, PGPASSWORD or ~/.pgpass) and the server's pg_hba.conf"
	case errors.As(e.cause, &pgErr) && pgErr.Code == "3D000":
		return "name a database that exists in the connection string (dbname=…)"
	case errors.As(e.cause, &netErr):
		return "check that the server runs and accepts connections there (PGHOST, PGPORT, or a connection string)"
	}
	return ""
}

func hintOf(err error) string {
	var h HintError
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// plainText makes one line of what pgconn reports for all attempts (with TLS and without, each address). What the
// server said counts more than what the network did.
func plainText(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Severity + ": " + pgErr.Message
	}
	var connErr *pgconn.ConnectError
	if errors.As(err, &connErr) {
		err = connErr.Unwrap()
	}
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// look asks the server about itself.
func (s *Server) look(ctx context.Context) error {
	row, err := queryRow(ctx, s.conn, "SELECT current_setting('server_version_num'), current_setting('server_version'), pg_is_in_recovery()")
	if err != nil {
		return fmt.Errorf("ask server %s for its version: %w", s.info.Host, err)
	}
	s.info.Version, err = strconv.Atoi(row[0])
	if err != nil {
		return fmt.Errorf("ask server %s for its version: %w", s.info.Host, err)
	}
	s.info.VersionText, _, _ = strings.Cut(row[1], " ") // packagers add theirs in parentheses
	s.info.Standby = row[2] == "t"

	if row, err := queryRow(ctx, s.conn, "SELECT system_identifier FROM pg_control_system()"); err != nil {
		s.sysIDErr = withHint(fmt.Errorf("read the system identifier of server %s: %w", s.info.Host, err),
			"give the backups a GUID of their own, or GRANT EXECUTE ON FUNCTION pg_control_system() to the role")
	} else if n, err := strconv.ParseInt(row[0], 10, 64); err != nil {
		s.sysIDErr = fmt.Errorf("read the system identifier of server %s: %w", s.info.Host, err)
	} else {
		s.sysID = uint64(n) // SQL shows the 64 bits as a signed number
	}

	// -2 marks a database whose DROP was interrupted.
	const open = " FROM pg_database WHERE datallowconn AND datconnlimit <> -2"
	if row, err := queryRow(ctx, s.conn, "SELECT count(*)"+open); err == nil {
		s.info.Databases, _ = strconv.Atoi(row[0])
	}
	// The size is a courtesy. It takes a look at every file, so it gets a bound; in a transaction, so that the bound
	// does not stay behind in the connection of a pooler.
	s.info.Size = -1
	row, err = queryRow(ctx, s.conn, "BEGIN; SET LOCAL statement_timeout = '15s'; SELECT sum(pg_database_size(oid))"+open)
	if n, perr := strconv.ParseInt(row.at(0), 10, 64); err == nil && perr == nil {
		s.info.Size = n
	} else if err != nil {
		s.cfg.logger().Debug("the size of the databases is not known", "error", err)
	}
	if _, err := queryRow(ctx, s.conn, "ROLLBACK"); err != nil {
		return fmt.Errorf("ask server %s about its databases: %w", s.info.Host, err)
	}
	return nil
}

// row is a row of text values; NULL is empty.
type row []string

func (r row) at(i int) string {
	if i < len(r) {
		return r[i]
	}
	return ""
}

// queryRow runs statements by the simple protocol and returns the first row of the last that returned any, or nil.
func queryRow(ctx context.Context, conn *pgconn.PgConn, sql string) (row, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	for _, r := range slices.Backward(results) {
		if len(r.Rows) > 0 {
			values := make(row, len(r.Rows[0]))
			for i, v := range r.Rows[0] {
				values[i] = string(v)
			}
			return values, nil
		}
	}
	return nil, nil
}
