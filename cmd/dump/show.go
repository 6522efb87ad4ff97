package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"encdump/dump/archive"
)

func newShow() *cobra.Command {
	return command("show [--backup-id] ID [flags]", "show one backup",
		`show prints what the metadata say of a backup: when, of what and how it was made, its
objects, and the commands that recover it without this program. Without an ID it shows
the latest.`, atMostOne, runShow)
}

func runShow(ctx context.Context, f flags, args []string) error {
	keys, err := f.keyring(ctx)
	if err != nil {
		return err
	}
	b, err := f.find(ctx, args, keys, archive.Ref{Unauthenticated: true})
	if err != nil {
		return err
	}
	if f.is("json") {
		l := asListed(b)
		l.Objects = b.Objects()
		return printJSON(l)
	}
	var rows [][]string
	row := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name + ":", value})
		}
	}
	row("backup", b.ID.String())
	row("store", b.Bucket().String())
	row("state", state(b, keys))
	if b.Problem != nil {
		row("problem", b.Problem.Error())
	}
	row("started", instant(b.StartedAt())+", "+age(b.StartedAt()))
	m := b.Metadata
	if m != nil {
		row("finished", instant(m.FinishedAt)+", after "+m.FinishedAt.Sub(m.StartedAt).String())
		row("name", m.Name)
		row("previous", m.Previous)
		row("replaces", m.Replaces)
		row("kind", m.Source.Kind)
		row("host", m.Source.Host)
		server := m.Source.Server
		if m.Source.Standby {
			server += ", standby"
		}
		row("server", server)
		row("pg_dumpall", m.Source.PgDumpall)
		if m.Source.Databases > 0 {
			row("databases", fmt.Sprintf("%d, %s on the server", m.Source.Databases, size(m.Source.DatabaseBytes)))
		}
		row("made by", m.Tool.Name+" "+m.Tool.Version)
		row("SQL", fmt.Sprintf("%s (%d bytes)", size(m.Sizes.Plain), m.Sizes.Plain))
		row("stored", fmt.Sprintf("%s (%d bytes), %s level %d", size(m.Sizes.Stored), m.Sizes.Stored, m.Compression.Algorithm, m.Compression.Level))
		d := m.Encryption.Derivation()
		row("encryption", fmt.Sprintf("%s, key by %s", m.Encryption.Cipher, d))
		row("key", m.Encryption.KeyID)
	}
	row("parts", strconv.Itoa(len(b.Parts)))
	if err := table(os.Stdout, rows); err != nil {
		return err
	}
	objects := [][]string{{"  OBJECT", "BYTES", "SHA-256"}}
	for _, p := range b.Parts {
		objects = append(objects, []string{"  " + p.Name, strconv.FormatInt(p.Size, 10), p.SHA256})
	}
	if m != nil {
		for _, o := range []*archive.Object{&m.Sums.Object, m.TOC} {
			if o != nil {
				objects = append(objects, []string{"  " + o.Name, strconv.FormatInt(o.Size, 10), o.SHA256})
			}
		}
	}
	if err := table(os.Stdout, objects); err != nil {
		return err
	}
	if b.Authenticated {
		fmt.Println("recovery without this program:")
		for line := range strings.Lines(m.Recover) {
			fmt.Print("  " + line)
		}
	}
	return nil
}
