package postgres

// Connection settings: what libpq would make of a connection string, the service file and the environment; the
// settings of our own connections; and the environment of child processes.

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config says which server to talk to and how.
type Config struct {
	// DSN is a connection string of libpq: keywords and values, or a URI; several hosts are tried in order. What it
	// leaves out comes from the service file and the environment (PGHOST, PGSERVICE, ~/.pgpass and so on), so an empty
	// one is a good one.
	DSN string
	// Logger receives warnings, and at level debug what child processes say. Nil is silent.
	Logger *slog.Logger
	// LockInterval is the time between two looks at whether a Lock is still held; 0 means 15 seconds.
	LockInterval time.Duration
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

// DSNHasPassword tells whether the connection string itself holds a password, which others can see in the list of
// processes when it was given as an argument. A string that cannot be parsed is reported as having none.
func DSNHasPassword(dsn string) bool {
	values, err := parseDSN(dsn)
	return err == nil && (values["password"] != "" || values["sslpassword"] != "")
}

// DSNDatabase returns the database that a connection string itself names; empty where it names none.
func DSNDatabase(dsn string) string {
	values, _ := parseDSN(dsn)
	return values["dbname"]
}

// keyword says how libpq's keyword reaches a child process.
type keyword struct {
	env    string // its environment variable, empty when there is none
	secret bool   // must never stand in an argument
}

// keywords are all that libpq knows, up to version 18. The right column of libpq's table of options
// (PQconninfoOptions) is the source for both names.
var keywords = map[string]keyword{
	"application_name":          {env: "PGAPPNAME"},
	"channel_binding":           {env: "PGCHANNELBINDING"},
	"client_encoding":           {env: "PGCLIENTENCODING"},
	"connect_timeout":           {env: "PGCONNECT_TIMEOUT"},
	"dbname":                    {env: "PGDATABASE"},
	"fallback_application_name": {},
	"gssdelegation":             {env: "PGGSSDELEGATION"},
	"gssencmode":                {env: "PGGSSENCMODE"},
	"gsslib":                    {env: "PGGSSLIB"},
	"host":                      {env: "PGHOST"},
	"hostaddr":                  {env: "PGHOSTADDR"},
	"keepalives":                {},
	"keepalives_count":          {},
	"keepalives_idle":           {},
	"keepalives_interval":       {},
	"krbsrvname":                {env: "PGKRBSRVNAME"},
	"load_balance_hosts":        {env: "PGLOADBALANCEHOSTS"},
	"max_protocol_version":      {env: "PGMAXPROTOCOLVERSION"},
	"min_protocol_version":      {env: "PGMINPROTOCOLVERSION"},
	"oauth_client_id":           {},
	"oauth_client_secret":       {secret: true},
	"oauth_issuer":              {},
	"oauth_scope":               {},
	"options":                   {env: "PGOPTIONS"},
	"passfile":                  {env: "PGPASSFILE"},
	"password":                  {env: "PGPASSWORD", secret: true},
	"port":                      {env: "PGPORT"},
	"require_auth":              {env: "PGREQUIREAUTH"},
	"requirepeer":               {env: "PGREQUIREPEER"},
	"scram_client_key":          {secret: true},
	"scram_server_key":          {secret: true},
	"service":                   {env: "PGSERVICE"},
	"servicefile":               {env: "PGSERVICEFILE"},
	"ssl_max_protocol_version":  {env: "PGSSLMAXPROTOCOLVERSION"},
	"ssl_min_protocol_version":  {env: "PGSSLMINPROTOCOLVERSION"},
	"sslcert":                   {env: "PGSSLCERT"},
	"sslcertmode":               {env: "PGSSLCERTMODE"},
	"sslcompression":            {env: "PGSSLCOMPRESSION"},
	"sslcrl":                    {env: "PGSSLCRL"},
	"sslcrldir":                 {env: "PGSSLCRLDIR"},
	"sslkey":                    {env: "PGSSLKEY"},
	"sslkeylogfile":             {},
	"sslmode":                   {env: "PGSSLMODE"},
	"sslnegotiation":            {env: "PGSSLNEGOTIATION"},
	"sslpassword":               {secret: true},
	"sslrootcert":               {env: "PGSSLROOTCERT"},
	"sslsni":                    {env: "PGSSLSNI"},
	"target_session_attrs":      {env: "PGTARGETSESSIONATTRS"},
	"tcp_user_timeout":          {},
	"user":                      {env: "PGUSER"},
}

// target is one server to try.
type target struct {
	host     string // name, address or socket directory; what TLS and the password file compare with
	hostaddr string // numeric address that stands in for the name, or empty
	port     uint16
}

// settings are connection settings after everything was looked up: connection string before service file before
// environment, as in libpq.
type settings struct {
	values  map[string]string // by keyword, without those that became what follows
	targets []target

	service, serviceFile string // the service that was read, and where it was found
}

// resolve looks up all settings for a connection string.
func resolve(dsn string) (*settings, error) {
	values, err := parseDSN(dsn)
	if err != nil {
		return nil, withHint(fmt.Errorf("connection string: %w", err),
			`write host=… port=… user=…, or postgresql://user@host:port; a value with spaces stands in single quotes`)
	}
	env := map[string]string{}
	for name, k := range keywords {
		if v := os.Getenv(k.env); k.env != "" && v != "" {
			env[name] = v
		}
	}
	if env["sslmode"] == "" && strings.HasPrefix(os.Getenv("PGREQUIRESSL"), "1") {
		env["sslmode"] = "require"
	}
	for _, name := range []string{"service", "servicefile"} {
		if _, ok := values[name]; !ok && env[name] != "" {
			values[name] = env[name]
		}
	}
	s := &settings{values: values, service: values["service"]}
	if s.service != "" {
		found, file, err := readService(values["servicefile"], s.service)
		if err != nil {
			return nil, err
		}
		s.serviceFile = file
		addMissing(values, found)
	}
	addMissing(values, env)
	if v := values["replication"]; v != "" {
		return nil, errors.New("connection string: replication connections cannot be dumped")
	}
	s.targets, err = makeTargets(values["host"], values["hostaddr"], values["port"])
	if err != nil {
		return nil, fmt.Errorf("connection settings: %w", err)
	}
	if values["load_balance_hosts"] == "random" {
		rand.Shuffle(len(s.targets), func(i, j int) { s.targets[i], s.targets[j] = s.targets[j], s.targets[i] })
	}
	for _, name := range []string{"host", "hostaddr", "port", "service", "servicefile", "load_balance_hosts"} {
		delete(values, name)
	}
	return s, nil
}

func addMissing(dst, src map[string]string) {
	for k, v := range src {
		if _, ok := dst[k]; !ok {
			dst[k] = v
		}
	}
}

// makeTargets pairs the lists of hosts, numeric addresses and ports. One port goes for all hosts.
func makeTargets(host, hostaddr, port string) ([]target, error) {
	hosts, addrs, ports := strings.Split(host, ","), strings.Split(hostaddr, ","), strings.Split(port, ",")
	n := len(hosts)
	if hostaddr == "" {
		addrs = make([]string, n)
	} else {
		n = len(addrs)
		if host == "" {
			hosts = make([]string, n)
		}
	}
	if len(hosts) != n {
		return nil, fmt.Errorf("%d host names do not match %d hostaddr values", len(hosts), n)
	}
	if len(ports) != 1 && len(ports) != n {
		return nil, fmt.Errorf("%d port numbers do not match %d hosts", len(ports), n)
	}
	targets := make([]target, n)
	for i := range targets {
		p := ports[0]
		if len(ports) > 1 {
			p = ports[i]
		}
		if p == "" {
			p = "5432"
		}
		// The text is not quoted: in a URI whose password has an unescaped slash, a piece of it lands here.
		number, err := strconv.ParseUint(strings.TrimSpace(p), 10, 16)
		if err != nil || number == 0 {
			return nil, errors.New("port is not a number from 1 to 65535")
		}
		targets[i] = target{host: hosts[i], hostaddr: addrs[i], port: uint16(number)}
		if t := &targets[i]; t.host == "" {
			t.host = t.hostaddr
			if t.host == "" {
				t.host = defaultHost(t.port)
			}
		}
	}
	return targets, nil
}

// defaultHost finds the socket directory that libpq has compiled in, which differs between distributions.
func defaultHost(port uint16) string {
	dirs := []string{"/var/run/postgresql", "/run/postgresql", "/private/tmp", "/tmp"}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf(".s.PGSQL.%d", port))); err == nil {
			return dir
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return "localhost"
}

