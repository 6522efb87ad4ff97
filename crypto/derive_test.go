package crypto

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

func TestDeriveAgainstOpenSSL(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{"x", testSecret, "Größe with spaces ", strings.Repeat("long", 255)} {
		path := keyFile(t, secret)
		for _, salt := range [][SaltSize]byte{{}, {1, 2, 3, 4, 5, 6, 7, 8}, {255, 254, 0, 0, 0, 0, 1, 255}} {
			for _, d := range derivations {
				out := string(opensslEnc(t, nil, path, d.flags, "-P", "-S", hex.EncodeToString(salt[:])))
				key, iv := d.d.derive(NewPassphrase([]byte(secret)), salt)
				want := fmt.Sprintf("salt=%X\nkey=%X\niv =%X\n", salt, key, iv)
				if out != want {
					t.Errorf("%q, %x, %s: derived\n%sopenssl has\n%s", secret, salt, d.flags, want, out)
				}
			}
		}
	}
}

func TestDerivationCheck(t *testing.T) {
	t.Parallel()
	for _, d := range []Derivation{MD5, SHA256, NewPBKDF2(1), NewPBKDF2(OpenSSLIterations), NewPBKDF2(DefaultIterations), NewPBKDF2(MaxIterations)} {
		if err := d.Check(); err != nil {
			t.Errorf("%v: %v", d, err)
		}
	}
	for _, d := range []Derivation{
		{},
		{BytesToKey, "md5", 0},
		{BytesToKey, "md5", 2},
		{BytesToKey, "sha1", 1},
		{BytesToKey, "", 1},
		NewPBKDF2(0), NewPBKDF2(-1), NewPBKDF2(MaxIterations + 1),
		{PBKDF2, "md5", 1000},
		{PBKDF2, "", 1000},
		{"scrypt", "sha256", 1},
		{"", "md5", 1},
		{"PBKDF2", "sha256", 1000},
	} {
		if err := d.Check(); err == nil {
			t.Errorf("%+v passes", d)
		}
		if d == (Derivation{}) {
			continue // stands for MD5 where a stream is made
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v derives a key", d)
				}
			}()
			NewCipher(testPass, [SaltSize]byte{}, d)
		}()
	}
}

func TestDerivationText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		d           Derivation
		name, flags string
	}{
		{MD5, "md5", "-md md5"},
		{SHA256, "sha256", "-md sha256"},
		{NewPBKDF2(12345), "pbkdf2 (12345 rounds)", "-pbkdf2 -md sha256 -iter 12345"},
	} {
		if c.d.String() != c.name || c.d.Flags() != c.flags {
			t.Errorf("%q with %q, want %q with %q", c.d.String(), c.d.Flags(), c.name, c.flags)
		}
	}
}
