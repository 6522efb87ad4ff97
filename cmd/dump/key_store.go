package main

// Keys and the backups that need them: dump key list, recipients, rotate, sheet.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/storage"
)

// needed is a key, or a set of recipients one of whom is enough, and the backups that need it.
type needed struct {
	Store      string         `json:"store"`
	KeyID      string         `json:"key_id,omitempty"`
	Recipients []string       `json:"recipients,omitempty"`
	Source     string         `json:"source,omitempty"` // where the key is here
	Missing    bool           `json:"missing"`
	Backups    []neededBackup `json:"backups"`
}

type neededBackup struct {
	BackupID  string    `json:"backup_id"`
	StartedAt time.Time `json:"started_at"`
	Problem   string    `json:"problem,omitempty"`
}

// neededKeys groups the backups of a store by the keys that they need, in order of the newest of each.
func (f flags) neededKeys(ctx context.Context, s storage.Bucket, keys crypto.Keyring, guid string) ([]*needed, error) {
	c, err := f.catalog(s, keys)
	if err != nil {
		return nil, err
	}
	groups := make(map[string]*needed)
	var out []*needed
	for b, err := range c.Backups(ctx, guid) {
		if err != nil {
			return nil, err
		}
		n := needed{Store: s.String(), Missing: true}
		entry := neededBackup{BackupID: b.ID.String(), StartedAt: b.StartedAt()}
		switch {
		case b.Status == archive.Incomplete:
			continue
		case b.Metadata == nil:
			entry.Problem = string(b.Status)
		case b.Metadata.Encryption.Sealed():
			n.Recipients = b.Metadata.Encryption.RecipientIDs()
			slices.Sort(n.Recipients)
			for _, k := range keys {
				if slices.Contains(n.Recipients, k.RecipientID()) {
					n.Source, n.Missing = k.Source, false
					break
				}
			}
		default:
			n.KeyID = b.Metadata.Encryption.KeyID
			if k := keys.Find(n.KeyID); k != nil {
				n.Source, n.Missing = k.Source, false
			}
		}
		group := n.KeyID + strings.Join(n.Recipients, " ")
		if groups[group] == nil {
			groups[group] = &n
			out = append(out, &n)
		}
		groups[group].Backups = append(groups[group].Backups, entry)
	}
	return out, nil
}

// name says which key it is.
func (n *needed) name() string {
	switch {
	case len(n.Recipients) > 0:
		return "private key of recipient " + strings.Join(n.Recipients, " or ")
	case n.KeyID != "":
		return "key " + n.KeyID
	}
	return "unknown key"
}

