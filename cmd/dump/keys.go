package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"encdump/crypto"
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

// noKeyError says that no key was found, and where it was looked for.
func noKeyError(why string) error {
	return &statusError{
		fmt.Errorf("%s: looked for --key-file, --key-command, the variable %s, %s", why, keyVariable, joinWords(defaultKeyFiles())),
		"make one with: dump key generate", statusKey,
	}
}

// keyring returns the keys at hand for reading, none where there are none. The
// sources exclude each other in the order of --key-file, --key-command,
// DUMP_KEY, default files.
func (f flags) keyring(ctx context.Context) (crypto.Keyring, error) {
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
		err = noKeyError("no key")
	}
	return ring, err
}

// creationKey returns the key to encrypt with. Only on a terminal, and only
// where no backup of the GUID exists, a missing one is made.
func (f flags) creationKey(ctx context.Context, first bool) (*crypto.Key, error) {
	ring, err := f.keyring(ctx)
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
		return nil, noKeyError("no key")
	}
	if !first {
		return nil, noKeyError("no key, and the store holds backups already")
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
