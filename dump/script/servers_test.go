package script_test

import (
	"bytes"
	"maps"
	"os"
	"regexp"
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
	source := server{postgrestest.Start(t, major, postgres.ClusterOptions{Settings: clusterSettings})}
	if err := load(source.Cluster); err != nil {
		t.Fatal(err)
	}
	all := dumpOf(t, source.Cluster, "pg_dumpall")
	for _, options := range []string{"", "--inserts --rows-per-insert=7", "--clean --if-exists --quote-all-identifiers", "--disable-triggers --disable-dollar-quoting --use-set-session-authorization"} {
		checkStatements(t, dumpOf(t, source.Cluster, "pg_dumpall", strings.Fields(options)...))
	}

	// Two databases, with the roles, into an empty server of the version of our
	// pg_dump, which writes for that one.
	target := startServer(t)
	target.psql(t, "postgres", []byte(mustSelect(t, script.Selection{Databases: []string{"objects", "large_objects"}, KeepRoles: true}, all)))
	same := func(what string, got, want string) {
		t.Helper()
		equal(t, what, made.ReplaceAllString(statements(got), ""), made.ReplaceAllString(statements(want), ""))
	}
	for _, d := range []string{"objects", "large_objects"} {
		same(d, target.dump(t, "pg_dump", "-C", d), source.dump(t, "pg_dump", "-C", d))
	}
	same("roles", target.dump(t, "pg_dumpall", "-r"), source.dump(t, "pg_dumpall", "-r"))
	for _, d := range gather(t, all, 1<<20).Databases {
		if d.Name == "objects" || d.Name == "large_objects" {
			checkDatabase(t, target.Cluster, all, d)
		}
	}
	// Tables, into a database beside it.
	target.psql(t, "postgres", []byte(mustSelect(t, script.Selection{
		Tables: []script.TableName{table(t, "objects.app.hen"), table(t, "objects.app.egg"), table(t, "data.public.rows")}, Rename: map[string]string{"objects": "rescue"}, NoGlobals: true,
	}, all)))
	same("tables", target.dump(t, "pg_dump", "-t", "app.hen", "-t", "app.egg", "rescue"), source.dump(t, "pg_dump", "-t", "app.hen", "-t", "app.egg", "objects"))
	same("rows", target.dump(t, "pg_dump", "-t", "rows", "data"), source.dump(t, "pg_dump", "-t", "rows", "data"))
}

// made is what newer servers make of themselves, where the older one had none.
var made = regexp.MustCompile(`(?m)^    multirange_type_name = app.span_multirange,\n`)

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

// TestSelectOIDs is about a table whose rows come with their OIDs, as pg_dump
// --oids wrote them up to version 11.
func TestSelectOIDs(t *testing.T) {
	in, err := os.ReadFile("testdata/scripts/pg_dumpall_9.6_oids.sql")
	if err != nil {
		t.Fatal(err)
	}
	d := gather(t, in, 100).Databases
	if len(d) != 1 || len(d[0].Copies) != 2 || d[0].Copies[0].Rows != 2 || d[0].Copies[0].Table != "t" {
		t.Errorf("%+v", d)
	}
	out := mustSelect(t, script.Selection{Tables: []script.TableName{table(t, "old.public.t")}, NoOwner: true}, in)
	has(t, out, "CREATE OR REPLACE PROCEDURAL LANGUAGE plperl;", "SET default_with_oids = true;", "COPY public.t (a, b) WITH OIDS FROM stdin;\n16390\t1\tx;\n16391\t2\t\\N\n\\.\n")
	hasNot(t, out, "OWNER TO", "public.u")
	hasNot(t, mustSelect(t, script.Selection{SchemaOnly: true}, in), "COPY", "16390")
}

// TestSelectSecurityLabels: a label goes with its object, as a comment does.
// Their providers are modules that servers do not have of themselves.
func TestSelectSecurityLabels(t *testing.T) {
	in, err := os.ReadFile("testdata/scripts/security_labels.sql")
	if err != nil {
		t.Fatal(err)
	}
	labels := func(sel script.Selection, in []byte) string {
		var b strings.Builder
		for _, m := range label.FindAllStringSubmatch(mustSelect(t, sel, in), -1) {
			b.WriteString(m[1] + "\n")
		}
		return b.String()
	}
	const (
		globals = "ROLE reader\nROLE \"odd ;\"\"role\"\nTABLESPACE fast\n"
		before  = "DATABASE labels\nSCHEMA app\nTYPE app.mood\nDOMAIN app.word\nFUNCTION app.f(integer, text)\nAGGREGATE app.total(integer)\n"
		ofTable = "TABLE app.t\nTABLE app.t\nCOLUMN app.t.\"odd ;\"\"column\"\n"
		after   = "TABLE app.u\nCOLUMN app.u.a\nSEQUENCE app.s\nSEQUENCE app.r\nVIEW app.v\nMATERIALIZED VIEW app.m\nFOREIGN TABLE app.ft\nPUBLICATION pub\n"
		last    = "EVENT TRIGGER watch\nLANGUAGE plpgsql\nLARGE OBJECT 1000\n"
	)
	equal(t, "all", labels(script.Selection{}, in), globals+before+ofTable+after+"SUBSCRIPTION sub\n"+last)
	equal(t, "globals", labels(script.Selection{GlobalsOnly: true}, in), globals)
	equal(t, "no tablespaces", labels(script.Selection{GlobalsOnly: true, NoTablespaces: true}, in), "ROLE reader\nROLE \"odd ;\"\"role\"\n")
	equal(t, "database", labels(script.Selection{Databases: []string{"labels"}, NoGlobals: true, NoSubscriptions: true}, in), before+ofTable+after+last)
	equal(t, "no privileges", labels(script.Selection{NoGlobals: true, NoPrivileges: true}, in), before+ofTable+after+"SUBSCRIPTION sub\n"+last)
	equal(t, "table", labels(script.Selection{NoGlobals: true, Tables: []script.TableName{table(t, "labels.app.t")}}, in), before+ofTable+"SEQUENCE app.s\nLANGUAGE plpgsql\n")
	equal(t, "data", labels(script.Selection{NoGlobals: true, DataOnly: true}, in), "LARGE OBJECT 1000\n") // as pg_dump -a has it
	has(t, mustSelect(t, script.Selection{Rename: map[string]string{"labels": "new name"}}, in), `SECURITY LABEL FOR dummy ON DATABASE "new name" IS`)
	comments := strings.NewReplacer("SECURITY LABEL FOR dummy ON", "COMMENT ON", `SECURITY LABEL FOR "odd ;""provider" ON`, "COMMENT ON").Replace(string(in))
	for _, sel := range []script.Selection{
		{GlobalsOnly: true}, {NoSubscriptions: true}, {NoTablespaces: true}, {SchemaOnly: true}, {Tables: []script.TableName{table(t, "labels.app.t")}},
	} {
		out := mustSelect(t, sel, in)
		out = strings.NewReplacer("SECURITY LABEL FOR dummy ON", "COMMENT ON", `SECURITY LABEL FOR "odd ;""provider" ON`, "COMMENT ON").Replace(out)
		equal(t, "comments", out, mustSelect(t, sel, []byte(comments)))
	}
}

var label = regexp.MustCompile(`(?m)^SECURITY LABEL FOR \S+(?: \S+)?? ON (.*) IS`)
