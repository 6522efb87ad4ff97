package archive

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"encdump/crypto"
)

// FuzzParseID checks that an ID that is read is written as it was, and that
// names are cut where an ID ends.
func FuzzParseID(f *testing.F) {
	for _, seed := range []string{
		testID.String(), testID.String() + "-0", testID.String() + ".json", testGUID + "-1548967947", testGUID, testGUID + "-00",
		testGUID + "-253402300799999", testGUID + "-99999999999999999999", testGUID + "-1\x00", strings.ToUpper(testGUID) + "-1", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err == nil && (id.String() != s || !ValidGUID(id.GUID) || id.IsZero() || id.Compare(id) != 0 || id.Time().Year() > 9999) {
			t.Errorf("%q is read as %q at %v", s, id, id.Time())
		}
		cut, rest, ok := cutID(s)
		if ok != (cut.String()+rest == s && !cut.IsZero()) || ok && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			t.Errorf("%q is cut into %q and %q: %v", s, cut, rest, ok)
		}
		if (err == nil) != (ok && rest == "") || err == nil && id != cut {
			t.Errorf("%q is read as %q, %v, and cut into %q and %q", s, id, err, cut, rest)
		}
		if ok {
			if again, err := ParseID(cut.String()); err != nil || again != cut {
				t.Errorf("%q is cut into %q, which is read as %q, %v", s, cut, again, err)
			}
		}
		if n, ok := partIndex(rest); ok && (n < 0 || rest[0] != '-') {
			t.Errorf("%q is part %d", rest, n)
		}
	})
}

// fuzzMetadata is a small valid object. Its stream has no content: fuzzing
// wants the same one every time.
func fuzzMetadata(f *testing.F, key *crypto.Key, recipients []Recipient) string {
	m := &Metadata{
		Version: Version, BackupID: testID.String(), BackupGUID: testGUID, Status: statusDone,
		TriggeredAt: testTime.UTC(), StartedAt: testTime.UTC(), FinishedAt: testTime.UTC(),
		Compression: Compression{gzipAlgorithm, 2, 100}, Source: Source{Kind: KindCluster},
		Encryption: Encryption{
			Cipher: aesCipher, KDF: crypto.BytesToKey, Digest: "md5", Iterations: 1,
			Salt: "0001020304050607", KeyID: key.ID(), Recipients: recipients,
		},
		Sizes: Sizes{100, 120, 1016},
		Parts: []Part{{full("-0"), 500, strings.Repeat("0", 64)}, {full("-1"), 516, strings.Repeat("1", 64)}},
		TOC:   describe(full(".toc"), []byte("toc")),
		Sums:  &Sums{*describe(full(".sums"), make([]byte, 32)), SegmentSize},
	}
	m.Sizes.Stored, m.Parts[1].Size = 1024, 524
	text, err := m.encode(key)
	if err != nil {
		f.Fatal(err)
	}
	return string(text)
}

