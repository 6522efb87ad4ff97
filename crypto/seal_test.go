package crypto

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// testRSA is a private key in PEM, slow to make.
var testRSA = sync.OnceValue(func() []byte {
	k, err := rsa.GenerateKey(rand.Reader, MinRSA)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})
})

// pemFiles writes the private key and its public one to a new folder.
func pemFiles(t testing.TB) (dir, private, public string) {
	t.Helper()
	dir = t.TempDir()
	private, public = filepath.Join(dir, "private.pem"), filepath.Join(dir, "public.pem")
	if err := os.WriteFile(private, testRSA(), 0o600); err != nil {
		t.Fatal(err)
	}
	openssl(t, nil, "pkey", "-in", private, "-pubout", "-out", public)
	return dir, private, public
}

func neverAsk(string) (Passphrase, error) { return Passphrase{}, errors.New("asked for a passphrase") }

func answer(s string) AskPassphrase {
	return func(string) (Passphrase, error) { return NewPassphrase([]byte(s)), nil }
}

// TestSeal: openssl opens what is sealed here, and the other way round.
func TestSeal(t *testing.T) {
	dir, private, public := pemFiles(t)
	r, err := ReadRecipient(public)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := ReadIdentity(private, neverAsk)
	if err != nil {
		t.Fatal(err)
	}
	if identity.RecipientID() != r.ID || identity.ID() != r.ID[:16] || !identity.Passphrase().IsZero() {
		t.Errorf("recipient %s, identity %s", r.ID, identity.RecipientID())
	}
	if ring := (Keyring{identity, NewSealedKey()}); len(ring.Passphrases()) != 1 || ring.Find(identity.ID()) != nil {
		t.Error("an identity passes for a passphrase")
	}
	k := NewSealedKey()
	if other := NewSealedKey(); other.ID() == k.ID() {
		t.Error("two sealed keys are the same")
	}
	if s := k.Passphrase().Reveal(); len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" || k.Passphrase().CheckNew(MD5) != nil {
		t.Errorf("passphrase %s", s)
	}
	sealed, err := r.Seal(k)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := identity.Unseal(sealed)
	if err != nil || opened.ID() != k.ID() {
		t.Fatalf("opened as %v, %v", opened, err)
	}
	if got := NewKey(k.Passphrase(), "").AsSealed(); got.ID() != k.ID() {
		t.Error("a passphrase that was recovered by hand gives another key")
	}

	oaep := []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"}
	file, out := filepath.Join(dir, "sealed"), filepath.Join(dir, "out")
	if err := os.WriteFile(file, sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	openssl(t, nil, append([]string{"pkeyutl", "-decrypt", "-inkey", private, "-in", file, "-out", out}, oaep...)...)
	if got, _ := os.ReadFile(out); string(got) != k.Passphrase().Reveal() {
		t.Error("openssl opens another passphrase")
	}
	openssl(t, nil, append([]string{"pkeyutl", "-encrypt", "-pubin", "-inkey", public, "-in", out, "-out", file}, oaep...)...)
	if sealed, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	if opened, err = identity.Unseal(sealed); err != nil || opened.ID() != k.ID() {
		t.Errorf("what openssl sealed is opened as %v, %v", opened, err)
	}
	for _, bad := range [][]byte{nil, sealed[1:], append([]byte{0}, sealed...), append([]byte{sealed[0] ^ 1}, sealed[1:]...), bytes.Repeat([]byte{0xff}, len(sealed))} {
		if opened, err := identity.Unseal(bad); err == nil {
			t.Errorf("damaged, it is opened as %v", opened)
		}
	}

	// Neither prints.
	secret := k.Passphrase().Reveal()
	text := fmt.Sprintf("%v %+v %#v %v %+v %#v", identity, *identity, Keyring{identity}, opened, *opened, []any{*opened, opened})
	if strings.Contains(text, secret) || strings.Contains(text, "D:") {
		t.Errorf("prints %s", text)
	}
}

