package archive

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"encdump/dump/script"
	"encdump/storage"
)

// Record is the object <backup-id>.verified-<ms>: what a restore drill found. Like
// the metadata it ends in a MAC, under a key of its own, and holds nothing secret.
type Record struct {
	Version  int    `json:"version"`
	BackupID string `json:"backup_id"`
	// MetadataMAC binds the record to the metadata, and by these to every byte.
	MetadataMAC string    `json:"metadata_mac"`
	VerifiedAt  time.Time `json:"verified_at"` // when the drill ended, in UTC
	Seconds     float64   `json:"seconds"`     // that it took
	Result      string    `json:"result"`      // passed or failed
	Tool        Tool      `json:"tool"`
	Server      string    `json:"server"` // version that it was restored into
	// What was compared with the contents of the dump, and how much of that differed.
	Databases    int           `json:"databases"`
	Tables       int           `json:"tables"`
	Rows         script.Number `json:"rows"`
	Sequences    int           `json:"sequences"`
	LargeObjects script.Number `json:"large_objects"`
	Findings     int           `json:"findings"`
}

// Results of a drill.
const (
	DrillPassed = "passed"
	DrillFailed = "failed"
)

// Passed tells whether what was restored equals what was dumped.
func (r *Record) Passed() bool { return r.Result == DrillPassed }

const (
	maxRecord = 64 << 10
	// maxRecords is how many records are looked at, from the newest on, where some are not valid.
	maxRecords = 8
)

// AddRecord writes the record of a drill beside an authenticated backup, and
// returns its name. Version, BackupID and MetadataMAC are filled in; VerifiedAt,
// cut to milliseconds, gives the name. A record that exists is an error that matches storage.ErrExists.
func (b *Backup) AddRecord(ctx context.Context, r *Record) (name string, err error) {
	if err := b.Usable(false); err != nil {
		return "", err
	}
	r.Version, r.BackupID, r.MetadataMAC = Version, b.ID.String(), b.metadataMAC
	r.VerifiedAt = r.VerifiedAt.UTC().Truncate(time.Millisecond)
	name = b.ID.String() + verifiedSuffix + strconv.FormatInt(r.VerifiedAt.UnixMilli(), 10)
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", err
	}
	text = append(bytes.TrimSuffix(text, []byte("\n}")), ",\n  "+macPrefix...)
	text = append(text, hex.EncodeToString(b.recordMAC(text))+macSuffix...)
	// A backup must not stay locked for longer because of its records: prune waits for the last lock.
	return name, b.bucket.Put(ctx, name, bytes.NewReader(text), &storage.PutOptions{IfAbsent: true, Transient: true})
}

func (b *Backup) recordMAC(covered []byte) []byte {
	salt, _ := hex.DecodeString(b.Metadata.Encryption.Salt) // checked
	mac := b.key.RecordMAC(salt)
	mac.Write(covered)
	return mac.Sum(nil)
}

// newestRecord is the one place where records are judged. It returns the newest
// that is valid, nil where none is. A record that cannot be read counts as none.
func (b *Backup) newestRecord(ctx context.Context) *Record {
	var stamps []int64
	for name := range b.objects {
		text, ok := strings.CutPrefix(name, b.ID.String()+verifiedSuffix)
		if ms, err := strconv.ParseInt(text, 10, 64); ok && err == nil && ms > 0 && ms <= mostMillis {
			stamps = append(stamps, ms)
		}
	}
	slices.Sort(stamps)
	slices.Reverse(stamps)
	for _, ms := range stamps[:min(len(stamps), maxRecords)] {
		name := b.ID.String() + verifiedSuffix + strconv.FormatInt(ms, 10)
		text, err := readObject(ctx, b.bucket, name, maxRecord)
		if err != nil {
			b.log.Info("a record of a drill cannot be read", "object", name, "err", err)
			continue
		}
		r, err := b.parseRecord(text)
		if err == nil && r.VerifiedAt.UnixMilli() != ms {
			err = errors.New("its time is not that of its name")
		}
		if errors.Is(err, errRecordMAC) {
			b.log.Warn("a record of a drill does not count", "object", name, "err", err)
			continue
		}
		if err != nil {
			b.log.Info("a record of a drill does not count", "object", name, "err", err)
			continue
		}
		return r
	}
	return nil
}

var errRecordMAC = errors.New("its MAC is wrong")

// parseRecord reads a record of the backup. Where the key is at hand, its MAC must be right.
func (b *Backup) parseRecord(text []byte) (*Record, error) {
	covered, mac, err := cutMAC(text)
	if err != nil {
		return nil, err
	}
	if b.key != nil && !hmac.Equal(b.recordMAC(covered), mac) {
		return nil, errRecordMAC
	}
	r := new(Record)
	if err := json.Unmarshal(append(slices.Clone(covered), `"}`...), r); err != nil {
		return nil, err
	}
	switch {
	case r.Version != Version:
		return nil, fmt.Errorf("its version is %d", r.Version)
	case r.BackupID != b.ID.String() || r.MetadataMAC != b.metadataMAC:
		return nil, errors.New("it is that of another backup")
	case r.Result != DrillPassed && r.Result != DrillFailed:
		return nil, fmt.Errorf("its result is %q", r.Result)
	}
	return r, nil
}
