package main

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"encdump/crypto"
)

func newKey() *cobra.Command {
	key := &cobra.Command{
		Use:   "key",
		Short: "make, name and show keys",
		Long: `A key is a passphrase in the first line of a file. Copy it to a safe place away from the
backups: whoever has it reads them, and without it nobody does.`,
	}
	onlyCommands(key)
	key.AddCommand(
		keyCommand("generate [--key-file FILE]", "make a new key of 32 letters and digits",
			`generate writes a random key to the file, mode 0600, by default to this user's own key
file, and never over an existing one.

With --signing it makes an Ed25519 key to sign backups with instead, as a PEM file: FILE is
for the host that makes backups (--sign-key), FILE.pub for those that read them
(--trusted-signer). It encrypts nothing.`, runKeyGenerate),
		keyCommand("set [--key-file FILE]", "write a passphrase from a pipe or prompt to a key file",
			`set reads a passphrase, from standard input where that is a pipe and at the terminal
otherwise, and writes it to the file, mode 0600, by default to this user's own key file,
and never over an existing one.`, runKeySet),
		keyCommand("id [flags]", "print the ID and the source of each key",
			`id prints the key ID of each key, as the metadata of backups have it, and where the key
comes from. The ID tells nothing of the key.`, runKeyID),
		keyCommand("show [flags]", "print the key itself",
			`show prints the passphrase on standard output.`, runKeyShow),
		keyCommand("list [flags]", "show which backups of a store need which key",
			`list shows, for each key that backups of the store need, where it is on this host or that
it is missing here, and the backups. It goes by what the metadata say.`, runKeyList),
		keyCommand("rotate [--key-file FILE] [flags]", "make a new key for new backups",
			`rotate makes a new key in the place of the old one, by default in the key file that create
uses, and moves the old one beside it, to FILE.<key ID>, where reading finds it. With
--store it lists which backups still need the old key; "dump rekey" encrypts them anew.
What is rotated after a theft must be encrypted anew, and copies of the old backups deleted.`, runKeyRotate),
		keyCommand("recipients [--recipient FILE.pem | [--backup-id] ID] [flags]", "show who can read a sealed backup",
			`recipients prints the IDs of those whom a backup is sealed to, the latest where none is
named, with the file of --identity that is theirs; or, with --recipient, the IDs of public
keys and certificates. An ID is the SHA-256 of the public key.`, runKeyRecipients),
		keyCommand("sheet [flags]", "print a recovery sheet for the safe",
			`sheet prints what a stranger needs on the bad day: the ID of the key, where the backups are,
and the steps. The key itself is on it only with --with-key, and the sheet says so. With
--recipient it is a sheet for sealed backups.`, runKeySheet),
	)
	return key
}

func keyCommand(use, short, long string, run func(ctx context.Context, f flags, args []string) error) *cobra.Command {
	cmd := command("key "+use, short, long, atMostOneArgument, run) // with the options of key
	cmd.Use = use
	addOptions(cmd, "key-"+cmd.Name())
	return cmd
}

func atMostOneArgument(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("one argument at most, %d arguments were given", len(args))
	}
	return nil
}

// newKeyFile returns the file that a new key is to be written to.
func newKeyFile(f flags, args []string) (string, error) {
	files := f.list("key-file")
	if len(args) == 1 {
		files = args
	}
	switch len(files) {
	case 0:
		return defaultKeyFiles()[0], nil
	case 1:
		return files[0], nil
	}
	return "", usage("", "a new key goes to one file, several were given")
}

func writeKey(path string, p crypto.Passphrase) error {
	if err := crypto.WriteKeyFile(path, p); err != nil {
		return err
	}
	sayNewKey(crypto.NewKey(p, path))
	return nil
}

func runKeyGenerate(_ context.Context, f flags, args []string) error {
	if f.is("signing") {
		files := args
		if len(files) == 0 {
			files = f.list("key-file")
		}
		// The variable names the file of another kind of key.
		if len(files) != 1 || files[0] == os.Getenv(variable("key-file")) {
			return usage("dump key generate --signing --key-file sign.pem", "--signing needs the name of one file")
		}
		s, err := crypto.GenerateSigningKey(files[0])
		if err != nil {
			return err
		}
		say("new signing key %s in %s, its public key in %s.pub", s.ID, files[0], files[0])
		say("hint: make backups with --sign-key %s; read them with --trusted-signer and a copy of %s.pub", files[0], files[0])
		return nil
	}
	path, err := newKeyFile(f, args)
	if err != nil {
		return err
	}
	return writeKey(path, crypto.Generate())
}

func runKeySet(ctx context.Context, f flags, args []string) error {
	path, err := newKeyFile(f, args)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	var p crypto.Passphrase
	if term.IsTerminal(int(os.Stdin.Fd())) {
		first, err := askSecret(ctx, "passphrase: ")
		if err != nil {
			return err
		}
		second, err := askSecret(ctx, "once more: ")
		if err != nil {
			return err
		}
		if !bytes.Equal(first, second) {
			return &statusError{fmt.Errorf("the two are not the same; nothing was written"), "", statusFailed}
		}
		p = crypto.NewPassphrase(first)
	} else if p, err = crypto.ReadPassphrase(os.Stdin); err != nil {
		return usage("", "passphrase from standard input: %v", err)
	}
	// PBKDF2 is the laxer one; create asks for more where it uses MD5.
	if err := p.CheckNew(crypto.NewPBKDF2(crypto.DefaultIterations)); err != nil {
		return usage("dump key generate makes a good one", "%v", err)
	}
	return writeKey(path, p)
}

// namedKeys returns the keys that flags or the argument name.
func namedKeys(ctx context.Context, f flags, args []string) (crypto.Keyring, error) {
	if len(args) == 1 {
		k, err := crypto.ReadKeyFile(args[0])
		if err != nil {
			return nil, &statusError{fmt.Errorf("key: %w", err), "", statusKey}
		}
		return crypto.Keyring{k}, nil
	}
	return f.neededKeyring(ctx)
}

func runKeyID(ctx context.Context, f flags, args []string) error {
	keys, err := namedKeys(ctx, f, args)
	if err != nil {
		return err
	}
	for _, k := range keys {
		fmt.Printf("%s  %s\n", k.ID(), k.Source)
	}
	return nil
}

func runKeyShow(ctx context.Context, f flags, args []string) error {
	keys, err := namedKeys(ctx, f, args)
	if err != nil {
		return err
	}
	for _, k := range keys {
		fmt.Println(k.Passphrase().Reveal())
	}
	return nil
}
