package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"encdump/crypto"
	"encdump/dump/archive"
)

// keyVariable holds a passphrase, where operators want it there.
const keyVariable = "DUMP_KEY"

// systemKeyFile is where the key of a machine is; tests have another.
var systemKeyFile = "/etc/dump/key"

// defaultKeyFiles returns where a key is looked for when none is named; the
// first is where this user's is made.
func defaultKeyFiles() []string {
	var files []string
	if dir, err := os.UserConfigDir(); err == nil {
		files = append(files, filepath.Join(dir, "dump", "key"))
	}
	if os.Geteuid() == 0 {
		return append([]string{systemKeyFile}, files...)
	}
	return append(files, systemKeyFile)
}

// noKeyError says that no key was found, and where it was looked for. hint is the way out.
func noKeyError(why, hint string) error {
	return &statusError{
		fmt.Errorf("%s: looked for --key-file, --key-command, the variable %s, %s", why, keyVariable, joinWords(defaultKeyFiles())),
		hint, statusKey,
	}
}

const (
	hintNewKey = "make one with: dump key generate; sealed backups are made with --recipient and read with --identity"
	hintOldKey = "name the key that the backup was made with, by --key-file, or by --identity where it is sealed; dump list tells its key ID"
)

// keyring returns the keys at hand for reading, none where there are none: those of
// currentKeys, what "dump key rotate" has put beside their files, and --identity.
func (f flags) keyring(ctx context.Context) (crypto.Keyring, error) {
	ring, err := f.currentKeys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range ring {
		retired, err := filepath.Glob(globQuote.Replace(k.Source) + "." + strings.Repeat("[0-9a-f]", 16))
		if err != nil {
			return nil, err
		}
		for _, path := range retired {
			old, err := crypto.ReadKeyFile(path)
			if err != nil {
				say("warning: retired key: %v", err) // it may not be the one that is needed
				continue
			}
			ring = append(ring, old)
		}
	}
	if f.Lookup("identity") == nil {
		return ring, nil
	}
	for _, path := range f.list("identity") {
		k, err := crypto.ReadIdentity(path, f.askPassphrase(ctx))
		if err != nil {
			return nil, pemError("identity", err)
		}
		ring = append(ring, k)
	}
	return ring, nil
}

// globQuote makes a path one that filepath.Glob takes as it is.
var globQuote = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// currentKeys returns the passphrases at hand. The sources exclude each other in the
// order of --key-file, --key-command, DUMP_KEY, default files.
func (f flags) currentKeys(ctx context.Context) (crypto.Keyring, error) {
	fail := func(err error) (crypto.Keyring, error) { return nil, &statusError{err, "", statusKey} }
	var ring crypto.Keyring
	if files := f.list("key-file"); len(files) > 0 {
		for _, path := range files {
			k, err := crypto.ReadKeyFile(path)
			if err != nil {
				return fail(fmt.Errorf("key: %w", err))
			}
			ring = append(ring, k)
		}
		return ring, nil
	}
	if command := f.text("key-command"); command != "" {
		k, err := crypto.RunKeyCommand(ctx, command, crypto.WithoutSecrets(os.Environ()), os.Stderr)
		if err != nil {
			return fail(err)
		}
		return crypto.Keyring{k}, nil
	}
	if secret := os.Getenv(keyVariable); secret != "" {
		return crypto.Keyring{crypto.NewKey(crypto.NewPassphrase([]byte(secret)), "variable "+keyVariable)}, nil
	}
	for _, path := range defaultKeyFiles() {
		k, err := crypto.ReadKeyFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) && path == systemKeyFile {
			continue
		}
		if err != nil {
			return fail(fmt.Errorf("key: %w", err))
		}
		ring = append(ring, k)
	}
	return ring, nil
}

// neededKeyring is keyring where a key must be at hand.
func (f flags) neededKeyring(ctx context.Context) (crypto.Keyring, error) {
	ring, err := f.keyring(ctx)
	if err == nil && len(ring) == 0 {
		err = noKeyError("no key", hintOldKey)
	}
	return ring, err
}