// TestEncryptedPEM reads what openssl encrypts.
func TestEncryptedPEM(t *testing.T) {
	dir, private, _ := pemFiles(t)
	want, err := ReadIdentity(private, neverAsk)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "encrypted.pem")
	pkcs8 := func(args ...string) []string {
		return append([]string{"pkcs8", "-topk8", "-in", private, "-passout", "pass:geheim", "-out", file}, args...)
	}
	for name, test := range map[string]struct {
		args []string
		want string // in the error
	}{
		"default":  {pkcs8(), ""},
		"aes-128":  {pkcs8("-v2", "aes-128-cbc", "-iter", "3"), ""},
		"aes-192":  {pkcs8("-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA384", "-iter", "3"), ""},
		"sha1":     {pkcs8("-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA1", "-iter", "3"), ""},
		"sha512":   {pkcs8("-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA512", "-iter", "3"), ""},
		"legacy":   {[]string{"rsa", "-aes128", "-traditional", "-in", private, "-passout", "pass:geheim", "-out", file}, ""},
		"genpkey":  {[]string{"pkey", "-aes256", "-in", private, "-passout", "pass:geheim", "-out", file}, ""},
		"des3":     {pkcs8("-v2", "des3"), "openssl pkcs8 -topk8"},
		"scrypt":   {pkcs8("-scrypt"), "openssl pkcs8 -topk8"},
		"pbe-sha1": {pkcs8("-v1", "PBE-SHA1-3DES"), "openssl pkcs8 -topk8"},
	} {
		os.Remove(file)
		openssl(t, nil, test.args...)
		got, err := ReadIdentity(file, answer("geheim"))
		switch {
		case test.want != "":
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		case err != nil:
			t.Errorf("%s: %v", name, err)
			continue
		case got.RecipientID() != want.RecipientID():
			t.Errorf("%s: another key", name)
		}
		for _, wrong := range []string{"", "Geheim", "geheim "} {
			if _, err := ReadIdentity(file, answer(wrong)); !errors.Is(err, ErrPEMPassphrase) {
				t.Errorf("%s with passphrase %q: %v", name, wrong, err)
			}
		}
		if _, err := ReadIdentity(file, neverAsk); err == nil || !strings.Contains(err.Error(), "asked") {
			t.Errorf("%s without an answer: %v", name, err)
		}
	}
}

// TestPEMFiles: a file must hold one key, of the right kind.
func TestPEMFiles(t *testing.T) {
	dir, private, public := pemFiles(t)
	sign := filepath.Join(dir, "sign.pem")
	if _, err := GenerateSigningKey(sign); err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	readers := map[string]func(path string) error{
		"recipient": func(p string) error { _, err := ReadRecipient(p); return err },
		"identity":  func(p string) error { _, err := ReadIdentity(p, neverAsk); return err },
		"signer":    func(p string) error { _, err := ReadSigner(p); return err },
		"sign key":  func(p string) error { _, err := ReadSigningKey(p, neverAsk); return err },
	}
	for name, test := range map[string]struct {
		text string
		ok   string // who takes it
	}{
		"public":             {read(public), "recipient"},
		"private":            {read(private), "identity"},
		"both":               {read(private) + read(public), "identity"},
		"text around":        {"Subject: x\n" + read(public) + "\nrest\n", "recipient"},
		"two public":         {read(public) + read(sign+".pub"), ""},
		"two private":        {read(private) + read(sign), ""},
		"signer":             {read(sign + ".pub"), "signer"},
		"signing key":        {read(sign), "sign key"},
		"nothing":            {"", ""},
		"no PEM":             {"correct horse battery staple\n", ""},
		"something else":     {"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", ""},
		"empty public key":   {"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", ""},
		"empty certificate":  {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ""},
		"empty private key":  {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ""},
		"unknown private":    {"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", ""},
		"beyond the maximum": {strings.Repeat("x\n", maxPEM/2) + read(public), ""},
	} {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		for who, read := range readers {
			err := read(path)
			if (err == nil) != (who == test.ok) {
				t.Errorf("%s as %s: %v", name, who, err)
			}
			if err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("%s as %s: the error does not name the file: %v", name, who, err)
			}
		}
	}
}

