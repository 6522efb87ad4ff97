package main

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"encdump/dump"
	"encdump/dump/archive"
	"encdump/dump/script"
)

func newRestore() *cobra.Command {
	return command("restore [--backup-id ID] [flags]", "restore a backup: into a server, or as SQL to standard output",
		`restore replays a backup into a server, on several connections:

    dump restore --backup-id ID --into "host=pg1,pg2,pg3 user=postgres"

or decrypts it and writes its SQL to standard output:

    dump restore --backup-id ID | psql --quiet --dbname postgres

Without an ID it takes the latest and says which.

With --into, the primary is found among the hosts, and nothing is changed before the
backup and the server were looked at. Databases are restored under other names and take
their places by renaming, all at once, when all has succeeded: until then, and when the
restore fails or is interrupted, the server has the databases that it had. One that holds
something is replaced only with --clean; --dry-run shows the plan. Connections to a
database that is replaced are in the way; --terminate-connections ends them. A restore
that was killed leaves databases whose names begin with dump_restoring_; the next one
removes them. --in-place drops the old databases, but postgres and template1, first: it
needs less room, and gives up that the old data are there until the new ones are. Roles
and tablespaces that exist are no failure; those of the backup are set in the server, also
when the restore fails later. A statement that fails ends the restore, unless --keep-going
is given. --data-only adds rows to the tables that are there, table by table on one
connection, and is the one form that does not take place all at once.

Written to standard output, the script works as follows. Nothing is written before its
digest was checked. A restore that fails on the way ends the script so that psql fails
too, and keeps no row of a table that is cut. Use "set -o pipefail" in scripts all the
same: of a dump that is killed, psql sees only the end of its input.

A part of the backup is selected by the flags below; by the index of the backup only the
rows are read that are wanted. --database takes a database as pg_dump would dump it, and
the roles unless --no-globals is given.

--table DATABASE.SCHEMA.TABLE takes a table, partition, view, materialized view, foreign
table or sequence, and nothing else of the kind. With a table comes what is its own:
defaults, sequences that its columns own, indexes, constraints, triggers, rules,
policies, statistics, comments, privileges and data. Because a table may need them, there
also come the roles and other globals (unless --no-globals), the database itself with its
settings, and those of its objects that belong to no table: schemas, extensions, types,
functions, sequences that no column owns, foreign servers. Large objects, publications,
subscriptions, event triggers and other databases do not come. A foreign key or a
partition's place that refers to a table that is not selected is left out and reported,
and so is a function or type that refers to one in its declaration. A selected view, rule
or policy that refers to one stays, and psql fails at it. Partitions and children are
tables of their own: name each. Put double quotes around parts that hold dots or quotes;
nothing is folded to lower case.

--skip-damaged salvages a damaged backup: the script has all that does not depend on
damaged bytes, which is every statement and all rows but those of the damaged places; it is
valid, and psql succeeds as far as constraints allow for the missing rows. What is missing
is said on standard error and in comments of the script, and the status is 7.

Without --clean nothing is dropped: to restore beside a database that exists, use --rename.`, atMostOne, runRestore)
}

func runRestore(ctx context.Context, f flags, args []string) error {
	o, err := f.readOptions()
	if err != nil {
		return err
	}
	selection, err := f.selection()
	if err != nil {
		return err
	}
	if f.is("skip-damaged") && (f.Changed("into") || !selection.IsZero()) {
		return usage("restore to standard output and pipe it into psql", "--skip-damaged writes the whole backup, without --into and without a selection")
	}
	if !f.Changed("into") {
		for _, name := range intoOnly {
			if f.Changed(name) && os.Getenv(variable(name)) == "" {
				return usage("without it, restore only writes SQL", "--%s goes with --into", name)
			}
		}
	}
	keys, err := f.neededKeyring(ctx)
	if err != nil {
		return err
	}
	b, err := f.find(ctx, args, keys, archive.Ref{})
	if err != nil {
		return err
	}
	if f.text("backup-id") == "" && len(args) == 0 {
		say("restoring %s", describe(b))
	}
	if f.Changed("into") {
		return runInto(ctx, f, b, selection, o)
	}
	if f.is("skip-damaged") {
		return salvage(ctx, b, o)
	}
	left, err := dump.RestoreSelected(ctx, b, os.Stdout, selection, o, progressUnlessOutput(), newLogger(f.is("verbose")))
	for _, text := range left {
		say("warning: left out: %s", text)
	}
	return err
}

// salvage writes what is whole of a backup.
func salvage(ctx context.Context, b *archive.Backup, o archive.ReadOptions) error {
	r, err := dump.Salvage(ctx, b, os.Stdout, o, progressUnlessOutput())
	if err != nil {
		return err
	}
	for _, d := range r.Damage {
		report(d, "")
	}
	for _, m := range r.Missing {
		say("missing: %v", &m)
	}
	if len(r.Damage) > 0 {
		return &statusError{errors.New("the backup is damaged; everything else of it was written"), "an older backup or another store may have what is missing", statusDamaged}
	}
	return nil
}

// selection reads what is to be restored.
func (f flags) selection() (*script.Selection, error) {
	s := &script.Selection{
		Databases: f.list("database"), ExcludeDatabases: f.list("exclude-database"), Rename: map[string]string{},
		GlobalsOnly: f.is("globals-only"), NoGlobals: f.is("no-globals"), SchemaOnly: f.is("schema-only"), DataOnly: f.is("data-only"),
		NoOwner: f.is("no-owner"), NoPrivileges: f.is("no-privileges"), KeepRoles: f.is("keep-roles"),
		NoTablespaces: f.is("no-tablespaces"), NoSubscriptions: f.is("no-subscriptions"),
	}
	for _, r := range f.list("rename") {
		from, to, ok := strings.Cut(r, "=")
		if !ok || from == "" || to == "" {
			return nil, usage("as in --rename shop=shop_old", "--rename %q is not OLD=NEW", r)
		}
		s.Rename[from] = to
	}
	for _, t := range f.list("table") {
		name, err := script.ParseTableName(t)
		if err != nil {
			return nil, usage("database, schema and table, as shop.public.orders; names with dots in double quotes", "--table %q: %v", t, err)
		}
		s.Tables = append(s.Tables, name)
	}
	if err := s.Check(); err != nil {
		return nil, usage("", "%v", err)
	}
	return s, nil
}
