package archive

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"encdump/crypto"
	"encdump/storage"
	"encdump/storage/storagetest"
)

// rsaPair makes a recipient and its identity.
func rsaPair(t testing.TB) (*crypto.Recipient, *crypto.Key) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, crypto.MinRSA)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	recipient, err := crypto.ReadRecipient(write("public.pem", "PUBLIC KEY", spki))
	if err != nil {
		t.Fatal(err)
	}
	identity, err := crypto.ReadIdentity(write("private.pem", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(private)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return recipient, identity
}

func signingPair(t testing.TB) (*crypto.SigningKey, *crypto.Signer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sign.pem")
	if _, err := crypto.GenerateSigningKey(path); err != nil {
		t.Fatal(err)
	}
	key, err := crypto.ReadSigningKey(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := crypto.ReadSigner(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return key, signer
}

// sealedOptions are those of a sealed backup, which has no key given.
func sealedOptions(sign *crypto.SigningKey, recipients ...*crypto.Recipient) *WriterOptions {
	return &WriterOptions{GUID: testGUID, TriggeredAt: testTime, Recipients: recipients, Sign: sign, PartSize: 500, FrameSize: 300}
}

func findTrusting(t testing.TB, b storage.Bucket, keys crypto.Keyring, signers ...*crypto.Signer) *Backup {
	t.Helper()
	c := OpenCatalog(b, keys, nil)
	c.Trust(signers)
	found, err := c.Find(t.Context(), Ref{ID: testID.String()})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestSealedOrder: the signature is there before the metadata are, and over them.
func TestSealedOrder(t *testing.T) {
	recipient, identity := rsaPair(t)
	sign, signer := signingPair(t)
	r := &recorder{Bucket: storagetest.Mem()}
	sql := noiseOf(1, 1000)
	w, err := backUp(t.Context(), bytes.NewReader(sql), sealedOptions(sign, recipient, recipient), r)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(w.Metadata.Encryption.Recipients); n != 1 {
		t.Errorf("%d recipients", n)
	}
	wantEvents(t, r.events, "new ID.incomplete", "list ID", "put ID-0", "put ID-1", "put ID-2",
		"put ID.sums", "put ID.toc", "list ID", "put ID.sig", "put ID.json", "delete ID.incomplete")
	b := findTrusting(t, r.Bucket, crypto.Keyring{testKey, identity}, signer)
	if !b.Authenticated || b.Signer != signer || b.Problem != nil {
		t.Fatalf("authenticated %v: %v", b.Authenticated, b.Problem)
	}
	if got, err := restore(t.Context(), b, nil); err != nil || !bytes.Equal(got, sql) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n, err := b.Decode(t.Context(), nil); err != nil || n != int64(len(sql)) {
		t.Errorf("decoded %d, %v", n, err)
	}
	// A signature that cannot be put leaves no backup.
	r = &recorder{Bucket: storagetest.Mem(), on: func(event string) error {
		if event == "put ID.sig" {
			return errBoom
		}
		return nil
	}}
	if _, err := backUp(t.Context(), bytes.NewReader(sql), sealedOptions(sign, recipient), r); !errors.Is(err, errBoom) {
		t.Errorf("without its signature: %v", err)
	}
	wantEmpty(t, r.Bucket)
}

// TestSealedKeys: each backup has a key of its own, which its maker does not keep.
func TestSealedKeys(t *testing.T) {
	recipient, _ := rsaPair(t)
	ids := make(map[string]bool)
	salts := make(map[string]bool)
	for range 3 {
		w, err := backUp(t.Context(), bytes.NewReader(noiseOf(1, 1000)), sealedOptions(nil, recipient), storagetest.Mem())
		if err != nil {
			t.Fatal(err)
		}
		ids[w.Metadata.Encryption.KeyID], salts[w.Metadata.Encryption.Salt] = true, true
	}
	if len(ids) != 3 || len(salts) != 3 {
		t.Errorf("keys %v", ids)
	}
	o := sealedOptions(nil, recipient)
	o.Key = testKey
	if _, err := NewWriter(t.Context(), []storage.Bucket{storagetest.Mem()}, o); err == nil {
		t.Error("sealed with a key that somebody has")
	}
}

// TestSealedReading is who reads what, and why not.
func TestSealedReading(t *testing.T) {
	recipient, identity := rsaPair(t)
	otherRecipient, stranger := rsaPair(t)
	sign, signer := signingPair(t)
	forge, forger := signingPair(t)
	sql := noiseOf(1, 1000)
	bucket := storagetest.Mem()
	if _, err := backUp(t.Context(), bytes.NewReader(sql), sealedOptions(sign, recipient, otherRecipient), bucket); err != nil {
		t.Fatal(err)
	}
	right := contents(t, bucket)
	change := func(f func(o objects)) objects {
		o := maps.Clone(right)
		f(o)
		return o
	}
	json, sig := full(".json"), full(".sig")
	sealed := findTrusting(t, bucket, nil).Metadata.Encryption.Recipients
	swap := strings.NewReplacer(sealed[0].Sealed, sealed[1].Sealed, sealed[1].Sealed, sealed[0].Sealed)
	bad := base64.StdEncoding.EncodeToString(make([]byte, 256))
	signers := []*crypto.Signer{signer}

	type outcome int
	const (
		reads    outcome = iota
		unsigned         // reads only where that is allowed
		wrongKey
		damage
		unreadable
	)
	for name, test := range map[string]struct {
		objects objects
		keys    crypto.Keyring
		signers []*crypto.Signer
		want    outcome
		signer  bool
	}{
		"recipient":                    {right, crypto.Keyring{identity}, signers, reads, true},
		"other recipient":              {right, crypto.Keyring{testKey, stranger}, signers, reads, true},
		"two signers":                  {right, crypto.Keyring{identity}, []*crypto.Signer{forger, signer}, reads, true},
		"no signer trusted":            {right, crypto.Keyring{identity}, nil, unsigned, false},
		"another signer":               {right, crypto.Keyring{identity}, []*crypto.Signer{forger}, unsigned, false},
		"no key":                       {right, nil, signers, wrongKey, true},
		"passphrase of something else": {right, testKeys, signers, wrongKey, true},
		"no signature":                 {change(func(o objects) { delete(o, sig) }), crypto.Keyring{identity}, signers, unsigned, false},
		"no signature, no key":         {change(func(o objects) { delete(o, sig) }), nil, signers, unsigned, false},
		"empty signature":              {change(func(o objects) { o[sig] = "" }), crypto.Keyring{identity}, signers, unsigned, false},
		"long signature":               {change(func(o objects) { o[sig] += "x" }), crypto.Keyring{identity}, signers, unsigned, false},
		"changed signature":            {change(func(o objects) { o[sig] = flip(o[sig], 5, 1) }), crypto.Keyring{identity}, signers, unsigned, false},
		"forged signature":             {change(func(o objects) { o[sig] = string(forge.Sign([]byte(o[json]))) }), crypto.Keyring{identity}, signers, unsigned, false},
		"signature of the end":         {change(func(o objects) { o[sig] = string(sign.Sign([]byte(o[json][1:]))) }), crypto.Keyring{identity}, signers, unsigned, false},
		"sealed for another":           {change(func(o objects) { o[json] = swap.Replace(o[json]) }), crypto.Keyring{identity}, signers, damage, false},
		"nothing sealed":               {change(func(o objects) { o[json] = strings.Replace(o[json], sealed[0].Sealed, bad, 1) }), crypto.Keyring{identity}, signers, damage, false},
		"changed metadata":             {change(func(o objects) { o[json] = strings.Replace(o[json], `"standby": false`, `"standby": true`, 1) }), crypto.Keyring{identity}, signers, damage, false},
		"changed, signed": {change(func(o objects) {
			o[json] = strings.Replace(o[json], `"standby": false`, `"standby": true`, 1)
			o[sig] = string(sign.Sign([]byte(o[json])))
		}), crypto.Keyring{identity}, signers, damage, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := findTrusting(t, test.objects.bucket(t), test.keys, test.signers...)
			if b.Authenticated != (test.want == reads) || (b.Signer != nil) != test.signer || b.Vouched() != (test.signer && test.want != damage) {
				t.Errorf("authenticated %v, signer %v: %v", b.Authenticated, b.Signer, b.Problem)
			}
			got, err := restore(t.Context(), b, nil)
			if (err == nil) != (test.want == reads) || err == nil && !bytes.Equal(got, sql) || err != nil && len(got) > 0 {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			var noSignature *UnsignedError
			var wrong *WrongKeyError
			if errors.As(err, &noSignature) != (test.want == unsigned) || errors.As(err, &wrong) != (test.want == wrongKey) ||
				(damagedObject(err) == "ID.json") != (test.want == damage) {
				t.Errorf("it is %v", err)
			}
			got, err = restore(t.Context(), b, &ReadOptions{AllowUnauthenticated: true})
			if readable := test.want == reads || test.want == unsigned && test.keys != nil; (err == nil) != readable || readable && !bytes.Equal(got, sql) || !readable && len(got) > 0 {
				t.Errorf("when that is allowed: %d bytes, %v", len(got), err)
			}
		})
	}

	// A signature that cannot be read is no proof of anything.
	faulty := storagetest.NewFaulty(bucket).Add(storagetest.Fault{Op: storagetest.Open, Key: sig, Err: errBoom})
	if b := findTrusting(t, faulty, crypto.Keyring{identity}, signer); b.Status != Unreadable || !errors.Is(b.Problem, errBoom) || b.Vouched() {
		t.Errorf("%s: %v", b.Status, b.Problem)
	}
}