// parseDSN turns a connection string of libpq into its keywords and values. It is as strict as libpq: unknown keywords
// and unfinished quotes are errors. Errors never quote a value, which may be a password.
func parseDSN(dsn string) (map[string]string, error) {
	if strings.IndexByte(dsn, 0) >= 0 {
		return nil, errors.New("zero byte")
	}
	for _, prefix := range []string{"postgresql://", "postgres://"} {
		if rest, ok := strings.CutPrefix(dsn, prefix); ok {
			return parseURI(rest)
		}
	}
	return parseKeywordValues(dsn)
}

const dsnSpace = " \t\n\v\f\r"

func parseKeywordValues(s string) (map[string]string, error) {
	values := map[string]string{}
	previous := ""
	for {
		s = strings.TrimLeft(s, dsnSpace)
		if s == "" {
			return values, nil
		}
		// A word that is out of place may be the rest of a password with a space in it: it is described by what
		// stands before it.
		name, rest, found := strings.Cut(s, "=")
		name = strings.TrimRight(name, dsnSpace)
		if !found || name == "" || strings.ContainsAny(name, dsnSpace) {
			if previous == "" {
				return nil, errors.New(`it does not begin with keyword=value`)
			}
			return nil, fmt.Errorf(`a word without "=" follows the value of %q`, previous)
		}
		if err := checkKeyword(name, values); err != nil {
			return nil, err
		}
		value, rest, err := cutValue(strings.TrimLeft(rest, dsnSpace))
		if err != nil {
			return nil, fmt.Errorf("value of %q: %w", name, err)
		}
		storeValue(values, name, value)
		previous, s = name, rest
	}
}

