package archive

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"encdump/crypto"
)

// Version of the format.
const Version = 1

// Bounds that a reader keeps for metadata which it cannot trust yet.
const (
	maxMetadata = 64 << 20
	maxIndex    = 1 << 30           // of .sums, for a stream of 128 TiB, and of .toc
	maxSealed   = crypto.MaxRSA / 8 // bytes
	// MaxRecipients is how many a backup may be sealed to.
	MaxRecipients = 100
	// maxParts keeps the metadata of the largest backup well within maxMetadata.
	maxParts = 200_000
)

// Kinds of backups.
const (
	KindCluster  = "cluster"  // all of a cluster
	KindDatabase = "database" // all of one database
	KindPartial  = "partial"  // something was left out, or may have been
)

// Metadata is the object <backup-id>.json. It holds nothing secret.
type Metadata struct {
	Version     int         `json:"version"`
	BackupID    string      `json:"backup_id"`
	BackupGUID  string      `json:"backup_guid"`
	Name        string      `json:"name,omitempty"`
	Previous    string      `json:"previous,omitempty"` // the ID of the backup before this one
	Replaces    string      `json:"replaces,omitempty"` // the ID that a re-encrypted backup stands for
	TriggeredAt time.Time   `json:"triggered_at"`
	StartedAt   time.Time   `json:"started_at"`
	FinishedAt  time.Time   `json:"finished_at"`
	Status      string      `json:"status"` // done
	Tool        Tool        `json:"tool"`
	Source      Source      `json:"source"`
	Compression Compression `json:"compression"`
	Encryption  Encryption  `json:"encryption"`
	Sizes       Sizes       `json:"sizes"`
	Parts       []Part      `json:"parts"`
	TOC         *Object     `json:"toc,omitempty"`
	Sums        *Sums       `json:"sums,omitempty"`
	// Recover is a shell script that writes the SQL of this backup to standard
	// output with stock tools alone.
	Recover string `json:"recover"`
}

// Tool is the program that made the backup.
type Tool struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Source is what was dumped. What is not known is left out.
type Source struct {
	Kind          string `json:"kind"`
	Host          string `json:"host,omitempty"` // as the operator named it
	Server        string `json:"server,omitempty"`
	PgDumpall     string `json:"pg_dumpall,omitempty"`
	Standby       bool   `json:"standby"`
	Databases     int    `json:"databases,omitempty"`
	DatabaseBytes int64  `json:"database_bytes,omitempty"` // their size on the server
}

// Compression of the plain stream.
type Compression struct {
	Algorithm string `json:"algorithm"` // gzip
	Level     int    `json:"level"`
	FrameSize int    `json:"frame_size"` // plain bytes of a frame, at most
}

// Encryption of the compressed stream.
type Encryption struct {
	Cipher     string `json:"cipher"` // aes-256-cbc
	KDF        string `json:"kdf"`
	Digest     string `json:"digest"`
	Iterations int    `json:"iterations"`
	Salt       string `json:"salt"` // of the stored stream, 16 hex digits
	KeyID      string `json:"key_id"`
	// Recipients of a sealed backup, whose passphrase nobody knows but they.
	Recipients []Recipient `json:"recipients,omitempty"`
}

// Recipient is to whom a backup was sealed.
type Recipient struct {
	ID     string `json:"id"`     // SHA-256 of the public key's SubjectPublicKeyInfo, in hex
	Sealed string `json:"sealed"` // the passphrase under RSA-OAEP with SHA-256, in base64
}

// Sealed tells whether the backup has a passphrase of its own, sealed to recipients.
func (e *Encryption) Sealed() bool { return len(e.Recipients) > 0 }

// RecipientIDs returns the IDs of the recipients.
func (e *Encryption) RecipientIDs() []string {
	var out []string
	for _, r := range e.Recipients {
		out = append(out, r.ID)
	}
	return out
}

// unseal returns the keys that may be that of a sealed backup: what private
// keys among the given ones open, and passphrases, which somebody may have
// recovered by hand.
func (e *Encryption) unseal(keys crypto.Keyring) (crypto.Keyring, error) {
	var out crypto.Keyring
	for _, k := range keys {
		if k.RecipientID() == "" {
			out = append(out, k.AsSealed())
			continue
		}
		for _, r := range e.Recipients {
			if r.ID != k.RecipientID() {
				continue
			}
			sealed, err := base64.StdEncoding.DecodeString(r.Sealed)
			if err != nil {
				return nil, err
			}
			opened, err := k.Unseal(sealed)
			if err != nil {
				return nil, err
			}
			out = append(out, opened)
		}
	}
	return out, nil
}

