package postgres

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestParseDSN(t *testing.T) {
	for dsn, want := range map[string]map[string]string{
		"":                                  {},
		"  ":                                {},
		"host=h":                            {"host": "h"},
		"host = h\n port\t=\t5433 ":         {"host": "h", "port": "5433"},
		`password='a b' user=u`:             {"password": "a b", "user": "u"},
		`password='it\'s \\' user=u`:        {"password": `it's \`, "user": "u"},
		`password=it\'s\ \\x user=u`:        {"password": `it's \x`, "user": "u"},
		`password=a\`:                       {"password": "a"},
		`password='' user=u`:                {"password": "", "user": "u"},
		`password= user=u`:                  {"password": "user=u"},
		`host=a,b,/tmp port=1,,3`:           {"host": "a,b,/tmp", "port": "1,,3"},
		`options='-c geqo=off'`:             {"options": "-c geqo=off"},
		"requiressl=1":                      {"sslmode": "require"},
		"postgresql://":                     {},
		"postgres://h":                      {"host": "h"},
		"postgresql://u@h/db":               {"user": "u", "host": "h", "dbname": "db"},
		"postgresql://u:p@h:5433/db":        {"user": "u", "password": "p", "host": "h", "port": "5433", "dbname": "db"},
		"postgresql://u:a:b@h/":             {"user": "u", "password": "a:b", "host": "h"},
		"postgresql://u%40x:p%2F%3a%25@h":   {"user": "u@x", "password": "p/:%", "host": "h"},
		"postgresql://h1:1,h2,h3:3/d":       {"host": "h1,h2,h3", "port": "1,,3", "dbname": "d"},
		"postgresql://[::1]:1,[fe80::1]/":   {"host": "::1,fe80::1", "port": "1,"},
		"postgresql://%2Ftmp%2Fs:1/db":      {"host": "/tmp/s", "port": "1", "dbname": "db"},
		"postgresql:///db?host=/tmp&port=1": {"host": "/tmp", "port": "1", "dbname": "db"},
		"postgresql://h?ssl=true":           {"host": "h", "sslmode": "require"},
		"postgresql://h/?sslmode=disable&application_name=a%20b": {"host": "h", "sslmode": "disable", "application_name": "a b"},
	} {
		got, err := parseDSN(dsn)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", dsn, got, err, want)
			continue
		}
		// pgconn is another implementation of the same rules.
		theirs, err := pgconn.ParseConfig(dsn)
		if err != nil {
			t.Errorf("%q: pgconn: %v", dsn, err)
			continue
		}
		for name, value := range map[string]string{"user": theirs.User, "password": theirs.Password, "dbname": theirs.Database} {
			if v, ok := got[name]; ok && v != value {
				t.Errorf("%q: %s is %q, in pgconn %q", dsn, name, v, value)
			}
		}
		targets, err := makeTargets(got["host"], "", got["port"])
		if err != nil {
			t.Errorf("%q: %v", dsn, err)
			continue
		}
		hosts := []string{fmt.Sprint(theirs.Host, " ", theirs.Port)}
		for _, f := range theirs.Fallbacks {
			hosts = append(hosts, fmt.Sprint(f.Host, " ", f.Port))
		}
		var ours []string
		for _, target := range targets {
			ours = append(ours, fmt.Sprint(target.host, " ", target.port))
		}
		if hosts = slices.Compact(hosts); !slices.Equal(hosts, ours) {
			t.Errorf("%q: hosts %q, in pgconn %q", dsn, ours, hosts)
		}
	}
}

func TestParseDSNErrors(t *testing.T) {
	for dsn, want := range map[string]string{
		"mydb":                              "does not begin with keyword=value",
		"=x":                                "does not begin with keyword=value",
		"user=u password=my SECRET":         `follows the value of "password"`,
		"password=my SECRET=x":              "unknown keyword",
		"hots=h":                            `unknown keyword "hots"`,
		"password='SECRET":                  "unterminated",
		`password='SECRET\'`:                "unterminated",
		"us er=u":                           "does not begin with keyword=value",
		"user=u\x00":                        "zero byte",
		"postgresql://h?hots=h":             `unknown keyword "hots"`,
		"postgresql://h?user":               "keyword=value",
		"postgresql://h?user=a=b":           "keyword=value",
		"postgresql://u:SECRET%zz@h":        "percent-encoding",
		"postgresql://u:SECRET%00@h":        "percent-encoding",
		"postgresql://u:SECRET%4@h":         "percent-encoding",
		"postgresql://[::1":                 "IPv6",
		"postgresql://[]":                   "IPv6",
		"postgresql://[::1]x":               "IPv6",
		"postgresql://u:SECRET/x@h":         "port is not a number",
		"host=h port=0":                     "port is not a number",
		"host=h port=65536":                 "port is not a number",
		"host=a,b,c port=1,2":               "2 port numbers do not match 3 hosts",
		"host=a,b hostaddr=127.0.0.1":       "2 host names do not match 1 hostaddr",
		"host=h replication=database":       "replication",
		"service=none servicefile=/etc/xyz": "service file",
	} {
		_, err := resolve(dsn)
		if err == nil {
			t.Errorf("%q: no error", dsn)
			continue
		}
		contains(t, err.Error(), want)
		if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%q: the error tells the password: %v", dsn, err)
		}
	}
}

