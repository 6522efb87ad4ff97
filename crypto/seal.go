package crypto

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
)

// MinRSA and MaxRSA are the sizes in bits of the smallest and the largest RSA key that
// backups are sealed to.
const (
	MinRSA = 2048
	MaxRSA = 16384
)

// Recipient is a public key that backups are sealed to.
type Recipient struct {
	ID     string // SHA-256 of the SubjectPublicKeyInfo, 64 hex digits
	Source string // path

	key *rsa.PublicKey
}

// ReadRecipient reads an RSA public key, or a certificate of one, from a PEM file.
func ReadRecipient(path string) (*Recipient, error) {
	public, err := readPublic(path)
	if err != nil {
		return nil, err
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: backups are sealed to RSA keys, this is another kind", path)
	}
	if n := key.N.BitLen(); n < MinRSA || n > MaxRSA {
		return nil, fmt.Errorf("%s: an RSA key of %d bits; backups are sealed to keys of %d to %d", path, n, MinRSA, MaxRSA)
	}
	id, err := fingerprint(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Recipient{id, path, key}, nil
}

// Seal encrypts the passphrase of k, RSA-OAEP with SHA-256, so that only the
// holder of the recipient's private key reads it.
func (r *Recipient) Seal(k *Key) ([]byte, error) {
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, r.key, k.pass.secret(), nil)
}

// NewSealedKey makes the key of one sealed backup: a passphrase of 256 random
// bits, as 64 hex digits.
func NewSealedKey() *Key {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return sealedKey(NewPassphrase([]byte(hex.EncodeToString(b[:]))), "sealed")
}

// sealedKey is the key of a passphrase that is random in all its bits, so that
// nothing is gained by a slow derivation.
func sealedKey(p Passphrase, source string) *Key {
	return &Key{Source: source, pass: p, master: sync.OnceValue(func() []byte {
		m, err := hkdf.Key(sha256.New, p.secret(), []byte("dump v1"), "sealed master", sha256.Size)
		if err != nil {
			panic(err) // only for sizes that RFC 5869 forbids
		}
		return m
	})}
}

// AsSealed returns the key of a sealed backup whose passphrase is that of k: as
// one has it who recovered it by hand.
func (k *Key) AsSealed() *Key { return sealedKey(k.pass, k.Source) }

// ReadIdentity reads the RSA private key of a recipient from a PEM file. The
// key that it returns only opens sealed backups; see [Key.Unseal].
func ReadIdentity(path string, ask AskPassphrase) (*Key, error) {
	private, err := readPrivate(path, ask)
	if err != nil {
		return nil, err
	}
	key, ok := private.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: backups are sealed to RSA keys, this is another kind", path)
	}
	id, err := fingerprint(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Key{Source: path, recipient: id, unseal: func(sealed []byte) ([]byte, error) {
		return rsa.DecryptOAEP(sha256.New(), nil, key, sealed, nil)
	}}, nil
}

// RecipientID returns the ID of the recipient whose private key k is; empty where k is a passphrase.
func (k *Key) RecipientID() string { return k.recipient }

// Unseal opens what [Recipient.Seal] made for this private key.
func (k *Key) Unseal(sealed []byte) (*Key, error) {
	p, err := k.unseal(sealed)
	if err != nil || len(p) == 0 {
		return nil, errors.New("the sealed passphrase cannot be opened by the private key that it names")
	}
	return sealedKey(NewPassphrase(p), k.Source), nil
}

// Passphrases returns the keys that are passphrases, and not private keys.
func (r Keyring) Passphrases() Keyring {
	var out Keyring
	for _, k := range r {
		if k.recipient == "" {
			out = append(out, k)
		}
	}
	return out
}

// SignatureSize is the size of a signature in bytes.
const SignatureSize = ed25519.SignatureSize

// Signer is a public key whose signatures are trusted.
type Signer struct {
	ID     string // as [Recipient.ID]
	Source string

	key ed25519.PublicKey
}

// ReadSigner reads an Ed25519 public key, or a certificate of one, from a PEM file.
func ReadSigner(path string) (*Signer, error) {
	public, err := readPublic(path)
	if err != nil {
		return nil, err
	}
	key, ok := public.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: signatures are made with Ed25519 keys, this is another kind", path)
	}
	id, err := fingerprint(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Signer{id, path, key}, nil
}

// Verify tells whether the signature of message is right and by s.
func (s *Signer) Verify(message, signature []byte) bool {
	return ed25519.Verify(s.key, message, signature)
}

// SigningKey is a private key that signs. It does not print.
type SigningKey struct {
	ID     string // of its [Signer]
	Source string

	sign func(message []byte) []byte
}

// Format prints where k came from.
func (k SigningKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, "signing key from "+k.Source) }

// ReadSigningKey reads an Ed25519 private key from a PEM file.
func ReadSigningKey(path string, ask AskPassphrase) (*SigningKey, error) {
	private, err := readPrivate(path, ask)
	if err != nil {
		return nil, err
	}
	key, ok := private.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: signatures are made with Ed25519 keys, this is another kind; dump key generate --signing makes one", path)
	}
	id, err := fingerprint(key.Public())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &SigningKey{id, path, func(message []byte) []byte { return ed25519.Sign(key, message) }}, nil
}

// Sign returns the Ed25519 signature of message (RFC 8032), [SignatureSize] bytes.
func (k *SigningKey) Sign(message []byte) []byte { return k.sign(message) }

// GenerateSigningKey makes an Ed25519 key. It writes the private one to path as
// WriteKeyFile does, and the public one to path.pub, mode 0644; neither over an existing file.
func GenerateSigningKey(path string) (*Signer, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	id, err := fingerprint(public)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path + ".pub"); err == nil {
		return nil, &os.PathError{Op: "create", Path: path + ".pub", Err: os.ErrExist}
	}
	if err := writeNew(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, err
	}
	if err := writeNew(path+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o644); err != nil {
		os.Remove(path) // it has signed nothing yet
		return nil, err
	}
	return &Signer{id, path, public}, nil
}
