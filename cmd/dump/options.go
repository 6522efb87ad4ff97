package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"encdump/crypto"
	"encdump/dump"
	"encdump/dump/archive"
)

// kind of an option's value.
type kind int

const (
	text     kind = iota
	list          // may be given several times; of these, the variable of store separates by spaces
	toggle        // true or false
	number        // a whole number
	duration      // as Go writes them: 30s, 5m, 24h
)

// option is a row of the one table of options: a flag of some commands, and the
// environment variable DUMP_<FLAG> for all of them.
type option struct {
	name     string
	kind     kind
	def      string // default
	value    string // what stands for the value in the help
	help     string
	commands string // separated by spaces
}

var options = []option{
	{"store", list, "", "URL", "where backups are: a directory, file:///path or s3://bucket/prefix; several for create", "create list show fetch restore verify delete"},
	{"key-file", list, "", "FILE", "file whose first line is the passphrase; several for reading, the right one is chosen", "create list show fetch restore verify key"},
	{"key-command", text, "", "COMMAND", "shell command whose first line of output is the passphrase", "create list show fetch restore verify key"},
	{"guid", text, "", "GUID", "which cluster's backups: GUID, a unique beginning of one, or a name; for create a UUID to use instead of the one that the cluster gives", "create list show fetch restore verify delete"},

	{"source", text, "", "DSN", "server to dump: key-value string or URI as libpq takes them; without it PGHOST, PGSERVICE, ~/.pgpass and so on", "create"},
	{"stdin", toggle, "false", "", "store what standard input brings, as of ssh host pg_dumpall; needs --guid", "create"},
	{"allow-partial", toggle, "false", "", "with --stdin: store a stream that does not end as a whole dump does; it is marked as partial", "create"},
	{"name", text, "", "LABEL", "label for the backup; it is stored in the clear", "create"},
	{"part-size", text, "1GB", "SIZE", "size of the parts, as 500MB or 4GiB; 0 stores one object", "create"},
	{"level", number, strconv.Itoa(archive.DefaultLevel), "N", "compression, from 1 (fast) to 9 (small)", "create"},
	{"jobs", number, "0", "N", "processors to use; 0 is all", "create fetch restore verify"},
	{"kdf", text, "", "KDF", "key derivation: md5 (default, what openssl enc -md md5 does) or pbkdf2 for create; md5, sha256 or pbkdf2 of a foreign backup otherwise", "create fetch restore verify"},
	{"iter", number, "0", "N", "rounds of pbkdf2; default 600000 for create, 10000 for foreign backups", "create fetch restore verify"},
	{"pg-dumpall", text, "", "PROGRAM", "pg_dumpall to run; default is the newest found that is not older than the server", "create"},
	{"lock-wait-timeout", duration, "5m", "DURATION", "how long pg_dump waits for a table lock before it fails; 0 waits for ever", "create"},
	{"stall-timeout", duration, archive.DefaultStallTimeout.String(), "DURATION", "how long a store may take no data before it is given up", "create"},
	{"nice", number, "10", "N", "how far this program steps back behind the database, from 0 to 19", "create"},

	{"backup-id", text, "", "ID", "backup ID, a unique beginning of one, or latest", "show fetch restore verify delete"},
	{"contents", toggle, "false", "", "print databases and tables, with rows and sizes; needs the key", "show"},
	{"at", text, "", "TIME", "the newest backup that started at or before this time, as 2026-01-31T03:00:00Z; UTC without a zone", "show fetch restore verify"},
	{"allow-unauthenticated", toggle, "false", "", "read a backup that nothing vouches for, made by another program", "fetch restore verify"},
	{"database", list, "", "NAME", "only this database, with the roles; several", "restore"},
	{"exclude-database", list, "", "NAME", "all but this database; several", "restore"},
	{"rename", list, "", "OLD=NEW", "give a database another name; several", "restore"},
	{"table", list, "", "DB.SCHEMA.TABLE", "only this table and what it needs, see above; several", "restore"},
	{"globals-only", toggle, "false", "", "only roles and tablespaces", "restore"},
	{"no-globals", toggle, "false", "", "neither roles nor tablespaces", "restore"},
	{"schema-only", toggle, "false", "", "no data", "restore"},
	{"data-only", toggle, "false", "", "only data", "restore"},
	{"no-owner", toggle, "false", "", "everything belongs to whoever restores", "restore"},
	{"no-privileges", toggle, "false", "", "no GRANT and REVOKE on objects", "restore"},
	{"keep-roles", toggle, "false", "", "roles that exist keep their passwords and attributes", "restore"},
	{"no-tablespaces", toggle, "false", "", "everything goes to the default tablespace", "restore"},
	{"no-subscriptions", toggle, "false", "", "no subscriptions", "restore"},

	{"output", text, ".", "DIR|FILE|-", "where to write: a folder, a file, or - for standard output", "fetch"},
	{"encrypted", toggle, "false", "", "fetch the objects as they are, still encrypted; needs no key", "fetch"},
	{"level", text, "decode", "LEVEL", "metadata, digest (neither needs a key) or decode", "verify"},

	{"yes", toggle, "false", "", "do not ask", "delete"},
	{"dry-run", toggle, "false", "", "only show what would be done", "delete"},
	{"json", toggle, "false", "", "print one JSON document on standard output", "create list show verify delete version"},
	{"verbose", toggle, "false", "", "say what is done, on standard error", "create list show fetch restore verify delete"},
}

