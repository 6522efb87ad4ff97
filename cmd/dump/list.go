package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"encdump/crypto"
	"encdump/dump/archive"
)

func newList() *cobra.Command {
	return command("list [flags]", "list backups",
		`list shows the backups of a store, by cluster, oldest first. Without a key the
metadata are shown as they are stored, and the state says that nothing was checked.`,
		noArguments, runList)
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// listed is a backup as JSON.
type listed struct {
	BackupID      string            `json:"backup_id"`
	GUID          string            `json:"backup_guid"`
	Store         string            `json:"store"`
	Status        archive.Status    `json:"status"`
	Authenticated bool              `json:"authenticated"`
	Problem       string            `json:"problem,omitempty"`
	StartedAt     time.Time         `json:"started_at"`
	Bytes         int64             `json:"bytes"`                 // of all objects
	VerifiedAt    *time.Time        `json:"verified_at,omitempty"` // by a drill that was passed
	Drill         *archive.Record   `json:"drill,omitempty"`       // the newest
	Metadata      *archive.Metadata `json:"metadata,omitempty"`
	Objects       []string          `json:"objects,omitempty"`
}

func asListed(b *archive.Backup) listed {
	l := listed{
		BackupID: b.ID.String(), GUID: b.ID.GUID, Store: b.Bucket().String(), Status: b.Status,
		Authenticated: b.Authenticated, StartedAt: b.StartedAt(), Bytes: b.Bytes, Drill: b.Drill, Metadata: b.Metadata,
	}
	if !b.Verified.IsZero() {
		l.VerifiedAt = &b.Verified
	}
	if b.Problem != nil {
		l.Problem = b.Problem.Error()
	}
	if !b.Authenticated && l.Metadata != nil {
		// Commands from nobody knows whom are not handed on.
		m := *l.Metadata
		m.Recover = ""
		l.Metadata = &m
	}
	return l
}

// state says in a few words how good a backup is.
func state(b *archive.Backup, keys crypto.Keyring) string {
	switch {
	case b.Status == archive.Foreign:
		return "foreign, completeness unknown"
	case b.Status == archive.Damaged:
		return "DAMAGED metadata"
	case b.Status != archive.Complete || b.Authenticated:
		return string(b.Status)
	case len(keys) == 0:
		return "complete, not checked: no key"
	}
	return "complete, not checked: needs key " + b.Metadata.Encryption.KeyID
}

// listState is the state with the newest drill.
func listState(b *archive.Backup, keys crypto.Keyring) string {
	if text := drillText(b); text != "" {
		return state(b, keys) + ", " + text
	}
	return state(b, keys)
}

func runList(ctx context.Context, f flags, _ []string) error {
	keys, err := f.keyring(ctx)
	if err != nil {
		return err
	}
	stores, err := f.stores(ctx)
	if err != nil {
		return err
	}
	log := newLogger(f.is("verbose"))
	all := []listed{}
	var failed error // the first store's that could not be listed
	for _, s := range stores {
		byGUID := make(map[string][][]string)
		var guids []string
		for b, err := range archive.OpenCatalog(s, keys, log).Backups(ctx, f.text("guid")) {
			var none *archive.NotFoundError
			if errors.As(err, &none) && !none.Ambiguous {
				break // nothing of that GUID here
			}
			if err != nil && len(stores) > 1 && ctx.Err() == nil {
				say("error: %v", err)
				if failed == nil {
					failed = &statusError{status: statusInPart}
				}
				break
			}
			if err != nil {
				return err
			}
			all = append(all, asListed(b))
			if f.is("json") {
				continue
			}
			if byGUID[b.ID.GUID] == nil {
				guids = append(guids, b.ID.GUID)
				byGUID[b.ID.GUID] = [][]string{{"  BACKUP ID", "STARTED", "AGE", "SQL", "STORED", "KIND", "NAME", "STATE"}}
			}
			sql, kind, name := "-", "-", "-"
			if m := b.Metadata; m != nil {
				sql, kind = size(m.Sizes.Plain), printable(m.Source.Kind)
				if m.Name != "" {
					name = printable(m.Name)
				}
			}
			byGUID[b.ID.GUID] = append(byGUID[b.ID.GUID], []string{
				"  " + b.ID.String(), instant(b.StartedAt()), age(b.StartedAt()), sql, size(b.Bytes), kind, name, listState(b, keys),
			})
		}
		if f.is("json") {
			continue
		}
		if len(stores) > 1 {
			fmt.Printf("%s:\n", s)
		}
		for _, g := range guids {
			fmt.Printf("cluster %s\n", g)
			if err := table(os.Stdout, byGUID[g]); err != nil {
				return err
			}
		}
		if len(guids) == 0 && stderrIsTerminal() {
			say("no backups in %s", s)
		}
	}
	if f.is("json") {
		if err := printJSON(struct {
			Backups []listed `json:"backups"`
		}{all}); err != nil {
			return err
		}
	}
	return failed
}
