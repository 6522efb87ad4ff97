// Package archive is the format of a backup: names, metadata, frames, parts
// and index, a writer and a reader of them, and the catalog of what a bucket holds.
package archive

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// ID names a backup: <guid>-<timestamp>. The text of the timestamp is kept,
// since objects are named by it; order goes by [ID.Time].
type ID struct {
	GUID  string // UUID in lower case
	Stamp string // Unix time in decimal, milliseconds or, in foreign backups, seconds
}

const (
	uuidLength = 36
	// Stamps below this are seconds, from it on milliseconds: as milliseconds it
	// is the year 1973, as seconds the year 5138.
	leastMillis = 100_000_000_000
	// The last millisecond of the year 9999, beyond which RFC 3339 has no dates.
	mostMillis = 253_402_300_799_999
)

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// ValidGUID tells whether s is a UUID in lower case.
func ValidGUID(s string) bool { return uuidPattern.MatchString(s) }

// NewID returns the ID of a backup of guid made at t, which is cut to milliseconds.
func NewID(guid string, t time.Time) ID {
	return ID{guid, strconv.FormatInt(t.UnixMilli(), 10)}
}

// ParseID reads <guid>-<timestamp>.
func ParseID(s string) (ID, error) {
	id, rest, ok := cutID(s)
	if !ok || rest != "" {
		return ID{}, fmt.Errorf("%q is not a backup ID: it should be <guid>-<timestamp>", s)
	}
	return id, nil
}

// cutID splits an object's name into the ID that it begins with and the rest.
func cutID(s string) (id ID, rest string, ok bool) {
	if len(s) < uuidLength+2 || s[uuidLength] != '-' || !ValidGUID(s[:uuidLength]) {
		return ID{}, "", false
	}
	stamp := s[uuidLength+1:]
	if n := strings.IndexFunc(stamp, func(r rune) bool { return r < '0' || r > '9' }); n >= 0 {
		stamp, rest = stamp[:n], stamp[n:]
	}
	n, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || n > mostMillis || (stamp[0] == '0' && stamp != "0") {
		return ID{}, "", false
	}
	return ID{s[:uuidLength], stamp}, rest, true
}

// ObjectID returns the ID of the backup that an object of that name belongs to.
func ObjectID(name string) (ID, bool) {
	id, _, ok := cutID(name)
	return id, ok
}

// String returns <guid>-<timestamp>.
func (id ID) String() string { return id.GUID + "-" + id.Stamp }

// IsZero tells whether id is no ID at all.
func (id ID) IsZero() bool { return id == ID{} }

// Time returns the instant of the timestamp, in UTC.
func (id ID) Time() time.Time {
	n, _ := strconv.ParseInt(id.Stamp, 10, 64) // a valid ID holds a number
	if n < leastMillis {
		n *= 1000
	}
	return time.UnixMilli(n).UTC()
}

// Compare orders IDs by instant, then by name.
func (id ID) Compare(other ID) int {
	if c := id.Time().Compare(other.Time()); c != 0 {
		return c
	}
	return strings.Compare(id.String(), other.String())
}

// Endings of the objects of a backup, after its ID.
const (
	metadataSuffix   = ".json"
	tocSuffix        = ".toc"
	sumsSuffix       = ".sums"
	signatureSuffix  = ".sig"
	incompleteSuffix = ".incomplete"
	verifiedSuffix   = ".verified-"
)

// partIndex returns the index of a part from what stands after the ID in its
// name. Leading zeros, as other tools write them, are taken.
func partIndex(rest string) (int, bool) {
	digits, ok := strings.CutPrefix(rest, "-")
	if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil
}
