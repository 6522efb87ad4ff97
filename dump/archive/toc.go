package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"

	"encdump/crypto"
	"encdump/dump/script"
)

// maxTOC bounds what a reader inflates of a toc: some 40 million frames.
const maxTOC = 1 << 30

// TOC is the object <backup-id>.toc: the index of the stored stream. It is
// gzipped and encrypted like the data, with a salt of its own.
type TOC struct {
	Version  int    `json:"version"`
	BackupID string `json:"backup_id"`
	// Settings that the dump was made with, on which the text of values depends.
	Settings map[string]string `json:"settings,omitempty"`
	// Frames in order: the plain and the compressed size of each in bytes.
	Frames [][2]int `json:"frames"`
	// Contents of the dump; readers do without where it is missing.
	Contents *script.Contents `json:"contents,omitempty"`
	// Outline of the dump; left out where it is large, as with data in INSERTs.
	Outline script.Outline `json:"outline,omitempty"`
}

// maxOutline bounds the text of an outline in bytes. Some 10,000 tables fit.
const maxOutline = 16 << 20

func (t *TOC) encode(p crypto.Passphrase, d crypto.Derivation) ([]byte, error) {
	var buf bytes.Buffer
	enc, err := crypto.NewWriter(&buf, p, &crypto.Options{Derivation: d})
	if err != nil {
		return nil, err
	}
	zip := gzip.NewWriter(enc)
	if err := json.NewEncoder(zip).Encode(t); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// parseTOC reads the toc of the backup id. The caller has checked its digest.
func parseTOC(id ID, b []byte, p crypto.Passphrase, d crypto.Derivation) (*TOC, error) {
	object := id.String() + tocSuffix
	fail := func(err error) (*TOC, error) {
		return nil, &DamageError{Object: object, Reason: "malformed", Err: err}
	}
	dec, err := crypto.NewReader(bytes.NewReader(b), p, &crypto.Options{Derivation: d})
	if err != nil {
		return fail(err)
	}
	zip, err := gzip.NewReader(dec)
	if err != nil {
		return fail(err)
	}
	text, err := io.ReadAll(io.LimitReader(zip, maxTOC+1))
	if err != nil {
		return fail(err)
	}
	if len(text) > maxTOC {
		return fail(fmt.Errorf("larger than %d bytes", maxTOC))
	}
	t := new(TOC)
	if err := json.Unmarshal(text, t); err != nil {
		return fail(err)
	}
	if t.Version != Version {
		return fail(fmt.Errorf("version is %d", t.Version))
	}
	if t.BackupID != id.String() {
		return fail(fmt.Errorf("it is that of backup %q", t.BackupID))
	}
	for _, f := range t.Frames {
		if f[0] < 0 || f[1] < frameHeader+frameTrailer || f[0] > maxFrame || f[1] > maxFrame {
			return fail(errors.New("a frame has an impossible size"))
		}
	}
	return t, nil
}
