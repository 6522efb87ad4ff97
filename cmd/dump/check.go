package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"encdump/dump"
	"encdump/storage"
)

// skewLimit is how far a store's clock may be off before it is worth a warning: signatures of requests are refused
// after minutes, and the grace of prune goes by the store's clock.
const skewLimit = 5 * time.Second

func newCheck() *cobra.Command {
	return command("check [flags]", "try what may be done in a store",
		`check writes, lists, reads and deletes a small object, dump-check-…, in each store, and says
which of these works. It compares the clocks, and tells the settings of stores that can be
asked for them, such as versioning, lock and encryption.

Backups can be made where writing and listing work. Reading and deleting need not be
permitted: a host that may only add cannot lose the backups that it made. A directory that
does not exist is made, as create does.`, noArguments, runCheck)
}

func runCheck(ctx context.Context, f flags, _ []string) error {
	stores, err := f.stores(ctx)
	if err != nil {
		return err
	}
	type step struct {
		Name   string `json:"name"`
		Result string `json:"result"` // ok, not permitted, not tried or failed
		Error  string `json:"error,omitempty"`
	}
	type setting struct {
		Name  string `json:"name"`
		Value string `json:"value,omitempty"`
		Error string `json:"error,omitempty"`
	}
	type checked struct {
		Store    string    `json:"store"`
		OK       bool      `json:"ok"`
		Checks   []step    `json:"checks"`
		Skew     *float64  `json:"clock_skew_seconds,omitempty"` // where the probe was listed
		Settings []setting `json:"settings"`
		Left     string    `json:"left,omitempty"`
	}
	all := []checked{}
	var failed error
	for _, s := range stores {
		r, err := dump.Check(ctx, s)
		if err != nil {
			return err
		}
		c := checked{Store: s.String(), OK: r.OK(), Checks: []step{}, Settings: []setting{}, Left: r.Left}
		var rows [][]string
		row := func(name, text, more string) {
			if more != "" {
				text += "  " + printable(more)
			}
			rows = append(rows, []string{"  " + name, text})
		}
		for _, x := range r.Steps {
			st := step{Name: x.Name, Result: "ok"}
			switch {
			case errors.Is(x.Err, dump.ErrNotTried):
				st.Result = "not tried"
			case errors.Is(x.Err, storage.ErrPermission):
				st.Result, st.Error = "not permitted", x.Err.Error()
			case x.Err != nil:
				st.Result, st.Error = "failed", x.Err.Error()
			}
			c.Checks = append(c.Checks, st)
			row(st.Name, st.Result, st.Error)
		}
		clock := "ok"
		if skew := r.Skew.Seconds(); r.Steps[0].Err == nil && r.Steps[1].Err == nil {
			c.Skew = &skew
		} else {
			clock = "not known"
		}
		if r.Skew.Abs() > skewLimit {
			clock = "off"
			say("warning: the clock of %s is %v %s this machine's", s, r.Skew.Abs().Round(time.Second), map[bool]string{true: "ahead of", false: "behind"}[r.Skew > 0])
		}
		row("clock", clock, "")
		for _, x := range r.Settings {
			j := setting{Name: x.Name, Value: x.Value}
			if x.Err != nil {
				j.Value, j.Error = "", x.Err.Error()
				row(x.Name, "not known", j.Error)
			} else {
				row(x.Name, printable(x.Value), "")
			}
			c.Settings = append(c.Settings, j)
		}
		all = append(all, c)
		if !f.is("json") {
			fmt.Printf("%s:\n", s)
			if err := table(os.Stdout, rows); err != nil {
				return err
			}
		}
		if r.Left != "" {
			say("warning: %s stays in %s", r.Left, s)
		}
		if !r.OK() {
			say("error: no backup can be made in %s", s)
			failed = &statusError{status: statusFailed}
		}
	}
	if f.is("json") {
		if err := printJSON(struct {
			Stores []checked `json:"stores"`
		}{all}); err != nil {
			return err
		}
	}
	return failed
}