// FuzzParseMetadata checks that nothing but what the key vouches for is taken,
// and of that only what is consistent. What it is given is tried as it is, and
// with the right MAC, which an enemy could not make.
func FuzzParseMetadata(f *testing.F) {
	sealedKey := testKey.AsSealed()
	f.Add([]byte(fuzzMetadata(f, sealedKey, recipients(3))))
	text := fuzzMetadata(f, testKey, nil)
	f.Add([]byte(text))
	small := strings.NewReplacer(strings.Repeat("[", 1_000_000), strings.Repeat("[", 1000), strings.Repeat(`{"x":`, 1_000_000), strings.Repeat(`{"x":`, 1000), strings.Repeat("]", 1_000_000), "")
	for _, hostile := range hostileMetadata(text) {
		f.Add([]byte(small.Replace(hostile)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		take := func(b []byte) {
			m, key, err := parseMetadata(testID, b, testKeys)
			var damage *DamageError
			var wrong *WrongKeyError
			own := testKey
			if m != nil && m.Encryption.Sealed() {
				own = sealedKey
			}
			switch {
			case err == nil:
			case m == nil && key == nil && (errors.Is(err, errForeignMetadata) || errors.As(err, &damage)):
				return
			case m != nil && key == nil && errors.As(err, &wrong) && wrong.Needed != own.ID():
				if err := m.check(testID); err != nil {
					t.Errorf("inconsistent: %v", err)
				}
				return
			default:
				t.Fatalf("%v, %v, %v", m, key, err)
			}
			if m == nil || key.ID() != own.ID() {
				t.Fatalf("taken without a key: %v", key)
			}
			if err := m.check(testID); err != nil {
				t.Errorf("inconsistent: %v", err)
			}
			// The MAC is over all of the text, by the salt in it.
			salt, err := hex.DecodeString(m.Encryption.Salt)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.LastIndex(b, []byte(macPrefix)) + len(macPrefix)
			mac := own.MetadataMAC(salt)
			mac.Write(b[:at])
			if got := string(b[at:]); got != hex.EncodeToString(mac.Sum(nil))+macSuffix {
				t.Errorf("taken with MAC %q", got)
			}
			// What is written again is read as the same.
			again, err := m.encode(own)
			if err != nil {
				return // years beyond those that JSON can have
			}
			if n, _, err := parseMetadata(testID, again, testKeys); err != nil || !reflect.DeepEqual(n, m) {
				t.Errorf("written again it is %v, %v", n, err)
			}
		}
		take(b)
		at := bytes.LastIndex(b, []byte(`"mac"`))
		if salt := saltPattern.FindSubmatch(b); at >= 0 && salt != nil {
			take([]byte(sign(string(b[:at]), testKey, string(salt[1]))))
			take([]byte(sign(string(b[:at]), sealedKey, string(salt[1]))))
		}
	})
}

// FuzzInflate gives the decoder of frames what only looks like one.
func FuzzInflate(f *testing.F) {
	for _, plain := range []string{"", "x", strings.Repeat("hello ", 1000)} {
		b := mustFrame(f, []byte(plain))
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(b, b...))
		f.Add([]byte(flip(string(b), len(b)-1, 0xff)))
		f.Add([]byte(flip(string(b), len(b)-3, 0xff)))
		f.Add([]byte(flip(string(b), len(b)-7, 0xff)))
		f.Add([]byte(flip(string(b), frameHeader, 0xff)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameHeader+frameTrailer {
			return // split lets no such pass
		}
		n, ok := frameLength(b)
		if ok != (string(b[:4]) == "\x1f\x8b\x08\x04" && string(b[10:16]) == "\x08\x00DF\x04\x00") {
			t.Errorf("frame: %v", ok)
		}
		if !ok || n != len(b) {
			copy(b, frameStart[:]) // the rest is worth a try all the same
		}
		prefix := []byte("before")
		out, err := inflate(prefix, b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(out, prefix) || len(out) > len(prefix)+maxFrame {
			t.Fatalf("%d bytes", len(out))
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if want, err := io.ReadAll(z); err != nil || !bytes.Equal(want, out[len(prefix):]) {
			t.Errorf("%d bytes, gzip gives %d, %v", len(out)-len(prefix), len(want), err)
		}
	})
}

// gunzip inflates all members, and passes over zero bytes behind them.
func gunzip(zipped []byte) (plain []byte, err error) {
	r := bytes.NewReader(zipped)
	z, err := gzip.NewReader(r)
	for err == nil {
		z.Multistream(false)
		var member []byte
		member, err = io.ReadAll(z)
		plain = append(plain, member...)
		if err != nil || len(bytes.Trim(zipped[len(zipped)-r.Len():], "\x00")) == 0 {
			break
		}
		err = z.Reset(r)
	}
	return plain, err
}

// FuzzSplit encrypts what it is given under the right key and reads it as a
// foreign stream: that gives what gzip makes of it, or an error.
func FuzzSplit(f *testing.F) {
	text := []byte(clusterHeader + "SELECT 1;\n")
	frame := mustFrame(f, text)
	for _, seed := range [][]byte{
		frame, append(bytes.Clone(frame), frame...), zip(text), zip(text, text), zip(nil, text), append(bytes.Clone(frame), zip(text)...),
		append(zip(text), frame...), frame[:len(frame)-1], append(zip(text), "garbage"...), append(zip(text), 0, 0, 0), zip(text)[:30],
		[]byte(flip(string(frame), 16, 1)), []byte(flip(string(frame), 18, 0xff)), append(bytes.Clone(frame), frame[:20]...), nil,
		zip(bytes.Repeat([]byte("x"), 100_000)), mustFrame(f, nil),
	} {
		f.Add(seed)
	}
	d := crypto.MD5
	f.Fuzz(func(t *testing.T, zipped []byte) {
		all := foreignBackup(t, zipped, d, 100, numbered(0))
		for _, jobs := range []int{1, 2} {
			got, err := restore(t.Context(), mustFind(t, all.bucket(t), testKeys), &ReadOptions{AllowUnauthenticated: true, Derivation: &d, Jobs: jobs})
			want, wantErr := gunzip(zipped)
			switch {
			case err == nil && (wantErr != nil || !bytes.Equal(got, want)):
				t.Errorf("%d bytes without an error; gzip gives %d, %v", len(got), len(want), wantErr)
			case err != nil && wantErr == nil && !bytes.HasPrefix(want, got):
				t.Errorf("%d other bytes, then %v", len(got), err)
			}
			var damage *DamageError
			var wrong *WrongKeyError
			if err != nil && !errors.As(err, &damage) && !errors.As(err, &wrong) {
				t.Errorf("error %v (%T)", err, err)
			}
		}
	})
}
