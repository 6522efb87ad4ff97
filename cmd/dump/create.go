package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"encdump/crypto"
	"encdump/dump"
	"encdump/dump/archive"
	"encdump/dump/postgres"
)

func newCreate() *cobra.Command {
	return command("create [flags] [-- PG_DUMPALL OPTIONS]", "make a backup of a cluster",
		`create runs pg_dumpall and stores its output compressed, encrypted and in parts. The
backup exists only once pg_dumpall has succeeded, its output was complete and every
part is stored; otherwise what was written is removed again.

With --recipient the backup gets a random key of its own, sealed to RSA public keys: this
host then holds nothing that reads what it made. As anyone who has the public key could
have made it, give --sign-key too; without it the backup counts as not authenticated.

Options after -- go to pg_dumpall. Those that leave something out, as --globals-only
or --exclude-database, make the backup a partial one.`,
		func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n > 0 || n < 0 && len(args) > 0 {
				return fmt.Errorf("unexpected argument %q; options of pg_dumpall follow after --", args[0])
			}
			return nil
		}, runCreate)
}

func runCreate(ctx context.Context, f flags, args []string) error {
	log := newLogger(f.is("verbose"))
	partial, err := postgres.CheckDumpOptions(args)
	if err != nil {
		hint, _ := explain(err)
		return &statusError{err, orHint(hint, "set the connection with --source or libpq's environment; the output goes to --store"), statusUsage}
	}
	guid := strings.ToLower(f.text("guid"))
	if guid != "" {
		if _, err := uuid.Parse(guid); err != nil || !archive.ValidGUID(guid) {
			return usage("a UUID, as uuidgen makes it; the same every time for the same cluster", "--guid %q is not a UUID", guid)
		}
	}
	if printable(f.text("name")) != f.text("name") && f.text("name") != "" {
		return usage("", "--name %q holds characters that do not print", f.text("name"))
	}
	if n := f.number("nice"); n < 0 || n > 19 {
		return usage("", "--nice %d is not within 0 and 19", n)
	}
	lockWait := f.duration("lock-wait-timeout")
	if lockWait == 0 {
		lockWait = -1 // for ever; 0 would be the default
	}
	writer, err := f.writerOptions(ctx)
	if err != nil {
		return err
	}
	writer.AllowPartial = f.is("allow-partial")
	stores, err := f.stores(ctx)
	if err != nil {
		return err
	}
	o := &dump.CreateOptions{
		Stores:  stores,
		Source:  postgres.Config{DSN: f.text("source"), Logger: log},
		Dump:    postgres.DumpOptions{Program: f.text("pg-dumpall"), Args: args, LockWaitTimeout: lockWait},
		Partial: partial,
		GUID:    guid,
		Name:    f.text("name"),
		Key: func(ctx context.Context, guid string, first bool) (*crypto.Key, error) {
			k, err := f.creationKey(ctx, first)
			if err != nil {
				return nil, err
			}
			return k, checkNewKey(k, writer.Derivation)
		},
		Archive:  *writer,
		Tool:     tool(),
		Nice:     f.number("nice"),
		Progress: newProgress(),
		Logger:   log,
	}
	switch stdin := f.is("stdin"); {
	case stdin && guid == "":
		return usage("a UUID for the cluster that the dump is of, the same every time", "--stdin needs --guid")
	case stdin && len(args) > 0:
		return usage("", "with --stdin nothing is run, so options for pg_dumpall mean nothing")
	case stdin && f.text("source") != "":
		return usage("", "--stdin and --source exclude each other")
	case stdin && term.IsTerminal(int(os.Stdin.Fd())):
		return usage("as in: ssh host pg_dumpall | dump create --stdin --guid …", "standard input is a terminal")
	case stdin:
		o.Stdin = os.Stdin
	case f.is("allow-partial"):
		return usage("", "--allow-partial goes with --stdin")
	}
	if s := f.text("source"); s != os.Getenv(variable("source")) && postgres.DSNHasPassword(s) {
		log.Warn("a password in --source can be seen by every user of this machine; use ~/.pgpass or PGPASSWORD")
	}

	r, err := dump.Create(ctx, o)
	if err != nil {
		return err
	}
	failed := r.Failed()
	if f.is("json") {
		type destination struct {
			Store string `json:"store"`
			Error string `json:"error,omitempty"`
		}
		out := struct {
			*archive.Metadata
			Destinations []destination `json:"destinations"`
		}{Metadata: r.Metadata}
		for _, d := range r.Destinations {
			j := destination{Store: d.Bucket.String()}
			if d.Err != nil {
				j.Error = d.Err.Error()
			}
			out.Destinations = append(out.Destinations, j)
		}
		if err := printJSON(out); err != nil {
			return err
		}
	} else if stderrIsTerminal() || f.is("verbose") {
		m := r.Metadata
		say("backup %s: %s of SQL in %s, %d part(s), %v", m.BackupID, size(m.Sizes.Plain), size(m.Sizes.Stored),
			len(m.Parts), m.FinishedAt.Sub(m.TriggeredAt).Round(100*1e6))
	}
	if len(failed) > 0 {
		for _, d := range failed {
			say("error: %s does not have the backup: %v", d.Bucket, d.Err)
		}
		return &statusError{status: statusInPart}
	}
	return nil
}

// writerOptions reads how a backup is written, by what create and rekey share.
func (f flags) writerOptions(ctx context.Context) (*archive.WriterOptions, error) {
	o := &archive.WriterOptions{Derivation: crypto.MD5, Level: f.number("level"), Jobs: f.jobs()}
	var err error
	if o.PartSize, err = f.partSize(); err != nil {
		return nil, err
	}
	derivation, err := f.derivation(crypto.DefaultIterations)
	if err != nil {
		return nil, err
	}
	if derivation != nil {
		o.Derivation = *derivation
	}
	if o.Derivation == crypto.SHA256 {
		return nil, usage("md5, or pbkdf2 with --iter rounds", "--kdf sha256 is for reading foreign backups only")
	}
	if o.Level < 1 || o.Level > 9 {
		return nil, usage("", "--level %d is not within 1 and 9", o.Level)
	}
	if o.StallTimeout, err = f.stallTimeout(); err != nil {
		return nil, err
	}
	if o.Recipients, err = f.recipients(); err != nil {
		return nil, err
	}
	o.Sign, err = f.signKey(ctx)
	return o, err
}

// checkNewKey refuses a key that is too weak for a new backup.
func checkNewKey(k *crypto.Key, d crypto.Derivation) error {
	if err := k.Passphrase().CheckNew(d); err != nil {
		return &statusError{fmt.Errorf("key from %s: %w", k.Source, err), "dump key generate makes a good one", statusKey}
	}
	return nil
}
