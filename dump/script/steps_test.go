package script_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"encdump/dump/script"
)

func TestSteps(t *testing.T) {
	var s script.Steps
	for _, test := range []struct{ text, lane, needs string }{
		{"SET client_encoding = 'UTF8';", "session", ""},
		{"SELECT pg_catalog.set_config('search_path', '', false);", "session", ""},
		{"SET LOCAL x = 1;", "alone", ""},
		{"RESET SESSION AUTHORIZATION;", "session", ""},
		{"CREATE TABLE public.a (id int);", "alone", ""},
		{"CREATE TABLE public.p (id int)\nPARTITION BY RANGE (id);", "alone", ""},
		{"CREATE TABLE public.p1 (id int);", "alone", ""},
		{"ALTER TABLE ONLY public.p ATTACH PARTITION public.p1 FOR VALUES FROM (0) TO (10);", "alone", ""},
		{"CREATE TABLE public.q PARTITION OF public.p FOR VALUES FROM (10) TO (20);", "alone", ""},
		{"CREATE TABLE public.child (x int)\nINHERITS (public.a, public.b);", "alone", ""},
		{"COPY public.z (id) FROM stdin;", "copy", "tree public.z, public.z"},
		{"COPY public.p1 (id) FROM stdin;", "copy", "tree public.p, public.p1"},
		{"COPY public.z TO stdout;", "alone", ""},
		{"INSERT INTO public.z VALUES (1);", "alone", ""},
		{"SELECT pg_catalog.setval('public.s', 1, true);", "beside", ""},
		{"ALTER TABLE ONLY public.z ADD CONSTRAINT z_pkey PRIMARY KEY (id);", "beside", "tree public.z, public.z!"},
		{`CREATE UNIQUE INDEX "I" ON public.z USING btree (id);`, "beside", "tree public.z, public.z"},
		{`COMMENT ON INDEX public."I" IS 'x';`, "beside", "tree public.z, public.z!"},
		{"COMMENT ON INDEX public.unknown IS 'x';", "alone", ""},
		{"COMMENT ON CONSTRAINT z_pkey ON public.z IS 'x';", "beside", "tree public.z, public.z!"},
		{"ALTER TABLE public.z CLUSTER ON z_pkey;", "beside", "tree public.z, public.z!"},
		{"ALTER TABLE ONLY public.z REPLICA IDENTITY FULL;", "beside", "tree public.z, public.z!"},
		{"CREATE INDEX pi ON ONLY public.p USING btree (id);", "beside", "tree public.p!"},
		{"CREATE INDEX p1i ON public.p1 USING btree (id);", "beside", "tree public.p, public.p1"},
		{"ALTER INDEX public.pi ATTACH PARTITION public.p1i;", "beside", "tree public.p!, tree public.p, public.p1!"},
		{"ALTER INDEX public.nobody ATTACH PARTITION public.p1i;", "alone", ""},
		{"ALTER TABLE ONLY public.z ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES public.y(id) ON DELETE CASCADE;", "beside", "tree public.z, public.z!, tree public.y, public.y!"},
		{"ALTER TABLE public.z ADD CONSTRAINT c CHECK (f(id)) NOT VALID;", "alone", ""},
		{"ALTER TABLE public.z DISABLE TRIGGER ALL;", "beside", "tree public.z, public.z!"},
		{"CREATE TRIGGER t BEFORE INSERT ON public.z FOR EACH ROW EXECUTE FUNCTION public.f();", "beside", "tree public.z, public.z!"},
		{"CREATE RULE r AS ON INSERT TO public.z DO INSTEAD NOTHING;", "alone", ""},
		{"REFRESH MATERIALIZED VIEW public.m;", "alone", ""},
		{"CREATE VIEW public.v AS SELECT 1;", "alone", ""},
		{"BEGIN;", "alone", ""},
		{"CREATE INDEX", "alone", ""},
		{"ALTER TABLE", "alone", ""},
		{"", "alone", ""},
	} {
		step := s.Next([]byte(test.text))
		var needs []string
		for _, n := range step.Needs {
			mark := ""
			if n.Exclusive {
				mark = "!"
			}
			needs = append(needs, n.Key+mark)
		}
		lane := [...]string{"alone", "session", "copy", "beside"}[step.Lane]
		if got := strings.Join(needs, ", "); lane != test.lane || got != test.needs {
			t.Errorf("%s\n is %s, needs %q; want %s, %q", test.text, lane, got, test.lane, test.needs)
		}
	}
}

// FuzzSteps: no statement makes it panic, and what needs nothing that is known runs alone.
func FuzzSteps(f *testing.F) {
	f.Add("ALTER TABLE ONLY public.z ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES public.y(id);")
	f.Add("CREATE TABLE a () INHERITS (b, c);ALTER TABLE a ATTACH PARTITION a FOR VALUES")
	f.Add("CREATE USER MAPPING FOR public SERVER s OPTIONS (password 'x');")
	f.Fuzz(func(t *testing.T, text string) {
		var s script.Steps
		for _, statement := range strings.SplitAfter(text, ";") {
			step := s.Next([]byte(statement))
			if (step.Lane == script.CopyIn || step.Lane == script.Beside && step.Kind != "value") && len(step.Needs) == 0 {
				t.Errorf("%q runs beside others and needs nothing", statement)
			}
			if n := len(script.Brief([]byte(statement), 40)); n > 40+len(" …")+2 {
				t.Errorf("brief has %d bytes", n)
			}
		}
	})
}

func TestBrief(t *testing.T) {
	for text, want := range map[string]string{
		"/* c */ -- d\nSELECT\n  1;":                                            "SELECT 1",
		"ALTER ROLE \"o'x\" WITH LOGIN PASSWORD 'hushhush';":                    `ALTER ROLE "o'x" …`,
		"CREATE USER MAPPING FOR bob SERVER s OPTIONS (password 'hushhush');":   "CREATE USER MAPPING FOR …",
		"CREATE SUBSCRIPTION s CONNECTION 'password=hushhush' PUBLICATION p;":   "CREATE SUBSCRIPTION s …",
		"CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (password 'hushhush');": "CREATE SERVER s …",
		"CREATE TABLE t (" + strings.Repeat("ä", 100) + ")":                     "CREATE TABLE t (" + strings.Repeat("ä", 12) + " …",
	} {
		if got := script.Brief([]byte(text), 40); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestSummarizer: what a restore is told before it begins.
func TestSummarizer(t *testing.T) {
	var s script.Summarizer
	f := script.NewFeeder(s.Item)
	fmt.Fprint(f, `--
-- PostgreSQL database cluster dump
--
SET x = 1;
CREATE ROLE a; CREATE ROLE "B c"; ALTER ROLE a LOGIN;
CREATE TABLESPACE t OWNER a LOCATION '/some/where';
\connect template1
SET y = 1;
CREATE DATABASE one; ALTER DATABASE one SET z = 1;
\connect one
CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public; COMMENT ON EXTENSION citext IS 'x';
COPY t FROM stdin;
CREATE TABLE no (a int);
\.
`)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	got := s.Summary()
	if !slices.Equal(got.Roles, []string{"a", "B c"}) || len(got.Tablespaces) != 1 || got.Tablespaces[0] != (script.SummaryTablespace{Name: "t", Location: "/some/where"}) || got.GlobalObjects != 4 {
		t.Errorf("globals: %+v", got)
	}
	want := `[{template1 false 0 []} {one true 2 [citext]}]`
	if text := fmt.Sprint(got.Databases); text != want {
		t.Errorf("databases %s, want %s", text, want)
	}
}