// Derivation returns the way from the passphrase to the key.
func (e *Encryption) Derivation() crypto.Derivation {
	return crypto.Derivation{KDF: e.KDF, Digest: e.Digest, Iterations: e.Iterations}
}

// Sizes of the stream in bytes at each stage.
type Sizes struct {
	Plain      int64 `json:"plain"`
	Compressed int64 `json:"compressed"`
	Stored     int64 `json:"stored"` // with header and padding; the sum of all parts
}

// Object is an object of the backup beside its parts.
type Object struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Part is a part of the stored stream.
type Part Object

// Sums is the object that holds the digest of each segment of the stored stream.
type Sums struct {
	Object
	SegmentSize int `json:"segment_size"`
}

const (
	gzipAlgorithm = "gzip"
	aesCipher     = "aes-256-cbc"
	statusDone    = "done"
)

// The end of a metadata object: what the MAC covers ends with macPrefix, the MAC
// and macSuffix follow.
const (
	macPrefix = `"mac": "`
	macSuffix = "\"\n}\n"
	macLength = 2 * sha256.Size
)

// encode returns the metadata object with its MAC.
func (m *Metadata) encode(key *crypto.Key) ([]byte, error) {
	salt, err := hex.DecodeString(m.Encryption.Salt)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false) // so that people can read the commands in it
	e.SetIndent("", "  ")
	if err := e.Encode(m); err != nil {
		return nil, err
	}
	b, ok := bytes.CutSuffix(buf.Bytes(), []byte("\n}\n"))
	if !ok {
		return nil, errors.New("metadata do not end as expected")
	}
	b = append(b, ",\n  "+macPrefix...)
	mac := key.MetadataMAC(salt)
	mac.Write(b)
	b = append(b, hex.EncodeToString(mac.Sum(nil))+macSuffix...)
	if len(b) > maxMetadata {
		return nil, fmt.Errorf("metadata of %d bytes are larger than the format allows", len(b))
	}
	return b, nil
}

// errForeignMetadata says that an object is JSON of another schema.
var errForeignMetadata = errors.New("metadata of another program")

// errNotJSON says that an object is no JSON object at all.
var errNotJSON = errors.New("not a JSON object")

// parseMetadata reads the metadata object of the backup id. With a key that
// fits, the MAC is checked first and the key returned. Without one it returns
// the metadata, which then are nobody's word, and a *WrongKeyError. Any other
// error comes without metadata: errForeignMetadata, or a *DamageError, which
// wraps errNotJSON where whose the object is cannot be seen from it.
func parseMetadata(id ID, b []byte, keys crypto.Keyring) (*Metadata, *crypto.Key, error) {
	object := id.String() + metadataSuffix
	if len(b) > maxMetadata {
		return nil, nil, damaged(object, "larger than %d bytes", maxMetadata)
	}
	version, hasMAC, err := peekVersion(b)
	switch {
	case err != nil:
		return nil, nil, &DamageError{Object: object, Reason: "malformed", Err: fmt.Errorf("%w: %w", errNotJSON, err)}
	case version == "" && !hasMAC:
		return nil, nil, errForeignMetadata
	case version == "":
		return nil, nil, damaged(object, "its version is missing")
	case version != strconv.Itoa(Version):
		return nil, nil, damaged(object, "format version %s is not one that this program knows", version)
	}

	covered, mac, err := cutMAC(b)
	if err != nil {
		return nil, nil, &DamageError{Object: object, Reason: "not authenticated", Err: err}
	}
	// From here on only the covered bytes are read, closed by an empty MAC.
	m := new(Metadata)
	if err := decodeStrict(append(covered[:len(covered):len(covered)], `"}`...), m); err != nil {
		return nil, nil, &DamageError{Object: object, Reason: "malformed", Err: err}
	}
	if err := m.check(id); err != nil {
		return nil, nil, &DamageError{Object: object, Reason: "inconsistent", Err: err}
	}
	salt, _ := hex.DecodeString(m.Encryption.Salt) // checked
	given := keys
	if m.Encryption.Sealed() {
		if keys, err = m.Encryption.unseal(keys); err != nil {
			return nil, nil, &DamageError{Object: object, Reason: "inconsistent", Err: err}
		}
	}
	for _, k := range keys.Passphrases() {
		h := k.MetadataMAC(salt)
		h.Write(covered)
		if hmac.Equal(h.Sum(nil), mac) {
			if k.ID() != m.Encryption.KeyID {
				return nil, nil, damaged(object, "its key ID is not that of the key that made it")
			}
			return m, k, nil
		}
	}
	if k := keys.Find(m.Encryption.KeyID); k != nil {
		return nil, nil, damaged(object, "changed since it was written: its MAC is wrong")
	}
	wrong := &WrongKeyError{Object: id.String(), Needed: m.Encryption.KeyID, Recipients: m.Encryption.RecipientIDs()}
	for _, k := range given {
		wrong.Given = append(wrong.Given, k.ID())
	}
	return m, nil, wrong
}

