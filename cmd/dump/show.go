package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"encdump/dump/archive"
	"encdump/dump/script"
)

func newShow() *cobra.Command {
	return command("show [--backup-id] ID [flags]", "show one backup",
		`show prints what the metadata say of a backup: when, of what and how it was made, its
objects, and the commands that recover it without this program. Without an ID it shows
the latest. With --contents it prints the databases and tables instead, with rows and
sizes as they are in the dump, largest first; that needs the key.`, atMostOne, runShow)
}

func runShow(ctx context.Context, f flags, args []string) error {
	if f.is("contents") {
		return runShowContents(ctx, f, args)
	}
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
			rows = append(rows, []string{name + ":", printable(value)})
		}
	}
	row("backup", b.ID.String())
	row("store", b.Bucket().String())
	row("state", state(b, keys))
	row("drill", drillText(b))
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
		for _, id := range m.Encryption.RecipientIDs() {
			row("sealed to", id)
		}
		if b.Signer != nil {
			row("signed by", b.Signer.ID+", "+b.Signer.Source)
		} else if b.HasSignature() {
			row("signed by", "nobody who is trusted here")
		}
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
	if b.Vouched() {
		fmt.Println("recovery without this program:")
		for line := range strings.Lines(m.Recover) {
			fmt.Print("  " + line)
		}
	}
	return nil
}

// databaseContents is what a dump holds of a database, largest table first.
type databaseContents struct {
	Name         script.Name          `json:"name"`
	Encoding     string               `json:"encoding,omitempty"`
	Rows         script.Number        `json:"rows"`
	Bytes        script.Number        `json:"bytes"` // of rows, as text
	Tables       []tableContents      `json:"tables"`
	Sequences    []script.Sequence    `json:"sequences,omitempty"`
	LargeObjects *script.LargeObjects `json:"large_objects,omitempty"`
}

type tableContents struct {
	Schema      script.Name        `json:"schema"`
	Table       script.Name        `json:"table"`
	Rows        script.Number      `json:"rows"`
	Bytes       script.Number      `json:"bytes"`
	Fingerprint script.Fingerprint `json:"fingerprint"`
}

// size is that of rows and large objects.
func (c *databaseContents) size() int64 {
	n := c.Bytes
	if c.LargeObjects != nil {
		n += c.LargeObjects.Bytes
	}
	return int64(n)
}

// contentsOf adds up the blocks of each table.
func contentsOf(d *script.Database) databaseContents {
	c := databaseContents{Name: d.Name, Encoding: d.Encoding, Sequences: d.Sequences, LargeObjects: d.LargeObjects, Tables: []tableContents{}}
	index := make(map[[2]script.Name]int)
	for _, block := range d.Copies {
		key := [2]script.Name{block.Schema, block.Table}
		i, ok := index[key]
		if !ok {
			i = len(c.Tables)
			index[key] = i
			c.Tables = append(c.Tables, tableContents{Schema: block.Schema, Table: block.Table})
		}
		t := &c.Tables[i]
		t.Rows += block.Rows
		t.Bytes += block.Data.Length
		t.Fingerprint += block.Fingerprint
		c.Rows += block.Rows
		c.Bytes += block.Data.Length
	}
	slices.SortStableFunc(c.Tables, func(a, b tableContents) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return c
}

func runShowContents(ctx context.Context, f flags, args []string) error {
	keys, err := f.neededKeyring(ctx)
	if err != nil {
		return err
	}
	b, err := f.find(ctx, args, keys, archive.Ref{})
	if err != nil {
		return err
	}
	toc, err := b.TOC(ctx)
	if err != nil {
		return err
	}
	if toc == nil || toc.Contents == nil {
		return &statusError{fmt.Errorf("%s: its index tells no contents", b.ID), "dump restore writes all of it", statusFailed}
	}
	all := []databaseContents{}
	for i := range toc.Contents.Databases {
		all = append(all, contentsOf(&toc.Contents.Databases[i]))
	}
	slices.SortStableFunc(all, func(a, b databaseContents) int { return cmp.Compare(b.size(), a.size()) })
	if f.is("json") {
		return printJSON(struct {
			BackupID  string             `json:"backup_id"`
			Databases []databaseContents `json:"databases"`
		}{b.ID.String(), all})
	}
	for _, d := range all {
		encoding := ""
		if d.Encoding != "" {
			encoding = " (" + d.Encoding + ")"
		}
		fmt.Printf("database %s%s: %s, %s\n", printable(d.Name), encoding, compared(len(d.Tables), int64(d.Rows)), size(d.size()))
		rows := [][]string{}
		for _, t := range d.Tables {
			rows = append(rows, []string{
				"  " + printable(t.Schema) + "." + printable(t.Table),
				humanize.Comma(int64(t.Rows)) + " rows", size(int64(t.Bytes)), t.Fingerprint.String(),
			})
		}
		if err := table(os.Stdout, rows); err != nil {
			return err
		}
		if o := d.LargeObjects; o != nil {
			fmt.Printf("  %s large objects, %s\n", humanize.Comma(int64(o.Objects)), size(int64(o.Bytes)))
		}
	}
	return nil
}

// printable quotes a name that would spoil a line.
func printable[S ~string](n S) string {
	s := string(n)
	if n == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
