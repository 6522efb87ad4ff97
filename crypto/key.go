package crypto

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// MaxPassphrase is the longest passphrase in bytes that new backups take;
	// openssl cuts what it reads from a file at 1,023.
	MaxPassphrase = 512
	// MinPassphraseMD5 is the shortest that new backups take with [MD5], which
	// costs an attacker next to nothing a guess.
	MinPassphraseMD5 = 16
	// KeyLength is the number of letters and digits that [Generate] makes: 190 bits.
	KeyLength = 32

	// opensslLine is how much of a line openssl takes (APP_PASS_LEN of its
	// apps/include/apps.h, less the end).
	opensslLine = 1023
	// maxKeyFile bounds what is read while looking for the end of the first line.
	maxKeyFile = 64 << 10
)

// Passphrase is a secret that does not print: every way of formatting, logging
// or encoding it gives a placeholder. The secret stands behind a function since
// package fmt looks through unexported fields and pointers, whose methods it does not call.
type Passphrase struct{ reveal func() []byte }

// secret returns the passphrase, not to be changed; nil where there is none.
func (p Passphrase) secret() []byte {
	if p.reveal == nil {
		return nil
	}
	return p.reveal()
}

const redacted = "[passphrase]"

// NewPassphrase takes a copy of b.
func NewPassphrase(b []byte) Passphrase {
	secret := bytes.Clone(b)
	return Passphrase{func() []byte { return secret }}
}

// Reveal returns the passphrase itself, to be printed where the operator asked for it.
func (p Passphrase) Reveal() string { return string(p.secret()) }

// IsZero tells whether there is no passphrase.
func (p Passphrase) IsZero() bool { return len(p.secret()) == 0 }

func (Passphrase) String() string               { return redacted }
func (Passphrase) GoString() string             { return redacted }
func (Passphrase) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) } // for %d and other verbs
func (Passphrase) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Passphrase) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// CheckNew returns an error unless p may encrypt new backups under d: printable
// ASCII without quotes, of at most [MaxPassphrase] bytes and, unless d is PBKDF2,
// at least [MinPassphraseMD5]. For reading, any passphrase will do.
func (p Passphrase) CheckNew(d Derivation) error {
	switch {
	case len(p.secret()) == 0:
		return errors.New("the passphrase is empty")
	case len(p.secret()) > MaxPassphrase:
		return fmt.Errorf("the passphrase has %d bytes, %d at most are allowed", len(p.secret()), MaxPassphrase)
	case p.secret()[len(p.secret())-1] == '\r':
		return errors.New("the passphrase ends in a carriage return, which openssl would take as part of it")
	}
	for _, c := range p.secret() {
		if c < ' ' || c > '~' {
			return errors.New("the passphrase holds other characters than printable ASCII")
		}
		if c == '\'' || c == '"' || c == '`' {
			return errors.New("the passphrase holds a quote, which the shell commands of a recovery by hand would break on")
		}
	}
	if d.KDF != PBKDF2 && len(p.secret()) < MinPassphraseMD5 {
		return fmt.Errorf("the passphrase has %d characters, at least %d are needed with the derivation %s",
			len(p.secret()), MinPassphraseMD5, d)
	}
	return nil
}

// Key is a passphrase and what is derived from it. It is safe for concurrent use.
type Key struct {
	// Source says where the passphrase came from: a path, or a description.
	Source string

	pass   Passphrase
	master func() []byte

	// Of the private key of a recipient, which has no passphrase; see ReadIdentity.
	recipient string
	unseal    func(sealed []byte) ([]byte, error)
}

// NewKey returns the key of p.
func NewKey(p Passphrase, source string) *Key {
	return &Key{Source: source, pass: p, master: sync.OnceValue(func() []byte {
		// Slow on purpose, and once per key: nothing that is published from it
		// is a cheaper oracle for the passphrase than the stream itself.
		m, err := pbkdf2.Key(sha256.New, string(p.secret()), []byte("dump v1"), 600_000, sha256.Size)
		if err != nil {
			panic(err) // only for sizes that the standard forbids
		}
		return m
	})}
}

// Format prints where k came from; package fmt would look through the unexported fields.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, "key from "+k.Source) }

// Passphrase returns the passphrase of k.
func (k *Key) Passphrase() Passphrase { return k.pass }

// ID returns the key ID: 16 hex digits that name the key and do not betray it.
// Of a recipient's private key they are the first of its RecipientID.
func (k *Key) ID() string {
	if k.recipient != "" {
		return k.recipient[:16]
	}
	return hex.EncodeToString(k.derive(nil, "key id"))[:16]
}

// MetadataMAC returns HMAC-SHA256 under the key that vouches for the metadata
// of the stream with that salt.
func (k *Key) MetadataMAC(salt []byte) hash.Hash {
	return hmac.New(sha256.New, k.derive(salt, "metadata mac"))
}

// RecordMAC returns HMAC-SHA256 under the key that vouches for records of restore
// drills of the backup whose stream has that salt.
func (k *Key) RecordMAC(salt []byte) hash.Hash {
	return hmac.New(sha256.New, k.derive(salt, "record mac"))
}

func (k *Key) derive(salt []byte, info string) []byte {
	b, err := hkdf.Key(sha256.New, k.master(), salt, info, sha256.Size)
	if err != nil {
		panic(err) // only for sizes that RFC 5869 forbids
	}
	return b
}