// variable returns the environment variable of a flag.
func variable(flag string) string {
	return "DUMP_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// addOptions gives a command its flags.
func addOptions(cmd *cobra.Command, command string) {
	fs := cmd.Flags()
	fs.SortFlags = false
	for _, o := range options {
		if !slices.Contains(strings.Fields(o.commands), command) {
			continue
		}
		// Backquotes name the value in the help (pflag.UnquoteUsage).
		help := o.help
		if o.value != "" {
			help = "`" + o.value + "`  " + help
		}
		switch o.kind {
		case text:
			fs.String(o.name, o.def, help)
		case list:
			fs.StringArray(o.name, nil, help)
		case toggle:
			fs.Bool(o.name, o.def == "true", help)
		case number:
			n, _ := strconv.Atoi(o.def)
			fs.Int(o.name, n, help)
		case duration:
			d, _ := time.ParseDuration(o.def)
			fs.Duration(o.name, d, help)
		}
	}
}

// flags reads the values of a command's options.
type flags struct{ *pflag.FlagSet }

// fromEnvironment sets the flags that were not given from their variables.
func fromEnvironment(fs *pflag.FlagSet) (err error) {
	fs.VisitAll(func(f *pflag.Flag) {
		value, ok := os.LookupEnv(variable(f.Name))
		if !ok || value == "" || f.Changed || err != nil || f.Name == "help" {
			return
		}
		switch {
		case f.Name == "key-file" && fs.Changed("key-command"):
			return // what was given outranks what was set
		case f.Name == "level" && isLevel(value) != (f.Value.Type() == "string"):
			return // create and verify share the variable, not the values
		}
		values := []string{value}
		if f.Name == "store" {
			values = strings.Fields(value)
		}
		for _, v := range values {
			if e := fs.Set(f.Name, v); e != nil {
				err = usage("", "%s=%q is not a valid value of --%s", variable(f.Name), value, f.Name)
			}
		}
	})
	return err
}

// isLevel tells whether s is a level of verification, or might be meant for one.
func isLevel(s string) bool {
	_, err := strconv.Atoi(s)
	return err != nil && slices.Contains(dump.Levels, dump.Level(s))
}

// checkNumbers refuses negative numbers and durations: no option knows such.
func checkNumbers(fs *pflag.FlagSet) (err error) {
	fs.VisitAll(func(f *pflag.Flag) {
		if t := f.Value.Type(); (t == "int" || t == "duration") && strings.HasPrefix(f.Value.String(), "-") && err == nil {
			err = usage("", "--%s %s is negative", f.Name, f.Value)
		}
	})
	return err
}

func (f flags) text(name string) string {
	v, err := f.GetString(name)
	must(err)
	return v
}

func (f flags) list(name string) []string {
	v, err := f.GetStringArray(name)
	must(err)
	return v
}

func (f flags) is(name string) bool {
	v, err := f.GetBool(name)
	must(err)
	return v
}

func (f flags) number(name string) int {
	v, err := f.GetInt(name)
	must(err)
	return v
}

func (f flags) duration(name string) time.Duration {
	v, err := f.GetDuration(name)
	must(err)
	return v
}

// must is for mistakes in the table of options.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// partSize reads --part-size.
func (f flags) partSize() (int64, error) {
	s := f.text("part-size")
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<62 {
		return 0, usage("write a number with a unit, as 1GB, 500MB or 4GiB", "--part-size %q is not a size", s)
	}
	if n == 0 {
		return archive.WholeObject, nil
	}
	return int64(n), nil
}

// derivation reads --kdf and --iter; nil where neither was given.
func (f flags) derivation(iterations int) (*crypto.Derivation, error) {
	if n := f.number("iter"); n > 0 {
		iterations = n
	}
	var d crypto.Derivation
	switch kdf := f.text("kdf"); kdf {
	case "":
		if f.number("iter") == 0 {
			return nil, nil
		}
		d = crypto.NewPBKDF2(iterations)
	case "md5":
		d = crypto.MD5
	case "sha256":
		d = crypto.SHA256
	case "pbkdf2":
		d = crypto.NewPBKDF2(iterations)
	default:
		return nil, usage("md5, sha256 or pbkdf2", "--kdf %q is not known", kdf)
	}
	if f.number("iter") != 0 && d.KDF != crypto.PBKDF2 {
		return nil, usage("", "--iter goes with --kdf pbkdf2")
	}
	if err := d.Check(); err != nil {
		return nil, usage(fmt.Sprintf("1 to %d", crypto.MaxIterations), "--iter %d: %v", iterations, err)
	}
	return &d, nil
}

// at reads --at; the zero time where it was not given.
func (f flags) at() (time.Time, error) {
	s := f.text("at")
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04:05", "2006-01-02 15:04:05",
		"2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, s, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("as 2026-01-31T03:00:00Z, or \"2026-01-31 03:00\" in UTC", "--at %q is not a time", s)
}