// TestSign: a signature is right for its message and key only.
func TestSign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sign.pem")
	made, err := GenerateSigningKey(path)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ReadSigningKey(path, neverAsk)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ReadSigner(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if made.ID != key.ID || key.ID != signer.ID {
		t.Errorf("IDs %s, %s, %s", made.ID, key.ID, signer.ID)
	}
	sig := key.Sign([]byte("message"))
	if len(sig) != SignatureSize || !signer.Verify([]byte("message"), sig) {
		t.Error("its own signature is wrong")
	}
	for _, bad := range [][]byte{nil, sig[1:], append(sig[:len(sig):len(sig)], 0), append([]byte{sig[0] ^ 1}, sig[1:]...)} {
		if signer.Verify([]byte("message"), bad) {
			t.Errorf("%x is taken", bad)
		}
	}
	if signer.Verify([]byte("Message"), sig) {
		t.Error("it is taken for another message")
	}
	if text := fmt.Sprintf("%v %+v %#v", key, *key, []any{*key}); strings.Contains(text, "[]byte") || strings.Contains(text, "ed25519") {
		t.Errorf("prints %s", text)
	}
	// Nothing is written over, and nothing half stays.
	os.Remove(path)
	if _, err := GenerateSigningKey(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a public key: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a private key without its public one stays")
	}
}

// TestRotateKeyFile: the old key is never lost, and the file is always one of the two.
func TestRotateKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if err := WriteKeyFile(filepath.Join(dir, "real"), Generate()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", path); err != nil {
		t.Fatal(err)
	}
	old, err := ReadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// What an earlier run that was cut off left is taken, something else is not written over.
	retired := path + "." + old.ID()
	if err := os.WriteFile(retired, []byte("another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateKeyFile(path, old); !errors.Is(err, os.ErrExist) {
		t.Fatalf("over another file: %v", err)
	}
	if k, _ := ReadKeyFile(path); k == nil || k.Passphrase().Reveal() != old.Passphrase().Reveal() {
		t.Fatal("the failure changed the key")
	}
	os.Remove(retired)
	if err := os.WriteFile(filepath.Join(dir, "real.new"), []byte("left behind\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteKeyFile(retired, old.Passphrase()); err != nil {
		t.Fatal(err)
	}
	got, err := RotateKeyFile(path, old)
	if err != nil || got != retired {
		t.Fatalf("%s, %v", got, err)
	}
	k, err := ReadKeyFile(path)
	if err != nil || k.Passphrase().Reveal() == old.Passphrase().Reveal() {
		t.Errorf("not rotated: %v", err)
	}
	if k, err = ReadKeyFile(retired); err != nil || k.Passphrase().Reveal() != old.Passphrase().Reveal() {
		t.Errorf("the old key is lost: %v", err)
	}
	if target, err := os.Readlink(path); err != nil || target != "real" {
		t.Errorf("the link is gone: %v", err)
	}
	if all, _ := os.ReadDir(dir); len(all) != 3 {
		t.Errorf("files %v", all)
	}
}

// FuzzPrivateKey gives the reader of encrypted private keys what only looks like one.
func FuzzPrivateKey(f *testing.F) {
	dir, private, _ := pemFiles(f)
	for _, args := range [][]string{{"-v2", "aes-128-cbc", "-iter", "1"}, {"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA1", "-iter", "2"}, {"-scrypt"}, {"-v1", "PBE-SHA1-3DES"}, {"-nocrypt"}} {
		file := filepath.Join(dir, "seed.pem")
		openssl(f, nil, append([]string{"pkcs8", "-topk8", "-in", private, "-passout", "pass:x", "-out", file}, args...)...)
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		b, _ := pem.Decode(text)
		f.Add(b.Bytes)
		f.Add(b.Bytes[:len(b.Bytes)-1])
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		e, err := parsePBES2(der)
		if err != nil {
			return
		}
		if e.iterations < 1 || e.iterations > MaxIterations || len(e.data)%BlockSize != 0 || len(e.iv) != BlockSize {
			t.Fatalf("taken: %+v", e)
		}
		if e.iterations > 1000 {
			return // slow on purpose
		}
		plain, err := e.decrypt(NewPassphrase([]byte("x")))
		if (err != nil) != errors.Is(err, ErrPEMPassphrase) || len(plain) > len(e.data) {
			t.Fatalf("%d bytes of %d, %v", len(plain), len(e.data), err)
		}
		if _, err := parsePrivate(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}, NewPassphrase([]byte("x"))); err != nil && len(plain) == 0 {
			return
		}
	})
}