func runKeyList(ctx context.Context, f flags, _ []string) error {
	keys, err := f.keyring(ctx)
	if err != nil {
		return err
	}
	stores, err := f.stores(ctx)
	if err != nil {
		return err
	}
	all := []*needed{}
	for _, s := range stores {
		found, err := f.neededKeys(ctx, s, keys, f.text("guid"))
		var none *archive.NotFoundError
		if errors.As(err, &none) && !none.Ambiguous && len(stores) > 1 {
			continue
		}
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	if f.is("json") {
		return printJSON(struct {
			Keys []*needed `json:"keys"`
		}{all})
	}
	store := ""
	for _, n := range all {
		if len(stores) > 1 && n.Store != store {
			store = n.Store
			fmt.Printf("%s:\n", store)
		}
		where := n.Source
		switch {
		case n.KeyID == "" && n.Recipients == nil:
			where = "nothing tells which"
		case n.Missing:
			where = "MISSING here"
		}
		fmt.Printf("%s, %s: %d backup(s)\n", n.name(), where, len(n.Backups))
		var rows [][]string
		for _, b := range n.Backups {
			row := []string{"  " + b.BackupID, instant(b.StartedAt), age(b.StartedAt)}
			if b.Problem != "" {
				row = append(row, b.Problem)
			}
			rows = append(rows, row)
		}
		if err := table(os.Stdout, rows); err != nil {
			return err
		}
	}
	return nil
}

func runKeyRecipients(ctx context.Context, f flags, args []string) error {
	type recipient struct {
		ID       string `json:"id"`
		BackupID string `json:"backup_id,omitempty"`
		Source   string `json:"source,omitempty"`
	}
	out := []recipient{}
	files, err := f.recipients()
	if err != nil {
		return err
	}
	if len(files) > 0 {
		for _, r := range files {
			out = append(out, recipient{ID: r.ID, Source: r.Source})
		}
	} else {
		var keys crypto.Keyring
		for _, path := range f.list("identity") {
			k, err := crypto.ReadIdentity(path, f.askPassphrase(ctx))
			if err != nil {
				return pemError("identity", err)
			}
			keys = append(keys, k)
		}
		b, err := f.find(ctx, args, keys, archive.Ref{Unauthenticated: true, Newest: true})
		if err != nil {
			return err
		}
		if b.Metadata == nil {
			return b.Problem
		}
		for _, id := range b.Metadata.Encryption.RecipientIDs() {
			r := recipient{ID: id, BackupID: b.ID.String()}
			for _, k := range keys {
				if k.RecipientID() == id {
					r.Source = k.Source
				}
			}
			out = append(out, r)
		}
		if len(out) == 0 && !f.is("json") {
			say("%s is not sealed: it needs key %s", b.ID, b.Metadata.Encryption.KeyID)
		}
	}
	if f.is("json") {
		return printJSON(struct {
			Recipients []recipient `json:"recipients"`
		}{out})
	}
	for _, r := range out {
		fmt.Println(strings.TrimSpace(r.ID + "  " + r.Source))
	}
	return nil
}

func runKeyRotate(ctx context.Context, f flags, args []string) error {
	files := f.list("key-file")
	if len(args) == 1 {
		files = args
	}
	switch {
	case len(files) > 1:
		return usage("", "one key is rotated at a time, %d files were given", len(files))
	case len(files) == 0 && (f.text("key-command") != "" || os.Getenv(keyVariable) != ""):
		return usage("make a new one there, and name both for reading", "the key comes from a command or a variable, and only files are rotated")
	case len(files) == 0:
		for _, path := range defaultKeyFiles() {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				files = []string{path}
				break
			}
		}
	}
	if len(files) == 0 {
		return noKeyError("no key to rotate", hintNewKey)
	}
	path := files[0]
	old, err := crypto.ReadKeyFile(path)
	if err != nil {
		return &statusError{fmt.Errorf("key: %w", err), "dump key generate makes the first key", statusKey}
	}
	var still []*needed
	if len(f.list("store")) > 0 {
		// Before anything is changed: a store that cannot be listed is found out in time.
		stores, err := f.stores(ctx)
		if err != nil {
			return err
		}
		for _, s := range stores {
			found, err := f.neededKeys(ctx, s, nil, "")
			if err != nil {
				return err
			}
			for _, n := range found {
				if n.KeyID == old.ID() {
					still = append(still, n)
				}
			}
		}
	}
	retired, err := crypto.RotateKeyFile(path, old)
	if err != nil {
		return &statusError{fmt.Errorf("key: %w", err), "the key file is as it was", statusFailed}
	}
	key, err := crypto.ReadKeyFile(path)
	if err != nil {
		return err
	}
	sayNewKey(key)
	say("the old key %s is in %s, where reading finds it; keep it as long as a backup needs it", old.ID(), retired)
	if f.is("json") {
		if still == nil {
			still = []*needed{}
		}
		return printJSON(struct {
			KeyID   string    `json:"key_id"`
			Old     string    `json:"old_key_id"`
			Retired string    `json:"old_key_file"`
			Needed  []*needed `json:"still_needed"`
		}{key.ID(), old.ID(), retired, still})
	}
	switch {
	case len(f.list("store")) == 0:
		say("hint: dump key list --store URL shows which backups need the old one")
	case len(still) == 0:
		say("no backup needs the old key")
	}
	for _, n := range still {
		fmt.Printf("%s: %d backup(s) still need key %s:\n", n.Store, len(n.Backups), old.ID())
		for _, b := range n.Backups {
			fmt.Printf("  %s  %s\n", b.BackupID, instant(b.StartedAt))
		}
	}
	if len(still) > 0 {
		say("hint: dump rekey --backup-id ID encrypts one with the new key; or let dump prune remove them in time")
	}
	return nil
}

