package main

import (
	"fmt"
	"os"
	"regexp"
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
	"encdump/storage"
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
	{"store", list, "", "URL", "where backups are: a directory, file:///path, s3://bucket/prefix, azblob://container/prefix or gs://bucket/prefix; several for create", "create list show fetch restore verify copy delete prune check rekey key-list key-recipients key-rotate key-sheet"},
	{"retry-for", duration, storage.DefaultPatience.String(), "DURATION", "how long a store that cannot be reached is tried again, counted from the last byte that passed", "create list show fetch restore verify copy delete prune check rekey key-list key-recipients key-rotate key-sheet"},
	{"timeout", duration, storage.DefaultTimeout.String(), "DURATION", "how long one request to a store may make no progress before it is tried again", "create list show fetch restore verify copy delete prune check rekey key-list key-recipients key-rotate key-sheet"},
	{"key-file", list, "", "FILE", "file whose first line is the passphrase; several for reading, the right one is chosen", "create list show fetch restore verify copy prune rekey key"},
	{"key-command", text, "", "COMMAND", "shell command whose first line of output is the passphrase", "create list show fetch restore verify copy prune rekey key"},
	{"identity", list, "", "FILE.pem", "RSA private key of a recipient, to read sealed backups; several", "list show fetch restore verify copy prune rekey key-list key-recipients"},
	{"trusted-signer", list, "", "FILE.pem", "Ed25519 public key of who signs backups; what none of them signed counts as not authenticated; several", "list show fetch restore verify copy prune rekey key-list"},
	{"recipient", list, "", "FILE.pem", "RSA public key or certificate to seal the backup to, so that this host holds nothing that reads it; several", "create rekey key-recipients key-sheet"},
	{"sign-key", text, "", "FILE.pem", "Ed25519 private key to sign the backup with", "create rekey"},
	{"pem-passphrase-file", text, "", "FILE", "file whose first line is the passphrase of an encrypted --identity or --sign-key; without it the terminal is asked", "create list show fetch restore verify copy prune rekey key-list key-recipients"},
	{"signing", toggle, "false", "", "make an Ed25519 key to sign with, and beside it FILE.pub for those who read", "key-generate"},
	{"with-key", toggle, "false", "", "print the key itself on the sheet", "key-sheet"},
	{"new-key-file", text, "", "FILE", "file whose first line is the new passphrase; without it the first key that is found", "rekey"},
	{"keep-old", toggle, "false", "", "keep the backup that was re-encrypted", "rekey"},
	{"guid", text, "", "GUID", "which cluster's backups: GUID, a unique beginning of one, or a name; for create a UUID to use instead of the one that the cluster gives", "create list show fetch restore verify copy delete prune rekey key-list key-recipients"},

	{"source", text, "", "DSN", "server to dump: key-value string or URI as libpq takes them; without it PGHOST, PGSERVICE, ~/.pgpass and so on", "create"},
	{"stdin", toggle, "false", "", "store what standard input brings, as of ssh host pg_dumpall; needs --guid", "create"},
	{"allow-partial", toggle, "false", "", "with --stdin: store a stream that does not end as a whole dump does; it is marked as partial", "create"},
	{"name", text, "", "LABEL", "label for the backup; it is stored in the clear", "create"},
	{"part-size", text, "", "SIZE", "size of the parts, as 500MB or 4GiB; 0 stores one object; without it each store has its own: 1GB, on Azure one object", "create rekey"},
	{"level", number, strconv.Itoa(archive.DefaultLevel), "N", "compression, from 1 (fast) to 9 (small)", "create rekey"},
	{"jobs", number, "0", "N", "processors to use; 0 is all", "create fetch restore verify rekey"},
	{"kdf", text, "", "KDF", "key derivation: md5 (default, what openssl enc -md md5 does) or pbkdf2 for create and rekey; md5, sha256 or pbkdf2 of a foreign backup otherwise", "create fetch restore verify rekey"},
	{"iter", number, "0", "N", "rounds of pbkdf2; default 600000 for create and rekey, 10000 for foreign backups", "create fetch restore verify rekey"},
	{"pg-dumpall", text, "", "PROGRAM", "pg_dumpall to run; default is the newest found that is not older than the server", "create"},
	{"lock-wait-timeout", duration, "5m", "DURATION", "how long pg_dump waits for a table lock before it fails; 0 waits for ever", "create"},
	{"stall-timeout", duration, "0", "DURATION", "how long a store may take no data before it is given up; 0 is what --retry-for and twice --timeout come to, and a minute", "create rekey"},
	{"nice", number, "10", "N", "how far this program steps back behind the database, from 0 to 19", "create"},

	{"backup-id", text, "", "ID", "backup ID, a unique beginning of one, or latest", "show fetch restore verify copy delete rekey key-recipients"},
	{"contents", toggle, "false", "", "print databases and tables, with rows and sizes; needs the key", "show"},
	{"at", text, "", "TIME", "the newest backup that started at or before this time, as 2026-01-31T03:00:00Z; UTC without a zone", "show fetch restore verify"},
	{"allow-unauthenticated", toggle, "false", "", "read a backup that nothing vouches for: made by another program, or not signed by a trusted signer", "fetch restore verify"},
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

	{"skip-damaged", toggle, "false", "", "write what is whole of a damaged backup, and say what is missing; status 7; not with --into", "restore"},

	{"into", text, "", "DSN", "restore into this server instead of writing SQL: key-value string or URI as libpq takes them, \"\" being PGHOST and so on; of several hosts, the primary", "restore"},
	{"clean", toggle, "false", "", "with --into: replace databases that hold something, when all is restored", "restore"},
	{"in-place", toggle, "false", "", "with --clean: drop the old databases first, for want of room", "restore"},
	{"keep-old", toggle, "false", "", "with --clean: keep the old databases under other names", "restore"},
	{"terminate-connections", toggle, "false", "", "with --into: end connections that are in the way", "restore"},
	{"drop-inactive-slots", toggle, "false", "", "with --into: first drop the replication slots that nobody uses", "restore"},
	{"before-sql", list, "", "[DATABASE=]FILE", "with --into: SQL to run before; several", "restore"},
	{"after-sql", list, "", "[DATABASE=]FILE", "with --into: SQL to run afterwards; several", "restore"},
	{"keep-going", toggle, "false", "", "with --into: go on when a statement fails, and report all of these; status 3", "restore"},
	{"no-analyze", toggle, "false", "", "with --into: gather no statistics at the end", "restore"},
	{"maintenance-work-mem", text, "1GiB", "SIZE", "with --into: memory for building indexes, shared by all jobs", "restore"},

	{"from", text, "", "URL", "store to copy from; without it --store", "copy"},
	{"to", list, "", "URL", "store to copy to; several", "copy"},
	{"all", toggle, "false", "", "copy every complete backup, of --guid where that is given", "copy"},
	{"connections", number, "2", "N", "how many objects are under way at once", "copy"},
	{"connections", number, strconv.Itoa(archive.DefaultConnections), "N", "how many requests to the store are under way at once; each takes 4 MiB of memory", "fetch restore verify rekey"},
	{"output", text, ".", "DIR|FILE|-", "where to write: a folder, a file, or - for standard output", "fetch"},
	{"encrypted", toggle, "false", "", "fetch the objects as they are, still encrypted; needs no key", "fetch"},
	{"level", text, "decode", "LEVEL", "metadata, digest (neither needs a key), decode or restore", "verify"},
	{"all", toggle, "false", "", "verify every complete backup, of --guid where that is given", "verify"},
	{"since", text, "", "TIME|SPAN", "verify those that started since then, as 2026-01-31 or 7d (also h, w, m for months, y)", "verify"},
	{"sample", number, "0", "N", "verify N backups of each cluster: the latest, and others of all ages in turn, from day to day", "verify"},
	{"max-age", text, "", "SPAN", "fail where the dump is older than this, as 26h or 2d; of several, the latest", "verify"},
	{"into", text, "", "DSN", "with --level restore: restore into this server instead of a throwaway cluster; its databases of the same names must be empty", "verify"},
	{"temp-dir", text, "", "DIR", "with --level restore: where the data of the throwaway cluster lie meanwhile; default is TMPDIR", "verify"},
	{"bin-dir", text, "", "DIR", "with --level restore: directory of initdb and postgres; default is PATH and the usual places", "verify"},
	{"no-record", toggle, "false", "", "with --level restore: do not write the result beside the backup", "verify"},

	{"keep-last", number, "0", "N", "keep the newest N", "prune"},
	{"keep-within", text, "", "SPAN", "keep those that started within this time, as 36h, 14d, 8w, 6m (months), 1y or 1y6m", "prune"},
	{"keep-hourly", number, "0", "N", "keep the newest of each of the last N hours that have one; hours, days and so on are those of UTC", "prune"},
	{"keep-daily", number, "0", "N", "the same of days", "prune"},
	{"keep-weekly", number, "0", "N", "the same of ISO weeks", "prune"},
	{"keep-monthly", number, "0", "N", "the same of months", "prune"},
	{"keep-yearly", number, "0", "N", "the same of years", "prune"},
	{"retention-full", number, "0", "N", "as pgBackRest has it, see above", "prune"},
	{"retention-full-type", text, "count", "TYPE", "count or time", "prune"},
	{"keep-min", number, "1", "N", "keep the newest N whatever the other rules say; at least 1", "prune"},
	{"require-verified", toggle, "false", "", "keep the newest that a restore drill has verified", "prune"},
	{"grace", duration, dump.DefaultGrace.String(), "DURATION", "how long what was never finished must have been left alone to be removed", "prune"},
	{"incomplete-only", toggle, "false", "", "remove only what was never finished", "prune"},
	{"yes", toggle, "false", "", "do not ask", "delete prune restore"},
	{"dry-run", toggle, "false", "", "only show what would be done", "delete prune restore"},
	{"json", toggle, "false", "", "print one JSON document on standard output", "create list show restore verify copy delete prune check version rekey key-list key-recipients key-rotate"},
	{"verbose", toggle, "false", "", "say what is done, on standard error", "create list show fetch restore verify copy delete prune check rekey key-list key-recipients key-rotate key-sheet"},
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
		// Backquotes name the value in the help (pflag.UnquoteUsage), which then has it in the text, too.
		help := o.help
		if o.value != "" {
			help = "`" + o.value + "`" + valueEnd + help
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

const valueEnd = " — "

var valueInText = regexp.MustCompile(`(?m)^( +--.*?  )\S+` + valueEnd)

// withoutValues takes the names of values out of the texts of a help.
func withoutValues(help string) string { return valueInText.ReplaceAllString(help, "$1") }

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
		case f.Name == "into" && fs.Lookup("sample") != nil:
			return // meant for restore; a drill goes only where it was told to
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

// storeOptions reads what concerns all stores.
func (f flags) storeOptions() *storage.Options {
	return &storage.Options{Patience: f.duration("retry-for"), Timeout: f.duration("timeout"), Logger: newLogger(f.is("verbose"))}
}

// stallTimeout reads --stall-timeout. In an outage that ends just before --retry-for has passed, a store takes nothing
// from the beginning of the attempt that met it, which fails after --timeout, to the end of the last attempt, which
// may take as long. A store is not to be given up for that.
func (f flags) stallTimeout() (time.Duration, error) {
	o := f.storeOptions().WithDefaults()
	least := o.Patience + 2*o.Timeout
	stall := f.duration("stall-timeout")
	if stall == 0 {
		return least + time.Minute, nil
	}
	if stall < least {
		return 0, usage(fmt.Sprintf("at least %v, which is --retry-for and twice --timeout; or make these shorter", least),
			"--stall-timeout %v would give a store up that is still being tried again", stall)
	}
	return stall, nil
}

// must is for mistakes in the table of options.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// partSize reads --part-size; 0 where it was not given.
func (f flags) partSize() (int64, error) {
	if f.text("part-size") == "" {
		return 0, nil
	}
	n, err := f.bytes("part-size")
	if n == 0 && err == nil {
		return archive.WholeObject, nil
	}
	return n, err
}

// bytes reads a size.
func (f flags) bytes(name string) (int64, error) {
	s := f.text(name)
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<62 {
		return 0, usage("write a number with a unit, as 1GB, 500MB or 4GiB", "--%s %q is not a size", name, s)
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

// since reads a time or how long ago it was; the zero time where the option was not given.
func (f flags) since(name string) (time.Time, error) {
	s := f.text(name)
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := parseTime(s); err == nil {
		return t, nil
	}
	span, err := dump.ParseSpan(s)
	if err != nil {
		return time.Time{}, usage("as 2026-01-31, 2026-01-31T03:00:00Z, 36h or 7d", "--%s %q is neither a time nor a span", name, s)
	}
	return span.Before(time.Now()), nil
}

// at reads --at; the zero time where it was not given.
func (f flags) at() (time.Time, error) {
	s := f.text("at")
	if s == "" {
		return time.Time{}, nil
	}
	t, err := parseTime(s)
	if err != nil {
		return t, usage("as 2026-01-31T03:00:00Z, or \"2026-01-31 03:00\" in UTC", "--at %q is not a time", s)
	}
	return t, nil
}

// parseTime reads a time as operators write it; UTC without a zone.
func parseTime(s string) (t time.Time, err error) {
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04:05", "2006-01-02 15:04:05",
		"2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02",
	} {
		if t, err = time.ParseInLocation(layout, s, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, err
}
