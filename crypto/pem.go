package crypto

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
)

// maxPEM bounds what is read of a PEM file.
const maxPEM = 1 << 20

// ErrPEMPassphrase says that the passphrase of an encrypted PEM file is wrong.
var ErrPEMPassphrase = errors.New("wrong passphrase, or damaged")

// AskPassphrase returns the passphrase of an encrypted PEM file. It is called
// only for a file that is encrypted.
type AskPassphrase func(path string) (Passphrase, error)

// readPEM returns the blocks of a file.
func readPEM(path string) ([]*pem.Block, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err != nil {
		return nil, err
	}
	var blocks []*pem.Block
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		blocks = append(blocks, b)
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%s: not a PEM file: it has no line -----BEGIN …-----", path)
	}
	return blocks, nil
}

func isPrivate(b *pem.Block) bool { return strings.HasSuffix(b.Type, "PRIVATE KEY") }

// readPublic returns the one public key of a PEM file: of a PUBLIC KEY, an RSA
// PUBLIC KEY or a CERTIFICATE, of which neither date nor issuer are looked at.
func readPublic(path string) (any, error) {
	blocks, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	var found []any
	for _, b := range blocks {
		var key any
		var err error
		switch {
		case isPrivate(b):
			return nil, fmt.Errorf("%s holds a private key, which does not belong here: openssl pkey -in FILE -pubout writes the public one", path)
		case b.Type == "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(b.Bytes)
		case b.Type == "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(b.Bytes)
		case b.Type == "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(b.Bytes); err == nil {
				key = c.PublicKey
			}
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		found = append(found, key)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("%s holds no public key and no certificate", path)
	}
	// A certificate often comes with its issuers, who must not become recipients.
	return nil, fmt.Errorf("%s holds %d public keys or certificates; one to a file", path, len(found))
}

// readPrivate returns the one private key of a PEM file.
func readPrivate(path string, ask AskPassphrase) (any, error) {
	blocks, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	var private *pem.Block
	for _, b := range blocks {
		if isPrivate(b) {
			if private != nil {
				return nil, fmt.Errorf("%s holds several private keys; one to a file", path)
			}
			private = b
		}
	}
	if private == nil {
		return nil, fmt.Errorf("%s holds no private key", path)
	}
	var p Passphrase
	//lint:ignore SA1019 weak, but such files exist, and reading them is no weaker
	if legacy := x509.IsEncryptedPEMBlock(private); legacy || private.Type == "ENCRYPTED PRIVATE KEY" {
		if p, err = ask(path); err != nil {
			return nil, err
		}
	}
	key, err := parsePrivate(private, p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// parsePrivate reads a block; p is the passphrase of one that is encrypted.
func parsePrivate(b *pem.Block, p Passphrase) (any, error) {
	der := b.Bytes
	//lint:ignore SA1019 see above
	legacy := x509.IsEncryptedPEMBlock(b)
	var err error
	switch {
	case legacy:
		//lint:ignore SA1019 see above
		if der, err = x509.DecryptPEMBlock(b, p.secret()); err != nil {
			return nil, ErrPEMPassphrase
		}
	case b.Type == "ENCRYPTED PRIVATE KEY":
		e, err := parsePBES2(der)
		if err != nil {
			return nil, err
		}
		if der, err = e.decrypt(p); err != nil {
			return nil, err
		}
	}
	var key any
	switch b.Type {
	case "PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(der)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(der)
	default:
		return nil, fmt.Errorf("a %s is not known; openssl pkey -in FILE -out NEW writes one that is", b.Type)
	}
	if err != nil && !bytes.Equal(der, b.Bytes) {
		return nil, ErrPEMPassphrase // padding that is right by chance
	}
	return key, err
}

// The structures of RFC 5958 and RFC 8018 (PBES2), as openssl writes them.
type encryptedPrivateKeyInfo struct {
	Algorithm struct {
		ID     asn1.ObjectIdentifier
		Params struct{ KDF, Cipher pkix.AlgorithmIdentifier }
	}
	Data []byte
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

const (
	oidPBES2  = "1.2.840.113549.1.5.13"
	oidPBKDF2 = "1.2.840.113549.1.5.12"
)

// Of HMACs and of AES-CBC with its size of key, by object identifier.
var (
	prfs = map[string]func() hash.Hash{
		"":                    sha1.New,
		"1.2.840.113549.2.7":  sha1.New,
		"1.2.840.113549.2.9":  sha256.New,
		"1.2.840.113549.2.10": sha512.New384,
		"1.2.840.113549.2.11": sha512.New,
	}
	aesSizes = map[string]int{
		"2.16.840.1.101.3.4.1.2":  16,
		"2.16.840.1.101.3.4.1.22": 24,
		"2.16.840.1.101.3.4.1.42": 32,
	}
	errPKCS8 = errors.New("encrypted in a way that is not known; openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW writes one that is")
)

// pbes2 is what it takes to decrypt an EncryptedPrivateKeyInfo.
type pbes2 struct {
	salt, iv, data   []byte
	iterations, size int
	prf              func() hash.Hash
}

// parsePBES2 reads an EncryptedPrivateKeyInfo: PBES2 with PBKDF2 and AES in CBC
// mode, what "openssl pkcs8" and "openssl genpkey -aes256" write.
func parsePBES2(der []byte) (*pbes2, error) {
	var info encryptedPrivateKeyInfo
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 {
		return nil, errPKCS8
	}
	kdf, enc := info.Algorithm.Params.KDF, info.Algorithm.Params.Cipher
	size, known := aesSizes[enc.Algorithm.String()]
	if !known || info.Algorithm.ID.String() != oidPBES2 || kdf.Algorithm.String() != oidPBKDF2 {
		return nil, errPKCS8
	}
	var params pbkdf2Params
	if rest, err := asn1.Unmarshal(kdf.Parameters.FullBytes, &params); err != nil || len(rest) > 0 {
		return nil, errPKCS8
	}
	var iv []byte
	if rest, err := asn1.Unmarshal(enc.Parameters.FullBytes, &iv); err != nil || len(rest) > 0 {
		return nil, errPKCS8
	}
	prf, known := prfs[params.PRF.Algorithm.String()]
	switch {
	case !known || len(iv) != aes.BlockSize || params.KeyLength != 0 && params.KeyLength != size:
		return nil, errPKCS8
	case params.Iterations < 1 || params.Iterations > MaxIterations:
		return nil, fmt.Errorf("encrypted with %d rounds, which are not within 1 and %d", params.Iterations, MaxIterations)
	case len(info.Data) == 0 || len(info.Data)%aes.BlockSize != 0:
		return nil, errors.New("cut short")
	}
	return &pbes2{params.Salt, iv, info.Data, params.Iterations, size, prf}, nil
}

func (e *pbes2) decrypt(p Passphrase) ([]byte, error) {
	key, err := pbkdf2.Key(e.prf, string(p.secret()), e.salt, e.iterations, e.size)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(e.data))
	cipher.NewCBCDecrypter(block, e.iv).CryptBlocks(plain, e.data)
	if plain, err = Unpad(plain); err != nil {
		return nil, ErrPEMPassphrase
	}
	return plain, nil
}

// fingerprint names a public key: the SHA-256 of its SubjectPublicKeyInfo in hex,
// what "openssl pkey -pubin -outform DER | sha256sum" prints.
func fingerprint(public any) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:]), nil
}