func TestDSNHasPassword(t *testing.T) {
	for dsn, want := range map[string]bool{"": false, "user=u": false, "postgresql://u@h": false, "postgresql://u:p@h": true, "password=x": true, "password": false} {
		if got := DSNHasPassword(dsn); got != want {
			t.Errorf("%q: %v", dsn, got)
		}
	}
}

// TestPrecedence: connection string before service before environment.
func TestPrecedence(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pg_service.conf")
	if err := os.WriteFile(file, []byte("# comment\n[other]\nhost=wrong\n[mine]\nhost=service\nport=7\nuser=service\nsslpassword=s\n[mine]\nhost=wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("PGHOST", "environment")
	t.Setenv("PGPASSWORD", "environment")
	t.Setenv("PGUSER", "environment")
	check := func(dsn string) {
		t.Helper()
		st, err := resolve(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if st.targets[0] != (target{host: "service", port: 7}) || st.values["user"] != "string" || st.values["password"] != "environment" || st.values["sslpassword"] != "s" {
			t.Errorf("%v %v", st.targets, st.values)
		}
		// pgconn must come to the same, although it reads the environment and the service itself.
		cfg, err := st.connConfig(st.targets[0], "d", "")
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Host != "service" || cfg.Port != 7 || cfg.User != "string" || cfg.Password != "environment" || cfg.Database != "d" {
			t.Errorf("pgconn: %+v", cfg)
		}
	}
	t.Run("in the string", func(t *testing.T) { check("service=mine user=string servicefile=" + file) })
	t.Run("in the environment", func(t *testing.T) {
		t.Setenv("PGSERVICE", "mine")
		t.Setenv("PGSERVICEFILE", file)
		check("user=string")
	})
	t.Run("of the system", func(t *testing.T) {
		t.Setenv("PGSERVICE", "mine")
		t.Setenv("PGSYSCONFDIR", dir)
		check("user=string")
	})
	_, err := resolve("service=none servicefile=" + file)
	if err == nil || hintOf(err) == "" {
		t.Errorf("an unknown service: %v", err)
	}
}

func TestChildConn(t *testing.T) {
	t.Setenv("DUMP_KEY", "passphrase")
	t.Setenv("PGTZ", "Asia/Tokyo")
	t.Setenv("PGSERVICE", "")
	t.Setenv("PGDATABASE", "x")
	t.Setenv("PGTARGETSESSIONATTRS", "any")
	t.Setenv("PGOPTIONS", "-c geqo=off")
	t.Setenv("PGSSLMODE", "disable")
	t.Setenv("OTHER", "stays")
	_, err := resolve("host=a,b password='it''s' keepalives=1 keepalives_idle='a b\\'' application_name=me")
	if err == nil {
		t.Fatal("two values without a space between them")
	}
	st, err := resolve(`host=a,b password=se\ cret keepalives=1 keepalives_idle='a b\'' application_name=me`)
	if err != nil {
		t.Fatal(err)
	}
	env, dsn, err := st.childConn(target{"b", "10.0.0.1", 77}, "u", "-c x=y")
	if err != nil {
		t.Fatal(err)
	}
	if want := `keepalives='1' keepalives_idle='a b\''`; dsn != want {
		t.Errorf("arguments: %s", dsn)
	}
	got := map[string]string{}
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		if _, again := got[name]; again {
			t.Errorf("%s is there twice", name)
		}
		if strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "DUMP") || name == "OTHER" {
			got[name] = value
		}
	}
	want := map[string]string{
		"PGHOST": "b", "PGHOSTADDR": "10.0.0.1", "PGPORT": "77", "PGUSER": "u", "PGPASSWORD": "se cret",
		"PGSSLMODE": "disable", "PGOPTIONS": "-c geqo=off -c x=y", "PGAPPNAME": "me", "OTHER": "stays",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for _, secret := range []string{"sslpassword", "oauth_client_secret", "scram_client_key"} {
		st, err := resolve("host=a " + secret + "=x")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := st.childConn(target{"a", "", 1}, "u", ""); err == nil || hintOf(err) == "" || !strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", secret, err)
		}
	}
}
