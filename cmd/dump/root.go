package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/storage"
	_ "encdump/storage/azure" // registers azblob://
	_ "encdump/storage/file"  // registers directories
	_ "encdump/storage/gcs"   // registers gs://
	_ "encdump/storage/s3"    // registers s3://
)

// defaultStore is used on a terminal where no store is named.
const defaultStore = "./backups"

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "dump",
		Short: "encrypted logical backups of PostgreSQL that openssl, gunzip and psql can restore",
		Long: `dump makes encrypted logical backups of whole PostgreSQL clusters, and restores them.

Each flag has an environment variable: --key-file is DUMP_KEY_FILE. Connections
follow libpq: PGHOST, PGSERVICE, ~/.pgpass and so on.

Exit status: 0 done; 1 failed; 2 wrong usage; 3 done in part, or inconclusive; 4 no such backup;
5 key missing or wrong; 6 another run holds the lock; 7 damaged or not
authenticated; 129 hangup; 130 interrupted; 143 terminated.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	onlyCommands(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(fmt.Sprintf("%s --help lists the flags", cmd.CommandPath()), "%v", err)
	})
	root.PersistentFlags().BoolP("help", "h", false, "show this help")
	root.AddCommand(
		newCreate(), newList(), newShow(), newFetch(), newRestore(), newVerify(), newCopy(), newDelete(), newPrune(), newCheck(), newRekey(), newKey(), newVersion(),
	)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				if target, _, err := root.Find(args); err != nil || target == root && len(args) > 0 {
					return usage("dump --help lists the commands", "unknown command %q", strings.Join(args, " "))
				}
				return nil
			}
		case "completion":
			onlyCommands(c)
			for _, shell := range c.Commands() {
				shell.Args = ours(noArguments)
			}
		}
	}
	return root
}

// onlyCommands makes a command that is nothing without one of its own commands.
func onlyCommands(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(cmd.CommandPath()+" --help lists the commands", "unknown command %q", strings.TrimPrefix(cmd.CommandPath()+" "+args[0], "dump "))
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// ours makes the error of a check of arguments one of usage.
func ours(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage(cmd.CommandPath()+" --help shows the usage", "%v", err)
		}
		return nil
	}
}

// command makes a subcommand with the flags that the table of options gives it;
// its errors of usage have status 2.
func command(use, short, long string, args cobra.PositionalArgs, run func(ctx context.Context, f flags, args []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, DisableFlagsInUseLine: true}
	cmd.Args = ours(args)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := fromEnvironment(cmd.Flags()); err != nil {
			return err
		}
		if err := checkNumbers(cmd.Flags()); err != nil {
			return err
		}
		return run(cmd.Context(), flags{cmd.Flags()}, args)
	}
	addOptions(cmd, cmd.Name())
	cobra.AddTemplateFunc("withoutValues", withoutValues)
	cmd.SetUsageTemplate(strings.Replace(cmd.UsageTemplate(), ".LocalFlags.FlagUsages |", ".LocalFlags.FlagUsages | withoutValues |", 1))
	return cmd
}

// stores opens the stores that were named.
func (f flags) stores(ctx context.Context) ([]storage.Bucket, error) {
	urls := f.list("store")
	if len(urls) == 0 {
		if !stderrIsTerminal() {
			return nil, usage("name one with --store or DUMP_STORE, as --store /var/backups/pg", "no store")
		}
		urls = []string{defaultStore}
	}
	return f.open(ctx, urls)
}

// open opens stores.
func (f flags) open(ctx context.Context, urls []string) ([]storage.Bucket, error) {
	var out []storage.Bucket
	for _, u := range urls {
		b, err := storage.OpenURL(ctx, u, f.storeOptions())
		if err != nil {
			return nil, &statusError{err, "", statusUsage}
		}
		out = append(out, b)
	}
	return out, nil
}

// find returns the backup that --backup-id or the argument, --at and --guid
// name: from the first store that has it. ref is what the command adds to that.
func (f flags) find(ctx context.Context, args []string, keys crypto.Keyring, ref archive.Ref) (*archive.Backup, error) {
	stores, err := f.stores(ctx)
	if err != nil {
		return nil, err
	}
	return f.findIn(ctx, stores, args, keys, ref)
}

func (f flags) findIn(ctx context.Context, stores []storage.Bucket, args []string, keys crypto.Keyring, ref archive.Ref) (*archive.Backup, error) {
	ref.ID, ref.GUID = f.text("backup-id"), f.text("guid")
	if len(args) > 0 {
		if ref.ID != "" && ref.ID != args[0] {
			return nil, usage("", "two backups are named: --backup-id %s and %s", ref.ID, args[0])
		}
		ref.ID = args[0]
	}
	if f.Lookup("at") != nil {
		var err error
		if ref.At, err = f.at(); err != nil {
			return nil, err
		}
		if !ref.At.IsZero() && ref.ID != "" && ref.ID != archive.Latest {
			return nil, usage("", "--at chooses a backup by time, and one is named by ID already")
		}
	}
	log := newLogger(f.is("verbose"))
	var first error
	for _, s := range stores {
		c, err := f.catalog(s, keys)
		if err != nil {
			return nil, err
		}
		b, err := c.Find(ctx, ref)
		if err == nil {
			return b, nil
		}
		if first == nil {
			first = err
		}
		var none *archive.NotFoundError
		if !errors.As(err, &none) && !errors.Is(err, storage.ErrNotFound) && len(stores) > 1 {
			log.Warn("store passed over", "store", s.String(), "err", err)
		}
	}
	return nil, first
}

// catalog opens the catalog of a store, for which --trusted-signer names whom to trust.
func (f flags) catalog(s storage.Bucket, keys crypto.Keyring) (*archive.Catalog, error) {
	signers, err := f.signers()
	if err != nil {
		return nil, err
	}
	c := archive.OpenCatalog(s, keys, newLogger(f.is("verbose")))
	c.Trust(signers)
	return c, nil
}

// jobs returns how many processors to use.
func (f flags) jobs() int {
	if n := f.number("jobs"); n > 0 {
		return n
	}
	return runtime.GOMAXPROCS(0)
}

// readOptions returns how a backup is read.
func (f flags) readOptions() (archive.ReadOptions, error) {
	d, err := f.derivation(crypto.OpenSSLIterations)
	return archive.ReadOptions{Jobs: f.jobs(), Connections: f.number("connections"), AllowUnauthenticated: f.is("allow-unauthenticated"), Derivation: d}, err
}

// atMostOne and noArguments are cobra's checks in our words.
func atMostOne(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("one backup at most, %d arguments were given", len(args))
	}
	if len(args) == 1 && args[0] == "" {
		return errors.New("the backup ID is empty") // a variable that is not set, and not the latest
	}
	return nil
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

// describe names a backup for people.
func describe(b *archive.Backup) string {
	s := b.ID.String() + ", " + age(b.StartedAt())
	if b.Metadata != nil && b.Metadata.Name != "" {
		s += ", " + printable(b.Metadata.Name)
	}
	return s
}

// isFolder tells whether there is a folder at path.
func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