// cutMAC finds the MAC from the end of the object.
func cutMAC(b []byte) (covered, mac []byte, err error) {
	n := len(b) - macLength - len(macSuffix)
	if n < len(macPrefix) || string(b[n-len(macPrefix):n]) != macPrefix || string(b[n+macLength:]) != macSuffix {
		return nil, nil, errors.New("it does not end in a MAC")
	}
	text := b[n : n+macLength]
	mac = make([]byte, sha256.Size)
	if _, err := hex.Decode(mac, text); err != nil || !bytes.Equal(bytes.ToLower(text), text) {
		return nil, nil, errors.New("its MAC is not 64 hex digits in lower case")
	}
	return b[:n], mac, nil
}

// peekVersion tells whether an object is one of ours: it returns the text of
// the top-level member version where that is a number, and whether there is a
// member mac. Case does not count, so that nothing is taken for foreign that a
// careless reader would take for ours.
func peekVersion(b []byte) (version string, hasMAC bool, err error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(b, &top); err != nil {
		return "", false, err
	}
	for name, value := range top {
		switch strings.ToLower(name) {
		case "version":
			if len(value) > 0 && (value[0] == '-' || value[0] >= '0' && value[0] <= '9') {
				version = string(value)
			}
		case "mac":
			hasMAC = true
		}
	}
	return version, hasMAC, nil
}

// decodeStrict decodes JSON after checking what encoding/json lets pass: member
// names are in lower case and once in their object, mac is the last at the top,
// and nothing follows. Members that m does not have are allowed: a later
// program may know more.
func decodeStrict(b []byte, m *Metadata) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	last, err := checkMembers(d, 0)
	if err != nil {
		return err
	}
	if last != "mac" {
		return errors.New("mac is not the last member")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return json.Unmarshal(b, m)
}

// checkMembers reads one value and returns the last member's name where it is an object.
func checkMembers(d *json.Decoder, depth int) (last string, err error) {
	if depth > 32 {
		return "", errors.New("nested too deeply")
	}
	t, err := d.Token()
	if err != nil {
		return "", err
	}
	switch t {
	case json.Delim('{'):
		seen := make(map[string]bool)
		for d.More() {
			t, err := d.Token()
			if err != nil {
				return "", err
			}
			name := t.(string) // the decoder allows nothing else here
			if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
				return "", fmt.Errorf("member %q is not in lower case", name)
			}
			if seen[name] {
				return "", fmt.Errorf("member %q stands twice", name)
			}
			seen[name] = true
			if _, err := checkMembers(d, depth+1); err != nil {
				return "", err
			}
			last = name
		}
		_, err = d.Token()
	case json.Delim('['):
		for d.More() {
			if _, err := checkMembers(d, depth+1); err != nil {
				return "", err
			}
		}
		_, err = d.Token()
	}
	return last, err
}