// cutValue takes a plain or quoted value from the front of s.
func cutValue(s string) (value, rest string, err error) {
	var b strings.Builder
	quoted := strings.HasPrefix(s, "'")
	i := 0
	if quoted {
		i = 1
	}
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			// The next byte is itself, whatever it is; at the very end the backslash vanishes.
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case quoted && c == '\'':
			return b.String(), s[i+1:], nil
		case !quoted && strings.IndexByte(dsnSpace, c) >= 0:
			return b.String(), s[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quoted {
		return "", "", errors.New("unterminated quote")
	}
	return b.String(), "", nil
}

func checkKeyword(name string, seen map[string]string) error {
	if _, ok := keywords[name]; ok || name == "requiressl" || name == "replication" {
		return nil
	}
	for k := range seen {
		if keywords[k].secret {
			return errors.New("unknown keyword") // it may be a piece of the secret
		}
	}
	return fmt.Errorf("unknown keyword %q", name)
}

func storeValue(values map[string]string, name, value string) {
	if name == "requiressl" { // from before sslmode
		name = "sslmode"
		if strings.HasPrefix(value, "1") {
			value = "require"
		} else {
			value = "prefer"
		}
	}
	values[name] = value
}

// parseURI parses what follows postgresql:// by libpq's rules, which are not those of net/url: several hosts, each
// with a port, and any part percent-encoded.
func parseURI(s string) (map[string]string, error) {
	values := map[string]string{}
	store := func(name, encoded string) error {
		value, err := percentDecode(encoded)
		if err != nil {
			return fmt.Errorf("%s in the URI: %w", name, err)
		}
		storeValue(values, name, value)
		return nil
	}
	if i := strings.IndexAny(s, "@/"); i >= 0 && s[i] == '@' {
		user, password, _ := strings.Cut(s[:i], ":")
		s = s[i+1:]
		if user != "" {
			if err := store("user", user); err != nil {
				return nil, err
			}
		}
		if password != "" {
			if err := store("password", password); err != nil {
				return nil, err
			}
		}
	}
	var hosts, ports []string
	for {
		host, port := "", ""
		if strings.HasPrefix(s, "[") {
			end := strings.IndexByte(s, ']')
			if end < 2 {
				return nil, errors.New("bad IPv6 address in the URI")
			}
			host, s = s[1:end], s[end+1:]
			if s != "" && !strings.ContainsRune(":/?,", rune(s[0])) {
				return nil, errors.New(`something other than ":", "/", "?" or "," follows an IPv6 address in the URI`)
			}
		} else {
			host, s = cutBefore(s, ":/?,")
		}
		if strings.HasPrefix(s, ":") {
			port, s = cutBefore(s[1:], "/?,")
		}
		hosts, ports = append(hosts, host), append(ports, port)
		if !strings.HasPrefix(s, ",") {
			break
		}
		s = s[1:]
	}
	if host := strings.Join(hosts, ","); host != "" {
		if err := store("host", host); err != nil {
			return nil, err
		}
	}
	if port := strings.Join(ports, ","); port != "" {
		if err := store("port", port); err != nil {
			return nil, err
		}
	}
	if strings.HasPrefix(s, "/") {
		dbname := ""
		if dbname, s = cutBefore(s[1:], "?"); dbname != "" {
			if err := store("dbname", dbname); err != nil {
				return nil, err
			}
		}
	}
	if s == "" || s == "?" {
		return values, nil
	}
	for pair := range strings.SplitSeq(s[1:], "&") {
		encoded, value, found := strings.Cut(pair, "=")
		name, err := percentDecode(encoded)
		if err != nil || !found || strings.Contains(value, "=") {
			return nil, errors.New("a parameter of the URI is not of the form keyword=value")
		}
		if name == "ssl" && value == "true" { // as JDBC spells it
			name, value = "sslmode", "require"
		}
		if err := checkKeyword(name, values); err != nil {
			return nil, fmt.Errorf("URI: %w", err)
		}
		if err := store(name, value); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func cutBefore(s, chars string) (before, rest string) {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

func percentDecode(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("bad percent-encoding")
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil || c == 0 {
			return "", errors.New("bad percent-encoding")
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), nil
}

// readService reads the settings of a service. Like libpq it looks into the user's file, then into the system's, whose
// place is compiled into libpq and differs between distributions.
func readService(file, name string) (values map[string]string, path string, err error) {
	var files []string
	if file != "" {
		if _, err := os.Stat(file); err != nil {
			return nil, "", fmt.Errorf("service file: %w", err)
		}
		files = append(files, file)
	} else if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".pg_service.conf"))
	}
	if dir := os.Getenv("PGSYSCONFDIR"); dir != "" {
		files = append(files, filepath.Join(dir, "pg_service.conf"))
	} else {
		for _, dir := range []string{"/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc/postgresql", "/usr/local/pgsql/etc", "/usr/local/etc/postgresql", "/opt/homebrew/etc/postgresql", "/etc"} {
			files = append(files, filepath.Join(dir, "pg_service.conf"))
		}
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			return nil, "", fmt.Errorf("service file: %w", err)
		}
		values, found, err := scanService(bufio.NewScanner(f), name)
		f.Close()
		if err != nil {
			return nil, "", fmt.Errorf("service file %s: %w", path, err)
		}
		if found {
			return values, path, nil
		}
	}
	return nil, "", withHint(fmt.Errorf("service %q is not defined", name), "looked in "+strings.Join(files, ", "))
}

