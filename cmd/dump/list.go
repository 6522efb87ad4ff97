package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
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
	Signed        bool              `json:"signed"`           // whether there is a signature, right or not
	Signer        string            `json:"signer,omitempty"` // ID of the trusted one whose signature is right
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
	l.Signed = b.HasSignature()
	if b.Signer != nil {
		l.Signer = b.Signer.ID
	}
	if !b.Vouched() && l.Metadata != nil {
		// Commands from nobody knows whom are not handed on.
		m := *l.Metadata
		m.Recover = ""
		l.Metadata = &m
	}
	return l
}

// state says in a few words how good a backup is.
func state(b *archive.Backup, keys crypto.Keyring) string {
	var unsigned *archive.UnsignedError
	switch {
	case errors.As(b.Problem, &unsigned):
		return "complete, NOT AUTHENTICATED: " + unsigned.Reason
	case b.Authenticated && b.Signer != nil:
		return "complete, signed"
	case b.Signer != nil:
		return "complete, signed; needs " + needs(b)
	case b.Status == archive.Foreign:
		return "foreign, completeness unknown"
	case b.Status == archive.Damaged:
		return "DAMAGED metadata"
	case b.Status != archive.Complete || b.Authenticated:
		return string(b.Status)
	case len(keys) == 0:
		return "complete, not checked: no key"
	}
	return "complete, not checked: needs " + needs(b)
}

// needs says what it takes to read a backup.
func needs(b *archive.Backup) string {
	e := &b.Metadata.Encryption
	if !e.Sealed() {
		return "key " + e.KeyID
	}
	var ids []string
	for _, id := range e.RecipientIDs() {
		ids = append(ids, id[:16])
	}
	return "the private key of recipient " + strings.Join(ids, " or ")
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
	all := []listed{}
	var failed error // the first store's that could not be listed
	for _, s := range stores {
		byGUID := make(map[string][][]string)
		var guids []string
		catalog, err := f.catalog(s, keys)
		if err != nil {
			return err
		}
		for b, err := range catalog.Backups(ctx, f.text("guid")) {
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