func runKeySheet(ctx context.Context, f flags, args []string) error {
	recipients, err := f.recipients()
	if err != nil {
		return err
	}
	var keys crypto.Keyring
	if len(recipients) == 0 {
		if keys, err = namedKeys(ctx, f, args); err != nil {
			return err
		}
	}
	stores, err := f.stores(ctx)
	if err != nil {
		return err
	}
	withKey := f.is("with-key")
	if withKey && len(recipients) > 0 {
		return usage("print the private key where it is kept", "--with-key: this host has no key that reads sealed backups")
	}
	p := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	p("RECOVERY SHEET: encrypted PostgreSQL backups")
	p("printed %s by dump %s", instant(time.Now()), tool().Version)
	p("")
	if withKey {
		p("THIS SHEET HOLDS THE KEY ITSELF. Whoever reads it reads the backups.")
		p("Keep it in a safe, away from the backups and from the servers.")
	} else {
		p("This sheet does not hold the key. Without the key no backup can be read, by anyone.")
	}
	p("")
	p("The backups are in")
	for _, s := range stores {
		where := s.String()
		if path, err := filepath.Abs(where); err == nil && isFolder(path) {
			host, _ := os.Hostname() // without it the path has to do
			where = path + ", a directory on host " + host
		}
		p("    %s", where)
	}
	p("")
	if len(recipients) > 0 {
		p("They are sealed. Any one of these private keys (RSA, PEM) reads them; the ID is what")
		p("\"openssl pkey -in private.pem -pubout -outform DER | sha256sum\" prints:")
		for _, r := range recipients {
			p("    recipient %s", r.ID)
			p("    private key kept at: ______________________________________")
		}
	} else {
		p("They are encrypted with")
		for i, k := range keys {
			what := ""
			if i > 0 {
				what = ", for older backups"
			}
			p("    key %s%s (on this host: %s)", k.ID(), what, k.Source)
			if withKey {
				p("    passphrase: %s", k.Passphrase().Reveal())
			} else {
				p("    copy kept at: ______________________________________")
			}
		}
	}
	p("")
	read := "--key-file key"
	if len(recipients) > 0 {
		read = "--identity private.pem --trusted-signer signer.pem"
	}
	p("With the program dump:")
	p("")
	step := 0
	say := func(format string, args ...any) { step++; p("%d. "+format, append([]any{step}, args...)...) }
	if len(recipients) > 0 {
		say("Put the private key into a file named private.pem; the signer's public key is signer.pem.")
	} else {
		say("Put the passphrase into a file named key, as its only line.")
	}
	say("dump list --store URL %s, URL being one of the places above", read)
	say("dump restore --store URL %s --backup-id ID --into \"host=NEWSERVER user=postgres\"", read)
	p("   or: dump restore --store URL %s --backup-id ID | psql --quiet --dbname postgres", read)
	p("")
	p("Without it, with openssl, gunzip and psql:")
	p("")
	step = 0
	say("Fetch all objects whose names begin with the backup's ID (that of the newest .json) into an empty folder.")
	if len(recipients) > 0 {
		say("Put the private key beside them, in a file named private.pem.")
	} else {
		say("Put the passphrase beside them, into a file named key, as its only line.")
	}
	say("In that folder, run what the metadata say, with ID being the backup's:")
	p("       jq -r .recover ID.json >recover.sh; sh recover.sh | psql --quiet --dbname postgres")
	if len(recipients) == 0 {
		p("   which, unless the backup was made with other options, is:")
		p("       cat $(ls -1v ID-*) | openssl enc -d -aes256 -md md5 -pass file:key | gunzip -c | psql --quiet --dbname postgres")
	}
	return nil
}