// Keyring is the keys that are at hand for reading.
type Keyring []*Key

// Find returns the passphrase with that key ID, or nil.
func (r Keyring) Find(id string) *Key {
	for _, k := range r.Passphrases() {
		if k.ID() == id {
			return k
		}
	}
	return nil
}

// ReadKeyFile returns the key whose passphrase is the first line of the file,
// as "openssl enc -pass file:" reads it: without its newline, cut at 1,023 bytes, and with
// everything else, a carriage return included.
func ReadKeyFile(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := readLine(f)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return NewKey(p, path), nil
}

// ReadPassphrase reads the first line of r as ReadKeyFile does.
func ReadPassphrase(r io.Reader) (Passphrase, error) { return readLine(r) }

func readLine(r io.Reader) (Passphrase, error) {
	line, err := bufio.NewReaderSize(io.LimitReader(r, maxKeyFile), 4096).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return Passphrase{}, err
	}
	if len(line) == maxKeyFile {
		return Passphrase{}, fmt.Errorf("the first line is longer than %d bytes", maxKeyFile)
	}
	line = bytes.TrimSuffix(line, []byte("\n"))
	line = line[:min(len(line), opensslLine)]
	if len(line) == 0 {
		return Passphrase{}, errors.New("the first line is empty")
	}
	return NewPassphrase(line), nil
}

// RunKeyCommand returns the key whose passphrase is the first line that the
// shell command prints. env is the command's environment, which should hold no
// other passphrase. What the command writes to standard error goes to stderr;
// its standard output is never shown.
func RunKeyCommand(ctx context.Context, command string, env []string, stderr io.Writer) (*Key, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env, cmd.Stderr = env, stderr
	cmd.WaitDelay = time.Second // what it has started may hold its output open for longer
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("key command: %w", err)
	}
	p, err := readLine(bytes.NewReader(out))
	if err != nil {
		return nil, fmt.Errorf("key command: %w", err)
	}
	return NewKey(p, "key command"), nil
}

// Generate makes a passphrase of [KeyLength] letters and digits from crypto/rand.
func Generate() Passphrase {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	// Bytes at or above the largest multiple of 62 are thrown away, so that no
	// letter is likelier than another.
	const limit = 256 - 256%len(alphabet)
	out := make([]byte, 0, KeyLength)
	var b [KeyLength]byte
	for {
		rand.Read(b[:]) // never fails (crypto/rand)
		for _, c := range b {
			if int(c) < limit {
				if out = append(out, alphabet[int(c)%len(alphabet)]); len(out) == KeyLength {
					return NewPassphrase(out)
				}
			}
		}
	}
}

// WriteKeyFile writes p and a newline to a new file of mode 0600, in a folder
// that is made with mode 0700 where it is missing. An existing file is an error
// that matches os.ErrExist and stays as it is.
func WriteKeyFile(path string, p Passphrase) error {
	return writeNew(path, append(bytes.Clone(p.secret()), '\n'), 0o600)
}

// writeNew writes a new file as WriteKeyFile says.
func writeNew(path string, content []byte, mode os.FileMode) (err error) {
	if dir := filepath.Dir(path); dir != "." {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path) // ours: O_EXCL made it
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// A backup must not outlive its only key in a power cut: the folder, and the one
	// that it may have been made in, are synced too.
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if d, err := os.Open(dir); err == nil {
			d.Sync()
			d.Close()
		}
	}
	return nil
}

// RotateKeyFile puts a new passphrase into a key file that exists, in one step and with its
// owner and mode, after writing the old one to path.<key ID>, whose name it returns. On failure path is as it was.
func RotateKeyFile(path string, old *Key) (retired string, err error) {
	// A link stays one, and both files lie where the file is.
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(target)
	if err != nil {
		return "", err
	}
	retired = path + "." + old.ID()
	put := func(path string, p Passphrase) error {
		if err := WriteKeyFile(path, p); err != nil {
			return err
		}
		err := keepOwner(path, info)
		if err == nil {
			err = os.Chmod(path, info.Mode().Perm())
		}
		if err != nil {
			os.Remove(path)
		}
		return err
	}
	if err := put(retired, old.pass); err != nil {
		there, readErr := ReadKeyFile(retired) // of a rotation that was cut off
		if !errors.Is(err, os.ErrExist) || readErr != nil || !bytes.Equal(there.pass.secret(), old.pass.secret()) {
			return "", err
		}
	}
	next := target + ".new"
	os.Remove(next) // of a rotation that was cut off; it has encrypted nothing
	if err := put(next, Generate()); err != nil {
		return "", err
	}
	if err := os.Rename(next, target); err != nil {
		os.Remove(next)
		return "", err
	}
	if d, err := os.Open(filepath.Dir(target)); err == nil {
		d.Sync()
		d.Close()
	}
	return retired, nil
}

// WithoutSecrets returns env without the variables whose names begin with
// DUMP_, one of which may hold a passphrase: what child processes get. Package
// postgres does the same with its baseEnv.
func WithoutSecrets(env []string) []string {
	out := make([]string, 0, len(env))
	for _, e := range env {
		if !strings.HasPrefix(e, "DUMP_") {
			out = append(out, e)
		}
	}
	return out
}