// check returns an error unless m can be the metadata of the backup id and
// agrees with itself.
func (m *Metadata) check(id ID) error {
	e := &m.Encryption
	switch {
	case m.BackupID != id.String():
		return fmt.Errorf("it is that of backup %q", m.BackupID)
	case m.BackupGUID != id.GUID:
		return fmt.Errorf("backup_guid is %q", m.BackupGUID)
	case m.Status != statusDone:
		return fmt.Errorf("status is %q", m.Status)
	case m.Compression.Algorithm != gzipAlgorithm:
		return fmt.Errorf("compression %q is not known", m.Compression.Algorithm)
	case e.Cipher != aesCipher:
		return fmt.Errorf("cipher %q is not known", e.Cipher)
	case !isHex(e.Salt, crypto.SaltSize):
		return errors.New("the salt is not 16 hex digits")
	case !isHex(e.KeyID, 8):
		return errors.New("key_id is not 16 hex digits")
	case len(e.Recipients) > MaxRecipients:
		return fmt.Errorf("more than %d recipients", MaxRecipients)
	case len(m.Parts) == 0:
		return errors.New("it lists no parts")
	case len(m.Parts) > maxParts:
		return fmt.Errorf("it lists more than %d parts", maxParts)
	case m.Sizes.Plain < 0 || m.Sizes.Compressed < 0:
		return errors.New("negative size")
	}
	if err := e.Derivation().Check(); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, r := range e.Recipients {
		sealed, err := base64.StdEncoding.Strict().DecodeString(r.Sealed)
		switch {
		case !isHex(r.ID, sha256.Size):
			return errors.New("the ID of a recipient is not 64 hex digits")
		case seen[r.ID]:
			return fmt.Errorf("recipient %s stands twice", r.ID)
		case err != nil || len(sealed) == 0 || len(sealed) > maxSealed || strings.ContainsAny(r.Sealed, "\r\n"):
			return fmt.Errorf("what is sealed to recipient %s is not base64 of 1 to %d bytes", r.ID, maxSealed)
		}
		seen[r.ID] = true
	}
	var sum int64
	for i, p := range m.Parts {
		name := fmt.Sprintf("%s-%d", id, i)
		if len(m.Parts) == 1 && p.Name == id.String() {
			name = p.Name
		}
		if p.Name != name {
			return fmt.Errorf("part %d is named %q", i, p.Name)
		}
		if err := (*Object)(&p).check(name); err != nil {
			return err
		}
		if p.Size == 0 || sum > sum+p.Size {
			return fmt.Errorf("part %s has an impossible size", p.Name)
		}
		sum += p.Size
	}
	if sum != m.Sizes.Stored {
		return fmt.Errorf("the parts have %d bytes, sizes.stored is %d", sum, m.Sizes.Stored)
	}
	// The container is the header and whole blocks, one at least for the padding.
	if sum < int64(crypto.HeaderSize+crypto.BlockSize) || sum%crypto.BlockSize != 0 {
		return fmt.Errorf("a stream of %d bytes is not a whole one", sum)
	}
	if m.TOC != nil {
		if err := m.TOC.check(id.String() + tocSuffix); err != nil {
			return err
		}
	}
	if m.Sums == nil {
		return errors.New("sums are missing")
	}
	if err := m.Sums.check(id.String() + sumsSuffix); err != nil {
		return err
	}
	if m.Sums.SegmentSize != SegmentSize {
		return fmt.Errorf("segment_size is %d", m.Sums.SegmentSize)
	}
	for _, o := range []*Object{m.TOC, &m.Sums.Object} {
		if o != nil && o.Size > maxIndex {
			return fmt.Errorf("object %s claims %d bytes", o.Name, o.Size)
		}
	}
	if n := segments(sum) * sha256.Size; m.Sums.Size != n {
		return fmt.Errorf("sums have %d bytes, %d are needed", m.Sums.Size, n)
	}
	return nil
}

func (o *Object) check(name string) error {
	switch {
	case o.Name != name:
		return fmt.Errorf("object %s is named %q", name, o.Name)
	case o.Size < 0:
		return fmt.Errorf("object %s has a negative size", name)
	case !isHex(o.SHA256, sha256.Size):
		return fmt.Errorf("the digest of %s is not 64 hex digits", name)
	}
	return nil
}

// isHex tells whether s is n bytes in lower-case hex digits.
func isHex(s string, n int) bool {
	return len(s) == 2*n && strings.Trim(s, "0123456789abcdef") == ""
}

// recoverScript returns what Metadata.Recover holds.
func recoverScript(id ID, whole bool, e *Encryption) string {
	var b strings.Builder
	if e.Sealed() {
		b.WriteString("# In the folder of these objects, with the private key of a recipient in a file named private.pem.\n" +
			"# The passphrase is sealed to these, named by the SHA-256 of the public key (openssl pkey -in private.pem -pubout -outform DER | sha256sum):\n")
		var sealed []string
		for _, r := range e.Recipients {
			b.WriteString("#   " + r.ID + "\n")
			sealed = append(sealed, r.Sealed)
		}
		b.WriteString("# The first that opens goes to a file named key, to be removed when it has served.\n" +
			"umask 077\n" +
			"for sealed in " + strings.Join(sealed, " ") + "; do\n" +
			"  printf %s \"$sealed\" | openssl base64 -d -A | openssl pkeyutl -decrypt -inkey private.pem" +
			" -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -out key && break\n" +
			"done\n")
	} else {
		b.WriteString("# In the folder of these objects, with the passphrase in the first line of a file named key.\n")
	}
	b.WriteString("# This writes SQL; to replay it, append: | psql --quiet --dbname postgres\n")
	join := fmt.Sprintf("cat $(ls -1v %s-*)", id)
	if whole {
		join = "cat " + id.String()
	}
	b.WriteString(join + " | openssl enc -d -aes256 " + e.Derivation().Flags() + " -pass file:key | gunzip -c\n")
	return b.String()
}
