package postgres

// Finding PostgreSQL's programs and their versions.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// usualPlaces are where packagers put the programs of PostgreSQL, often several versions side by side.
var usualPlaces = []string{
	"/usr/lib/postgresql/*/bin",          // Debian
	"/usr/pgsql-*/bin",                   // PGDG on Red Hat
	"/usr/lib/postgresql*/bin",           // SUSE, Gentoo
	"/usr/libexec/postgresql*",           // Alpine
	"/usr/local/pgsql/bin",               // built from source
	"/usr/local/opt/postgresql@*/bin",    // Homebrew
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew
	"/opt/local/lib/postgresql*/bin",     // MacPorts
	"/Library/PostgreSQL/*/bin",          // EnterpriseDB
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/var/vcap/packages/postgresql*/bin", // BOSH
	"/var/vcap/packages/*/bin",
}

// version is the version of a program: major 15 and minor 18, or major 9.6 and minor 24.
type version struct {
	major int // 15, or 906 for 9.6; so that 9.6 comes before 10 it is 9*100+6 and 15*100
	minor int
	text  string
}

// serverMajor brings a server_version_num into the form of version.major.
func serverMajor(num int) int {
	if num < 100000 {
		return num / 100 // 90624 is 9.6.24
	}
	return num / 10000 * 100
}

func majorText(major int) string {
	if major < 1000 {
		return fmt.Sprintf("%d.%d", major/100, major%100)
	}
	return strconv.Itoa(major / 100)
}

func (v version) newer(w version) bool {
	return v.major > w.major || v.major == w.major && v.minor > w.minor
}

// versionPattern takes the number from what --version prints: "pg_dumpall (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)",
// "18beta1", "9.6.24".
var versionPattern = regexp.MustCompile(`^\S+ \([^)]*\) ((\d+)(?:\.(\d+))?(?:\.(\d+))?\S*)`)

func parseVersion(line string) (version, error) {
	m := versionPattern.FindStringSubmatch(line)
	if m == nil {
		return version{}, errors.New("it does not say its version")
	}
	n := [3]int{}
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+2])
	}
	if n[0] < 10 {
		return version{n[0]*100 + n[1], n[2], m[1]}, nil
	}
	return version{n[0] * 100, n[1], m[1]}, nil
}

// program is one that was found.
type program struct {
	path    string
	version version
}

// inspect asks a program for its version.
func inspect(ctx context.Context, path string) (program, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = baseEnv()
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return program{}, fmt.Errorf("%s --version: %w", path, err)
	}
	v, err := parseVersion(strings.TrimSpace(string(out)))
	if err != nil {
		return program{}, fmt.Errorf("%s --version: %w", path, err)
	}
	return program{path, v}, nil
}

// findPrograms finds all programs of a name that have the companion beside them: those in PATH first, then those in
// the usual places. Those that do not work are left out.
func findPrograms(ctx context.Context, name, companion string) []program {
	dirs := filepath.SplitList(os.Getenv("PATH"))
	for _, pattern := range usualPlaces {
		matches, _ := filepath.Glob(pattern)
		dirs = append(dirs, matches...)
	}
	var found []program
	seen := map[string]bool{}
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue // as package exec does: a program in the current directory is not ours
		}
		path := filepath.Join(dir, name)
		real, err := filepath.EvalSymlinks(path)
		// Debian's pg_wrapper chooses a version by the clusters of this machine, not by the server that we talk to.
		if err != nil || seen[real] || filepath.Base(real) == "pg_wrapper" || !hasBeside(path, companion) {
			continue
		}
		seen[real] = true
		if p, err := inspect(ctx, path); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// hasBeside tells whether an executable lies beside a program, or beside the file that it is a link to.
func hasBeside(path, companion string) bool {
	dirs := []string{filepath.Dir(path)}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		dirs = append(dirs, filepath.Dir(real))
	}
	for _, dir := range dirs {
		if _, err := exec.LookPath(filepath.Join(dir, companion)); err == nil {
			return true
		}
	}
	return false
}

// newest picks the newest program among those that fit; on a tie the first.
func newest(programs []program, fits func(version) bool) (program, bool) {
	var best program
	for _, p := range programs {
		if fits(p.version) && (best.path == "" || p.version.newer(best.version)) {
			best = p
		}
	}
	return best, best.path != ""
}

// describe lists programs with their versions.
func describe(name string, programs []program) string {
	if len(programs) == 0 {
		return "no " + name + " was found"
	}
	var b strings.Builder
	b.WriteString("found ")
	for i, p := range programs {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s (%s)", p.path, p.version.text)
	}
	return b.String()
}

// findDumpall finds the pg_dumpall to use for a server: the newest, which knows the most about older servers. named,
// when not empty, is the operator's choice.
func findDumpall(ctx context.Context, named string, info Info) (program, error) {
	need := serverMajor(info.Version)
	hint := fmt.Sprintf("install postgresql-client-%s, or name a pg_dumpall of that version or a newer one with --pg-dumpall", majorText(need))
	if named != "" {
		path, err := exec.LookPath(named)
		if err != nil {
			return program{}, withHint(fmt.Errorf("pg_dumpall: %w", err), "--pg-dumpall takes the path of a pg_dumpall")
		}
		if path, err = filepath.Abs(path); err != nil {
			return program{}, fmt.Errorf("pg_dumpall: %w", err)
		}
		if !hasBeside(path, "pg_dump") {
			return program{}, withHint(fmt.Errorf("there is no pg_dump beside %s", path), "pg_dumpall calls the pg_dump in its own directory; "+hint)
		}
		p, err := inspect(ctx, path)
		if err != nil {
			return program{}, err
		}
		if p.version.major < need {
			return program{}, withHint(fmt.Errorf("%s has version %s, older than the server's %s", path, p.version.text, info.VersionText), hint)
		}
		return p, nil
	}
	found := findPrograms(ctx, "pg_dumpall", "pg_dump")
	if p, ok := newest(found, func(v version) bool { return v.major >= need }); ok {
		return p, nil
	}
	if err := ctx.Err(); err != nil {
		return program{}, context.Cause(ctx)
	}
	return program{}, withHint(fmt.Errorf("no pg_dumpall for a server of version %s: %s", info.VersionText, describe("pg_dumpall with a pg_dump beside it", found)), hint)
}