// creationKey returns the key to encrypt with. Only on a terminal, and only
// where no backup of the GUID exists, a missing one is made.
func (f flags) creationKey(ctx context.Context, first bool) (*crypto.Key, error) {
	ring, err := f.currentKeys(ctx)
	if err != nil {
		return nil, err
	}
	if len(f.list("key-file")) > 1 {
		return nil, usage("", "create encrypts with one key, --key-file was given %d times", len(ring))
	}
	if len(ring) > 0 {
		return ring[0], nil
	}
	if !stderrIsTerminal() {
		return nil, noKeyError("no key", hintNewKey)
	}
	if !first {
		return nil, noKeyError("no key, and the store holds backups already", hintNewKey)
	}
	path := defaultKeyFiles()[0]
	p := crypto.Generate()
	if err := crypto.WriteKeyFile(path, p); err != nil {
		return nil, &statusError{fmt.Errorf("key: %w", err), "make one elsewhere with: dump key generate --key-file FILE", statusKey}
	}
	k := crypto.NewKey(p, path)
	sayNewKey(k)
	return k, nil
}

func sayNewKey(k *crypto.Key) {
	say("new key %s in %s", k.ID(), k.Source)
	say("hint: copy this file to a safe place away from this machine now; without it no backup can ever be read")
}

// pemError is a PEM file that is not what it should be.
func pemError(what string, err error) error {
	hint := ""
	if errors.Is(err, crypto.ErrPEMPassphrase) {
		hint = "--pem-passphrase-file FILE, or without it an answer at the terminal, opens an encrypted PEM file"
	}
	return &statusError{fmt.Errorf("%s: %w", what, err), hint, statusKey}
}

// askPassphrase returns how the passphrase of an encrypted PEM file is come by.
func (f flags) askPassphrase(ctx context.Context) crypto.AskPassphrase {
	return func(path string) (crypto.Passphrase, error) {
		if file := f.text("pem-passphrase-file"); file != "" {
			k, err := crypto.ReadKeyFile(file)
			if err != nil {
				return crypto.Passphrase{}, err
			}
			return k.Passphrase(), nil
		}
		secret, err := askSecret(ctx, "passphrase of "+path+": ")
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%s is encrypted, and its passphrase cannot be asked for (--pem-passphrase-file FILE has it): %w", path, err)
		}
		return crypto.NewPassphrase(secret), err
	}
}

// recipients reads --recipient, which excludes a key that was named with it.
func (f flags) recipients() ([]*crypto.Recipient, error) {
	files := f.list("recipient")
	if len(files) > archive.MaxRecipients {
		return nil, usage("", "--recipient was given %d times, %d at most are allowed", len(files), archive.MaxRecipients)
	}
	others := []string{"key-file", "key-command"}
	if f.Lookup("new-key-file") != nil {
		others = []string{"new-key-file"} // the others are for reading there
	}
	for _, other := range others {
		if len(files) > 0 && f.Lookup(other) != nil && f.Changed(other) && os.Getenv(variable(other)) == "" {
			return nil, usage("a sealed backup has a key of its own", "--recipient and --%s exclude each other", other)
		}
	}
	var out []*crypto.Recipient
	for _, path := range files {
		r, err := crypto.ReadRecipient(path)
		if err != nil {
			return nil, pemError("recipient", err)
		}
		out = append(out, r)
	}
	return out, nil
}

// signKey reads --sign-key; nil where it was not given.
func (f flags) signKey(ctx context.Context) (*crypto.SigningKey, error) {
	path := f.text("sign-key")
	if path == "" {
		return nil, nil
	}
	k, err := crypto.ReadSigningKey(path, f.askPassphrase(ctx))
	if err != nil {
		return nil, pemError("sign-key", err)
	}
	return k, nil
}

// signers reads --trusted-signer.
func (f flags) signers() ([]*crypto.Signer, error) {
	if f.Lookup("trusted-signer") == nil {
		return nil, nil
	}
	var out []*crypto.Signer
	for _, path := range f.list("trusted-signer") {
		s, err := crypto.ReadSigner(path)
		if err != nil {
			return nil, pemError("trusted-signer", err)
		}
		out = append(out, s)
	}
	return out, nil
}
