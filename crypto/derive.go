package crypto

import (
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha256"
	"fmt"
	"hash"
)

// Names of the ways from a passphrase to a key, as metadata have them.
const (
	// BytesToKey is EVP_BytesToKey with one round (OpenSSL manual,
	// EVP_BytesToKey(3)), what "openssl enc" does without -pbkdf2.
	BytesToKey = "evp_bytestokey"
	// PBKDF2 is PBKDF2 with HMAC (RFC 8018), what "openssl enc -pbkdf2" does.
	PBKDF2 = "pbkdf2"
)

// DefaultIterations is the number of rounds of PBKDF2 for new backups; the
// default of "openssl enc -pbkdf2" is [OpenSSLIterations].
const (
	DefaultIterations = 600_000
	OpenSSLIterations = 10_000
	// MaxIterations bounds what a reader does for metadata it cannot trust yet.
	MaxIterations = 10_000_000
)

// Derivation is the way from a passphrase and a salt to key and IV.
type Derivation struct {
	KDF        string // BytesToKey or PBKDF2
	Digest     string // md5 or sha256
	Iterations int    // rounds; 1 for BytesToKey
}

// The derivations that have a name on the command line.
var (
	MD5    = Derivation{BytesToKey, "md5", 1}
	SHA256 = Derivation{BytesToKey, "sha256", 1}
)

// NewPBKDF2 is PBKDF2-HMAC-SHA256 with that many rounds.
func NewPBKDF2(iterations int) Derivation { return Derivation{PBKDF2, "sha256", iterations} }

// Check returns an error unless d is a derivation that this package can do
// within [MaxIterations].
func (d Derivation) Check() error {
	switch {
	case d == MD5 || d == SHA256:
		return nil
	case d.KDF == PBKDF2 && d.Digest == "sha256" && d.Iterations >= 1 && d.Iterations <= MaxIterations:
		return nil
	}
	return fmt.Errorf("unknown key derivation %s with digest %s and %d rounds", d.KDF, d.Digest, d.Iterations)
}

// Flags returns the options of "openssl enc" that stand for d.
func (d Derivation) Flags() string {
	if d.KDF == PBKDF2 {
		return fmt.Sprintf("-pbkdf2 -md %s -iter %d", d.Digest, d.Iterations)
	}
	return "-md " + d.Digest
}

// String names d as the command line does: md5, sha256, or pbkdf2 with its rounds.
func (d Derivation) String() string {
	if d.KDF == PBKDF2 {
		return fmt.Sprintf("pbkdf2 (%d rounds)", d.Iterations)
	}
	return d.Digest
}

// derive returns key and IV. A zero Derivation stands for MD5; any other that
// fails Check is a mistake of the program.
func (d Derivation) derive(p Passphrase, salt [SaltSize]byte) (key [32]byte, iv [BlockSize]byte) {
	if d == (Derivation{}) {
		d = MD5
	}
	if err := d.Check(); err != nil {
		panic(err)
	}
	var material []byte
	if d.KDF == PBKDF2 {
		var err error
		material, err = pbkdf2.Key(sha256.New, string(p.secret()), salt[:], d.Iterations, len(key)+len(iv))
		if err != nil {
			panic(err) // only for sizes and rounds that Check refuses
		}
	} else {
		newHash := md5.New
		if d.Digest == "sha256" {
			newHash = sha256.New
		}
		material = bytesToKey(newHash(), p.secret(), salt[:], len(key)+len(iv))
	}
	copy(key[:], material)
	copy(iv[:], material[len(key):])
	return key, iv
}

// bytesToKey is EVP_BytesToKey with one round: D_i = H(D_(i-1) || secret || salt),
// joined until there are n bytes.
func bytesToKey(h hash.Hash, secret, salt []byte, n int) []byte {
	var out, last []byte
	for len(out) < n {
		h.Reset()
		h.Write(last)
		h.Write(secret)
		h.Write(salt)
		last = h.Sum(nil)
		out = append(out, last...)
	}
	return out[:n]
}
