package dump

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/storage"
	"encdump/storage/storagetest"
)

// TestRekey: the old backup goes only when the new one was decoded, and in all that depends on time the new one is the old one.
func TestRekey(t *testing.T) {
	oldKey := crypto.NewKey(crypto.NewPassphrase([]byte("the old passphrase")), "old")
	newKey := crypto.NewKey(crypto.NewPassphrase([]byte("the new passphrase")), "new")
	sql := clusterDump(100_000)
	begun := time.Now().Add(-100 * time.Hour)
	errBoom := errors.New("boom")
	// prepare makes a backup, and returns how its store misbehaves.
	prepare := func(t *testing.T, dump []byte) (*storagetest.Faulty, *archive.Backup, archive.ID) {
		t.Helper()
		f := storagetest.NewFaulty(storagetest.Mem())
		if _, err := Create(t.Context(), &CreateOptions{
			Stores: []storage.Bucket{f}, Stdin: bytes.NewReader(dump), GUID: "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", Name: "label",
			Key:     func(context.Context, string, bool) (*crypto.Key, error) { return oldKey, nil },
			Archive: archive.WriterOptions{PartSize: 30_000, TriggeredAt: begun, AllowPartial: true},
		}); err != nil {
			t.Fatal(err)
		}
		b, err := archive.OpenCatalog(f, crypto.Keyring{oldKey}, nil).Find(t.Context(), archive.Ref{})
		if err != nil {
			t.Fatal(err)
		}
		return f, b, archive.NewID(b.ID.GUID, begun.Add(time.Millisecond))
	}
	options := func() *RekeyOptions {
		return &RekeyOptions{Archive: archive.WriterOptions{Key: newKey, PartSize: 20_000}}
	}
	stored := func(t *testing.T, b storage.Bucket) (ids []archive.ID) {
		t.Helper()
		for b, err := range archive.OpenCatalog(b, crypto.Keyring{oldKey, newKey}, nil).Backups(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			if !b.Authenticated {
				t.Errorf("%s is %s: %v", b.ID, b.Status, b.Problem)
			}
			ids = append(ids, b.ID)
		}
		return ids
	}
	want := func(t *testing.T, b storage.Bucket, ids ...archive.ID) {
		t.Helper()
		got := stored(t, b)
		if len(got) != len(ids) {
			t.Fatalf("the store holds %v, want %v", got, ids)
		}
		for i := range ids {
			if got[i] != ids[i] {
				t.Fatalf("the store holds %v, want %v", got, ids)
			}
		}
	}

	t.Run("done", func(t *testing.T) {
		f, b, next := prepare(t, sql)
		r, err := Rekey(t.Context(), b, options())
		if err != nil || !r.Removed || r.Resumed {
			t.Fatalf("%+v, %v", r, err)
		}
		want(t, f, next)
		found, err := archive.OpenCatalog(f, crypto.Keyring{newKey}, nil).Find(t.Context(), archive.Ref{})
		if err != nil {
			t.Fatal(err)
		}
		m, old := found.Metadata, b.Metadata
		if m.Replaces != b.ID.String() || m.Name != "label" || m.Source != old.Source || m.Sizes.Plain != old.Sizes.Plain ||
			!m.StartedAt.Equal(old.StartedAt) || !m.FinishedAt.Equal(old.FinishedAt) || m.Encryption.Salt == old.Encryption.Salt {
			t.Errorf("metadata %+v, of %+v", m, old)
		}
		var out strings.Builder
		if err := Restore(t.Context(), found, &out, archive.ReadOptions{}, nil); err != nil || out.String() != string(sql) {
			t.Errorf("%d bytes of SQL, %v", out.Len(), err)
		}
	})
	t.Run("partial", func(t *testing.T) {
		f, b, next := prepare(t, sql[:50_000])
		if _, err := Rekey(t.Context(), b, options()); err != nil {
			t.Fatal(err)
		}
		want(t, f, next)
	})
	t.Run("the old one cannot be read", func(t *testing.T) {
		f, b, _ := prepare(t, sql)
		f.Add(storagetest.Fault{Op: storagetest.Open, Key: b.ID.String() + "-1", Err: errBoom, After: 10})
		if _, err := Rekey(t.Context(), b, options()); !errors.Is(err, errBoom) {
			t.Fatal(err)
		}
		f.Heal()
		want(t, f, b.ID)
	})
	t.Run("the new one cannot be written", func(t *testing.T) {
		f, b, next := prepare(t, sql)
		f.Add(storagetest.Fault{Op: storagetest.Put, Key: next.String() + "-2", Err: errBoom})
		if _, err := Rekey(t.Context(), b, options()); !errors.Is(err, errBoom) {
			t.Fatal(err)
		}
		want(t, f, b.ID)
	})
	t.Run("the new one is damaged", func(t *testing.T) {
		f, b, next := prepare(t, sql)
		f.Add(storagetest.Fault{Op: storagetest.Open, Key: next.String() + "-1", Corrupt: map[int64]byte{77: 1}})
		var damage *archive.DamageError
		if _, err := Rekey(t.Context(), b, options()); !errors.As(err, &damage) {
			t.Fatal(err)
		}
		f.Heal()
		want(t, f, b.ID)
	})
	t.Run("the new one cannot be read, and then can", func(t *testing.T) {
		f, b, next := prepare(t, sql)
		f.Add(storagetest.Fault{Op: storagetest.Open, Key: next.String() + "-1", Err: errBoom})
		if _, err := Rekey(t.Context(), b, options()); !errors.Is(err, errBoom) {
			t.Fatal(err)
		}
		f.Heal()
		want(t, f, b.ID, next)
		r, err := Rekey(t.Context(), b, options())
		if err != nil || !r.Resumed || !r.Removed {
			t.Fatalf("%+v, %v", r, err)
		}
		want(t, f, next)
	})
	t.Run("the old one cannot be removed", func(t *testing.T) {
		f, b, next := prepare(t, sql)
		f.Add(storagetest.Fault{Op: storagetest.Delete, Key: b.ID.String() + ".json", Err: errBoom})
		if r, err := Rekey(t.Context(), b, options()); !errors.Is(err, errBoom) || r == nil || r.Removed {
			t.Fatalf("%+v, %v", r, err)
		}
		want(t, f, b.ID, next)
	})
	t.Run("interrupted", func(t *testing.T) {
		f, b, next := prepare(t, sql)
		gate := storagetest.NewGate()
		f.Add(storagetest.Fault{Op: storagetest.Put, Key: next.String() + "-1", Gate: gate})
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-gate.Reached()
			cancel(errBoom)
		}()
		if _, err := Rekey(ctx, b, options()); !errors.Is(err, errBoom) {
			t.Fatal(err)
		}
		want(t, f, b.ID)
	})
	t.Run("not ours to take", func(t *testing.T) {
		f, b, _ := prepare(t, sql)
		b, err := archive.OpenCatalog(f, crypto.Keyring{newKey}, nil).Find(t.Context(), archive.Ref{ID: b.ID.String()})
		if err != nil {
			t.Fatal(err)
		}
		var wrong *archive.WrongKeyError
		if _, err := Rekey(t.Context(), b, options()); !errors.As(err, &wrong) {
			t.Fatal(err)
		}
		want(t, f, b.ID)
	})
}
