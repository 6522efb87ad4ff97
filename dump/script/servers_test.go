package script_test

import (
	"bytes"
	"maps"
	"strconv"
	"strings"
	"testing"

	"encdump/dump/postgres"
	"encdump/dump/postgres/postgrestest"
	"encdump/dump/script"
)

// TestServers is about servers of other versions. The dump of an older one is
// scanned, and what is selected of it equals what pg_dump gives; a newer one
// takes the dump of ours, whole and in part.
func TestServers(t *testing.T) {
	t.Parallel()
	needCluster(t)
	for _, major := range postgrestest.Majors(t) {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			if major > majorOf(cluster) {
				testNewer(t, major)
				return
			}
			testOlder(t, major)
		})
	}
}

func testNewer(t *testing.T, major int) {
	target := server{postgrestest.Start(t, major, postgres.ClusterOptions{Settings: clusterSettings})}
	all := dump(t, "pg_dumpall", "--exclude-database=many")
	target.psql(t, "postgres", []byte(mustSelect(t, script.Selection{KeepRoles: true}, all)))
	for _, d := range gather(t, all, 1<<20).Databases {
		checkDatabase(t, target.Cluster, all, d)
	}
	out := mustSelect(t, script.Selection{
		Tables: []script.TableName{table(t, "objects.app.hen"), table(t, "objects.app.egg")}, Rename: map[string]string{"objects": "rescue"}, NoGlobals: true,
	}, all)
	target.psql(t, "postgres", []byte(out))
	equal(t, "rescue", target.psql(t, "rescue", []byte("SELECT hen.id, egg.id FROM app.hen JOIN app.egg ON egg = egg.id AND hen = hen.id")), "1|1\n")
}

func testOlder(t *testing.T, major int) {
	start := func() server {
		return server{postgrestest.Start(t, major, postgres.ClusterOptions{Settings: clusterSettings})}
	}
	source := start()
	if err := load(source.Cluster); err != nil {
		t.Fatal(err)
	}
	all := dumpOf(t, source.Cluster, "pg_dumpall")
	for _, options := range []string{"", "--inserts --rows-per-insert=7", "--clean --if-exists --quote-all-identifiers", "--disable-triggers --disable-dollar-quoting --use-set-session-authorization"} {
		checkStatements(t, dumpOf(t, source.Cluster, "pg_dumpall", strings.Fields(options)...))
	}

	// Two databases, with the roles, into an empty server.
	target := start()
	target.psql(t, "postgres", []byte(mustSelect(t, script.Selection{Databases: []string{"objects", "large_objects"}, KeepRoles: true}, all)))
	for _, d := range []string{"objects", "large_objects"} {
		equal(t, d, target.dump(t, "pg_dump", "-C", d), source.dump(t, "pg_dump", "-C", d))
	}
	equal(t, "roles", target.dump(t, "pg_dumpall", "-r"), source.dump(t, "pg_dumpall", "-r"))
	for _, d := range gather(t, all, 1<<20).Databases {
		if d.Name == "objects" || d.Name == "large_objects" {
			checkDatabase(t, target.Cluster, all, d)
		}
	}
	// Tables, into a database beside it.
	target.psql(t, "postgres", []byte(mustSelect(t, script.Selection{
		Tables: []script.TableName{table(t, "objects.app.hen"), table(t, "objects.app.egg"), table(t, "data.public.rows")}, Rename: map[string]string{"objects": "rescue"}, NoGlobals: true,
	}, all)))
	equal(t, "tables", target.dump(t, "pg_dump", "-t", "app.hen", "-t", "app.egg", "rescue"), source.dump(t, "pg_dump", "-t", "app.hen", "-t", "app.egg", "objects"))
	equal(t, "rows", target.dump(t, "pg_dump", "-t", "rows", "data"), source.dump(t, "pg_dump", "-t", "rows", "data"))
}

// TestSelectScripts selects from what pg_dump of other versions wrote.
func TestSelectScripts(t *testing.T) {
	scripts, err := testdata()
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(scripts, func(name string, _ []byte) bool { return !strings.Contains(name, "pg_dump-") })
	if len(scripts) < 6 {
		t.Fatalf("%d scripts", len(scripts))
	}
	for name, b := range scripts {
		var complete script.Completeness
		f := script.NewFeeder(func(it script.Item) error { complete.Add(it); return nil })
		f.Write(b)
		f.Close()
		if kind, err := complete.Kind(); kind != script.DatabaseDump || err != nil {
			t.Errorf("%s: %s, %v", name, kind, err)
		}
		sel := script.Selection{Tables: []script.TableName{{Schema: "app", Table: "egg"}}}
		out := mustSelect(t, sel, b)
		out = strings.ReplaceAll(out, `"`, "")
		has(t, out, "CREATE TABLE app.egg", "ADD CONSTRAINT egg_pkey", "GRANT ALL ON TABLE app.egg")
		if !strings.Contains(out, "COPY app.egg (id, hen) FROM stdin;\n1\t1\n") && !strings.Contains(out, "INSERT INTO app.egg (id, hen) VALUES\n\t(1, 1)") {
			t.Errorf("%s: no row of app.egg", name)
		}
		hasNot(t, out, "TABLE app.hen", "COPY app.base (", "INSERT INTO app.base", "'relname', 'base'", "CREATE VIEW", "REFERENCES app.hen", "lo_create")
		if strings.Contains(name, "statistics") {
			has(t, out, "'relname', 'egg'", "'relname', 'egg_pkey'")
			hasNot(t, mustSelect(t, script.Selection{SchemaOnly: true}, b), "COPY app.egg", "\nlo_open")
		}
		again := mustSelect(t, script.Selection{NoOwner: true, NoPrivileges: true}, b)
		hasNot(t, again, "OWNER TO", "\nGRANT ", "SESSION AUTHORIZATION", "DEFAULT PRIVILEGES")
		script.CheckScan(t, []byte(again))
		if bytes.Count(b, []byte(`\unrestrict`)) != strings.Count(again, `\unrestrict`) {
			t.Errorf("%s: the restrictions do not match", name)
		}
	}
}
