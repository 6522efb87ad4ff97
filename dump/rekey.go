package dump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/storage"
)

// RekeyOptions says how a backup is encrypted anew.
type RekeyOptions struct {
	// Archive is how the new one is made: with Key or Recipients; GUID, TriggeredAt,
	// Settings, AllowPartial and Progress are set by Rekey.
	Archive archive.WriterOptions
	Read    archive.ReadOptions
	// KeepOld leaves the old one where it is.
	KeepOld  bool
	Tool     archive.Tool
	Progress Progress
	Logger   *slog.Logger
}

// RekeyReport tells what was made.
type RekeyReport struct {
	Metadata *archive.Metadata // of the new backup
	// Resumed: the new backup was there, of a run that was cut off.
	Resumed bool
	Removed bool // the old one is gone
}

// LockedError says that a backup cannot be replaced yet.
type LockedError struct {
	BackupID string
	Until    time.Time
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked %s, and cannot be replaced before", e.BackupID, lockedText(e.Until))
}

// Hint names the way out.
func (e *LockedError) Hint() string {
	return "--keep-old makes the new backup beside it; a lock for that one is asked for in the URL of the store (lock-days)"
}

// Rekey encrypts an authenticated backup anew, in its store, by streaming: nothing plain
// touches a disk. The new backup replaces the old one, follows it in time by a millisecond
// and keeps its times, so that rules of retention and --at see no difference. The old one
// is deleted only when the new one was decoded to its end. On failure the old one stays;
// a new one that is damaged is removed.
func Rekey(ctx context.Context, b *archive.Backup, o *RekeyOptions) (*RekeyReport, error) {
	if err := b.Usable(false); err != nil {
		return nil, err
	}
	if b.Metadata == nil {
		return nil, b.Problem
	}
	if !o.KeepOld {
		// To delete a locked one only hides it, and its lock would not pass on to the new one.
		until, err := b.LockedUntil(ctx)
		if err != nil && !errors.Is(err, storage.ErrPermission) {
			return nil, fmt.Errorf("whether %s is locked is not known: %w", b.ID, err)
		}
		if until.After(time.Now()) {
			return nil, &LockedError{b.ID.String(), until}
		}
	}
	progress := orSilent(o.Progress)
	r := new(RekeyReport)
	made, err := o.find(ctx, b)
	if err != nil {
		return nil, err
	}
	r.Resumed = made != nil
	if made == nil {
		if made, err = o.encrypt(ctx, b, progress); err != nil {
			return nil, err
		}
	}
	r.Metadata = made.Metadata

	// That it is ours the key tells, whoever trusts its signature.
	read := o.Read
	read.AllowUnauthenticated = true
	found, err := Verify(ctx, made, &VerifyOptions{Level: LevelDecode, Read: read, Progress: progress, Logger: o.Logger})
	if err != nil {
		return r, fmt.Errorf("the new backup %s could not be verified, so the old one stays: %w", made.ID, err)
	}
	damage := found.Damage
	if len(damage) == 0 && found.PlainBytes != b.Metadata.Sizes.Plain {
		damage = append(damage, fmt.Errorf("it has %d bytes of SQL, the old one has %d", found.PlainBytes, b.Metadata.Sizes.Plain))
	}
	if len(damage) > 0 {
		err := fmt.Errorf("the new backup %s is damaged and is removed, the old one stays: %w", made.ID, errors.Join(damage...))
		return r, errors.Join(err, made.Delete(ctx))
	}
	if o.KeepOld {
		return r, nil
	}
	if err := b.Delete(ctx); err != nil {
		return r, fmt.Errorf("the new backup %s is complete and verified, the old one could not be removed: %w", made.ID, err)
	}
	r.Removed = true
	return r, nil
}

// find returns what an earlier run made of b with the same key, nil where there is nothing.
// What such a run has sealed cannot be read here, and is left alone.
func (o *RekeyOptions) find(ctx context.Context, b *archive.Backup) (*archive.Backup, error) {
	if o.Archive.Key == nil {
		return nil, nil
	}
	for other, err := range archive.OpenCatalog(b.Bucket(), crypto.Keyring{o.Archive.Key}, o.Logger).Backups(ctx, b.ID.GUID) {
		if err != nil {
			return nil, err
		}
		if other.Authenticated && other.Metadata.Replaces == b.ID.String() && (o.Archive.Sign == nil || other.HasSignature()) {
			return other, nil
		}
	}
	return nil, nil
}

// encrypt makes the new backup.
func (o *RekeyOptions) encrypt(ctx context.Context, b *archive.Backup, progress Progress) (*archive.Backup, error) {
	old, log := b.Metadata, o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	toc, err := b.TOC(ctx)
	var damage *archive.DamageError
	if errors.As(err, &damage) {
		log.Warn("the index is lost, and is made again without the settings in it", "err", err)
	} else if err != nil {
		return nil, err
	}
	settings := o.Archive
	settings.GUID, settings.Logger = b.ID.GUID, log
	settings.TriggeredAt = b.ID.Time().Add(time.Millisecond)
	settings.AllowPartial = old.Source.Kind == archive.KindPartial
	settings.Progress = nil // reading tells
	if toc != nil {
		settings.Settings = toc.Settings
	}
	w, err := archive.NewWriter(ctx, []storage.Bucket{b.Bucket()}, &settings)
	if err != nil {
		return nil, err
	}
	m := &w.Metadata
	m.Name, m.Previous, m.Replaces, m.Source, m.Tool = old.Name, old.Previous, b.ID.String(), old.Source, o.Tool
	m.StartedAt, m.FinishedAt = old.StartedAt, old.FinishedAt
	progress.Start("encrypting", b.StoredSize())
	defer progress.Done()
	read := o.Read
	read.Progress = adder(progress)
	if err := copySQL(w, b, &read); err != nil {
		w.Abort(err)
		return nil, context.Cause(w.Context())
	}
	if err := w.Commit(); err != nil {
		return nil, err
	}
	made, err := archive.OpenCatalog(b.Bucket(), crypto.Keyring{w.Key()}, o.Logger).Find(ctx, archive.Ref{ID: w.ID().String()})
	if err != nil {
		return nil, fmt.Errorf("the new backup %s cannot be found, so the old one stays: %w", w.ID(), err)
	}
	if made.Metadata == nil || made.Metadata.Encryption.KeyID != w.Key().ID() || !slices.Equal(made.Metadata.Parts, w.Metadata.Parts) {
		return nil, fmt.Errorf("the new backup %s is not what was written, so the old one stays", w.ID())
	}
	return made, nil
}

func copySQL(w *archive.Writer, b *archive.Backup, o *archive.ReadOptions) error {
	r, err := b.Reader(w.Context(), o)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}