func scanService(lines *bufio.Scanner, name string) (values map[string]string, found bool, err error) {
	values = map[string]string{}
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			if found {
				return values, true, nil // the first section of that name counts
			}
			found = line == "["+name+"]"
		case found:
			key, value, ok := strings.Cut(line, "=")
			key = strings.TrimSpace(key)
			if _, known := keywords[key]; !ok || !known || key == "service" || key == "servicefile" {
				return nil, false, fmt.Errorf("line %d is not a setting of a connection", n)
			}
			if _, again := values[key]; !again {
				values[key] = strings.TrimSpace(value)
			}
		}
	}
	return values, found, lines.Err()
}

// quoteValue writes a value so that it is one value of a keyword string.
func quoteValue(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

// baseEnv is our environment without what is ours alone: DUMP_KEY holds a passphrase. crypto.WithoutSecrets does the
// same where this package cannot reach.
func baseEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "DUMP_") })
}

// childConn gives the environment that leads a libpq program to one server, and a keyword string (or nothing) for
// what has no variable. All of libpq's own variables are replaced, so that neither a service nor a list of hosts leads
// it elsewhere. pgOptions is appended to PGOPTIONS.
func (s *settings) childConn(t target, user, pgOptions string) (env []string, dsn string, err error) {
	drop := map[string]bool{
		"PGREQUIRESSL": true,
		// libpq sends PGTZ beside PGOPTIONS, and the server lets it win.
		"PGTZ": true,
	}
	for _, k := range keywords {
		drop[k.env] = true
	}
	env = slices.DeleteFunc(baseEnv(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return drop[name]
	})

	values := maps.Clone(s.values)
	values["host"], values["hostaddr"], values["port"] = t.host, t.hostaddr, strconv.Itoa(int(t.port))
	values["user"] = user
	values["options"] = strings.TrimSpace(values["options"] + " " + pgOptions)
	// The programs name their databases themselves, and the server is chosen already.
	for _, name := range []string{"dbname", "target_session_attrs", "fallback_application_name"} {
		delete(values, name)
	}
	var rest []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		k, v := keywords[name], values[name]
		switch {
		case v == "":
		case k.env != "":
			env = append(env, k.env+"="+v)
		case k.secret:
			return nil, "", withHint(
				fmt.Errorf("connection setting %s cannot be handed to a child process in secret", name),
				"leave it out: use a key without a passphrase, readable by its owner only, or a password")
		default:
			rest = append(rest, name+"="+quoteValue(v))
		}
	}
	return env, strings.Join(rest, " "), nil
}
