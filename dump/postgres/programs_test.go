package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for line, want := range map[string]version{
		"pg_dumpall (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)": {1500, 18, "15.18"},
		"pg_dumpall (PostgreSQL) 18beta1":                        {1800, 0, "18beta1"},
		"pg_dumpall (PostgreSQL) 19devel":                        {1900, 0, "19devel"},
		"pg_dumpall (PostgreSQL) 9.6.24":                         {906, 24, "9.6.24"},
		"pg_dumpall (EnterpriseDB) 15.4.0":                       {1500, 4, "15.4.0"},
	} {
		if got, err := parseVersion(line); err != nil || got != want {
			t.Errorf("%s: %v, %v", line, got, err)
		}
	}
	for _, line := range []string{"", "pg_dumpall", "hello (world) there"} {
		if got, err := parseVersion(line); err == nil {
			t.Errorf("%q: %v", line, got)
		}
	}
	for num, want := range map[int]int{150018: 1500, 90624: 906, 100023: 1000} {
		if got := serverMajor(num); got != want {
			t.Errorf("%d: %d", num, got)
		}
	}
}

// TestFindDumpall has a PATH and usual places of its own. Directories are given as "path:VERSION" and "usual:VERSION".
func TestFindDumpall(t *testing.T) {
	for name, c := range map[string]struct {
		programs []string
		server   int
		want     string // the program, or nothing
	}{
		"the newest":                 {[]string{"path:15.1", "usual:17.2", "usual:16.3"}, 150018, "usual:17.2"},
		"the same major":             {[]string{"path:15.1"}, 150018, "path:15.1"},
		"the newest minor":           {[]string{"path:15.1", "usual:15.18"}, 150018, "usual:15.18"},
		"not an older one":           {[]string{"path:14.9", "usual:13.2"}, 150018, ""},
		"PATH on a tie":              {[]string{"usual:15.18", "path:15.18"}, 150018, "path:15.18"},
		"9.6 is older than 10":       {[]string{"path:9.6.24"}, 100001, ""},
		"9.6 for 9.5":                {[]string{"path:9.6.24"}, 90525, "path:9.6.24"},
		"9.5 for 9.6":                {[]string{"path:9.5.25"}, 90624, ""},
		"18 for 9.6":                 {[]string{"path:9.6.1", "usual:18.0"}, 90624, "usual:18.0"},
		"a beta":                     {[]string{"path:18beta1"}, 180000, "path:18beta1"},
		"none":                       {nil, 150018, ""},
		"none with a pg_dump beside": {[]string{"alone:15.18"}, 150018, ""},
		"none that works":            {[]string{"broken:15.18"}, 150018, ""},
		"no wrapper":                 {[]string{"wrapper:18.1", "usual:15.18"}, 150018, "usual:15.18"},
	} {
		t.Run(name, func(t *testing.T) {
			var path, usual []string
			where := map[string]string{}
			for _, p := range c.programs {
				kind, v, _ := strings.Cut(p, ":")
				script := ""
				if kind == "broken" {
					v = "x"
				}
				file := fakeDumpall(t, v, script)
				switch kind {
				case "alone":
					if err := os.Remove(filepath.Join(filepath.Dir(file), "pg_dump")); err != nil {
						t.Fatal(err)
					}
				case "wrapper": // as on Debian
					wrapper := filepath.Join(t.TempDir(), "pg_wrapper")
					if err := os.Rename(file, wrapper); err != nil {
						t.Fatal(err)
					}
					if err := os.Symlink(wrapper, file); err != nil {
						t.Fatal(err)
					}
				}
				if kind == "usual" {
					usual = append(usual, filepath.Dir(file))
				} else {
					path = append(path, filepath.Dir(file))
				}
				where[p] = file
			}
			t.Setenv("PATH", strings.Join(path, ":"))
			old := usualPlaces
			usualPlaces = usual
			defer func() { usualPlaces = old }()

			p, err := findDumpall(t.Context(), "", fakeServer(t, c.server, "host=h").info)
			if c.want != "" {
				if err != nil || p.path != where[c.want] {
					t.Errorf("%v, %v; want %s", p, err, where[c.want])
				}
				return
			}
			if err == nil {
				t.Fatalf("found %v", p)
			}
			for _, given := range c.programs {
				if kind, v, _ := strings.Cut(given, ":"); kind == "path" || kind == "usual" {
					contains(t, err.Error(), where[given], v)
				}
			}
			contains(t, err.Error(), fakeServer(t, c.server, "host=h").info.VersionText)
			contains(t, hintOf(err), "postgresql-client-"+majorText(serverMajor(c.server)), "--pg-dumpall")
		})
	}
}

func TestNamedDumpall(t *testing.T) {
	t.Setenv("PATH", "/nonexistent")
	info := fakeServer(t, 150018, "host=h").info
	good := fakeDumpall(t, "16.1", "")
	if p, err := findDumpall(t.Context(), good, info); err != nil || p.path != good || p.version.text != "16.1" {
		t.Errorf("%v, %v", p, err)
	}
	t.Setenv("PATH", filepath.Dir(good))
	if p, err := findDumpall(t.Context(), "pg_dumpall", info); err != nil || p.path != good {
		t.Errorf("by its name: %v, %v", p, err)
	}
	for name, path := range map[string]string{"older": fakeDumpall(t, "14.1", ""), "missing": "/nonexistent/pg_dumpall"} {
		if _, err := findDumpall(t.Context(), path, info); err == nil || hintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	alone := fakeDumpall(t, "15.18", "")
	if err := os.Remove(filepath.Join(filepath.Dir(alone), "pg_dump")); err != nil {
		t.Fatal(err)
	}
	if _, err := findDumpall(t.Context(), alone, info); err == nil || !strings.Contains(err.Error(), "no pg_dump beside") {
		t.Errorf("alone: %v", err)
	}
}
