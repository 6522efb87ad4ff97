package dump

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"encdump/crypto"
	"encdump/dump/archive"
	"encdump/storage"
	"encdump/storage/storagetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	pruneNow = time.Date(2026, 3, 29, 12, 0, 0, 0, time.UTC)
	guids    = []string{"4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11", "00000000-0000-0000-0000-000000000001"}
)

func backupAt(guid string, at time.Time) *archive.Backup {
	return &archive.Backup{
		ID: archive.NewID(guid, at), Status: archive.Complete, Modified: at.Add(time.Minute),
		Metadata: &archive.Metadata{StartedAt: at, Source: archive.Source{Kind: archive.KindCluster}},
	}
}

// history is a cluster that is dumped every night, twice on Sundays, more often on the last day and was not for a
// week; another one with few backups; and what must never be counted.
func history() []*archive.Backup {
	var all []*archive.Backup
	for day := range 800 {
		at := time.Date(2024, 1, 20, 2, 15, 0, 0, time.UTC).AddDate(0, 0, day)
		if at.After(pruneNow) || day > 600 && day < 608 {
			continue
		}
		all = append(all, backupAt(guids[0], at))
		if at.Weekday() == time.Sunday {
			all = append(all, backupAt(guids[0], at.Add(9*time.Hour)))
		}
	}
	for i := range 6 {
		all = append(all, backupAt(guids[0], pruneNow.Add(-time.Duration(i)*25*time.Minute-time.Second)))
	}
	all[len(all)-40].Verified = pruneNow
	for _, days := range []int{12, 15, 100} {
		all = append(all, backupAt(guids[1], pruneNow.AddDate(0, 0, -days)))
	}
	partial := backupAt(guids[1], pruneNow.Add(-time.Hour))
	partial.Metadata.Source.Kind = archive.KindPartial
	all = append(all, partial)
	for i, status := range []archive.Status{archive.Foreign, archive.Damaged, archive.Unreadable, archive.Incomplete, archive.Incomplete} {
		b := backupAt(guids[1], pruneNow.Add(-time.Duration(i*12)*time.Hour))
		b.Status, b.Metadata = status, nil
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b *archive.Backup) int { return a.ID.Compare(b.ID) })
	return all
}

// TestPlanPrune compares plans with files, written by go test -update.
func TestPlanPrune(t *testing.T) {
	for name, p := range map[string]Policy{
		"last-3":               {Last: 3},
		"last-many":            {Last: 1000},
		"within-14d":           {Within: Span{Days: 14}},
		"within-1m":            {Within: Span{Months: 1}},
		"hourly-4":             {Hourly: 4},
		"daily-10":             {Daily: 10},
		"weekly-6":             {Weekly: 6},
		"monthly-30":           {Monthly: 30},
		"yearly-5":             {Yearly: 5},
		"daily-weekly-monthly": {Daily: 7, Weekly: 4, Monthly: 6},
		"all-kinds":            {Last: 2, Within: Span{Days: 2}, Hourly: 2, Daily: 3, Weekly: 2, Monthly: 2, Yearly: 2, Min: 2},
		"full-count-2":         {FullCount: 2},
		"full-time-14":         {FullDays: 14},
		"full-time-15":         {FullDays: 15}, // one is exactly that old
		"min-4":                {Hourly: 1, Min: 4},
		"verified":             {Last: 1, RequireVerified: true},
		"incomplete-only":      {IncompleteOnly: true},
		"grace-2d":             {IncompleteOnly: true, Grace: 48 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			removed := map[string]int{}
			for _, d := range PlanPrune(history(), p, pruneNow) {
				if d.Remove && d.Backup.Status == archive.Complete {
					removed[d.Backup.ID.GUID]++ // too many to be read
					continue
				}
				action := "keep"
				if d.Remove {
					action = "remove"
				}
				if !p.IncompleteOnly || d.Backup.Status != archive.Complete {
					fmt.Fprintf(&got, "%-6s %s %s  %s\n", action, d.Backup.ID.GUID[:8], d.Backup.StartedAt().Format("2006-01-02 Mon 15:04:05"), strings.Join(d.Reasons, ", "))
				}
			}
			for _, g := range guids {
				fmt.Fprintf(&got, "%d removed of %s\n", removed[g], g[:8])
			}
			if p.Last == 1000 {
				got.Reset()
				fmt.Fprintf(&got, "%v removed\n", removed)
			}
			path := filepath.Join("testdata", "prune", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil || got.String() != string(want) {
				t.Errorf("%v, got:\n%s", err, got.String())
			}
		})
	}
}

// removedBy returns the IDs that a plan removes.
func removedBy(plan Plan) map[archive.ID]bool {
	out := make(map[archive.ID]bool)
	for _, d := range plan.Removed() {
		out[d.Backup.ID] = true
	}
	return out
}

// counts of a policy, so that each can be raised.
func (p *Policy) counts() []*int {
	return []*int{
		&p.Last, &p.Hourly, &p.Daily, &p.Weekly, &p.Monthly, &p.Yearly, &p.FullCount, &p.FullDays, &p.Min,
		&p.Within.Hours, &p.Within.Days, &p.Within.Months, &p.Within.Years,
	}
}

// TestPlanPruneProperties tries random policies on random backups.
func TestPlanPruneProperties(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var all []*archive.Backup
		for range r.IntN(40) {
			b := backupAt(guids[r.IntN(2)], pruneNow.Add(-time.Duration(r.Int64N(int64(1000*24*time.Hour))>>r.IntN(16))))
			switch r.IntN(10) {
			case 0:
				b.Metadata.Source.Kind = archive.KindPartial
			case 1:
				b.Status, b.Metadata = []archive.Status{archive.Foreign, archive.Damaged, archive.Unreadable, archive.Incomplete}[r.IntN(4)], nil
			case 2:
				b.Verified = pruneNow
			case 3:
				b.Drill = &archive.Record{Result: archive.DrillPassed} // without the key
			}
			all = append(all, b)
		}
		var p Policy
		for _, n := range p.counts() {
			if r.IntN(3) == 0 {
				*n = r.IntN(6)
			}
		}
		p.RequireVerified = r.IntN(2) == 0
		plan := PlanPrune(all, p, pruneNow)
		gone := removedBy(plan)

		newest := map[string]int{} // how many of the newest are kept
		verified := map[string]bool{}
		byAge := slices.Clone(all)
		slices.SortStableFunc(byAge, func(a, b *archive.Backup) int { return b.ID.Compare(a.ID) })
		for _, b := range byAge {
			counted := b.Status == archive.Complete && b.Metadata.Source.Kind != archive.KindPartial
			switch {
			case !counted && b.Status != archive.Incomplete && gone[b.ID]:
				t.Fatalf("seed %d: %s, %s, is removed", seed, b.ID, b.Status)
			case b.Status == archive.Incomplete && gone[b.ID] != (pruneNow.Sub(b.Modified) > DefaultGrace):
				t.Fatalf("seed %d: incomplete since %v: %v", seed, b.Modified, gone[b.ID])
			case counted && gone[b.ID] && newest[b.ID.GUID] < max(p.Min, 1):
				t.Fatalf("seed %d: %s is removed, and %d newer ones are kept", seed, b.ID, newest[b.ID.GUID])
			case counted && p.RequireVerified && b.Drill != nil && !verified[b.ID.GUID] && gone[b.ID]:
				t.Fatalf("seed %d: one that may be the newest verified is removed", seed)
			case counted && p.RequireVerified && !b.Verified.IsZero() && !verified[b.ID.GUID]:
				verified[b.ID.GUID] = true
				if gone[b.ID] {
					t.Fatalf("seed %d: the newest verified is removed", seed)
				}
			}
			if counted && !gone[b.ID] {
				newest[b.ID.GUID]++
			}
		}

		left := slices.DeleteFunc(slices.Clone(all), func(b *archive.Backup) bool { return gone[b.ID] })
		if again := removedBy(PlanPrune(left, p, pruneNow)); len(again) > 0 {
			t.Fatalf("seed %d: a second time %v are removed", seed, again)
		}
		for i := range p.counts() {
			more := p
			*more.counts()[i] += 1 + r.IntN(3)
			for id := range removedBy(PlanPrune(all, more, pruneNow)) {
				if !gone[id] {
					t.Fatalf("seed %d: with more of rule %d %s is removed", seed, i, id)
				}
			}
		}
		other := slices.Clone(all)
		r.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		if !maps.Equal(removedBy(PlanPrune(other, p, pruneNow)), gone) {
			t.Fatalf("seed %d: the order matters", seed)
		}
	}
}

func TestParseSpan(t *testing.T) {
	for in, want := range map[string]Span{
		"": {}, "36h": {Hours: 36}, "14d": {Days: 14}, "2w": {Days: 14}, "6m": {Months: 6}, "1y": {Years: 1},
		"1y6m2w3d4h": {1, 6, 17, 4}, "0d": {},
	} {
		if got, err := ParseSpan(in); err != nil || got != want {
			t.Errorf("%q is %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"14", "d", "-1d", "1.5d", "14 d", "1s", "1D", "d14", "99999999999999999999d", "100001d"} {
		if got, err := ParseSpan(in); err == nil {
			t.Errorf("%q is %v", in, got)
		}
	}
}

// prunable is a store with n backups, a day apart, in the time of a bubble.
func prunable(t *testing.T, b storage.Bucket, n int) []archive.ID {
	t.Helper()
	var ids []archive.ID
	for range n {
		r, err := Create(t.Context(), &CreateOptions{
			Stores: []storage.Bucket{b}, GUID: guids[0], Stdin: strings.NewReader(pruneDump),
			Key: func(context.Context, string, bool) (*crypto.Key, error) { return pruneKey, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		id, err := archive.ParseID(r.Metadata.BackupID)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		time.Sleep(24 * time.Hour)
	}
	return ids
}

const pruneDump = "--\n-- PostgreSQL database cluster dump\n--\n\nSELECT 1;\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n"

var pruneKey = crypto.NewKey(crypto.NewPassphrase([]byte("a passphrase for tests of prune")), "test")

// bubble runs a test in the time of synctest.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	pruneKey.ID() // slow, so before
	synctest.Test(t, test)
}

// prune plans and executes.
func prune(t *testing.T, b storage.Bucket, p Policy) *Pruning {
	t.Helper()
	pruning, err := PreparePrune(t.Context(), archive.OpenCatalog(b, nil, nil), b, &PruneOptions{Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	if err := pruning.Execute(t.Context()); err != nil {
		t.Fatal(err)
	}
	return pruning
}

// statuses of the backups in a store, oldest first.
func statuses(t *testing.T, b storage.Bucket) (out []archive.Status) {
	t.Helper()
	for backup, err := range archive.OpenCatalog(b, nil, nil).Backups(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, backup.Status)
	}
	return out
}

func putObject(t *testing.T, b storage.Bucket, key string) {
	t.Helper()
	if err := b.Put(t.Context(), key, strings.NewReader("x"), nil); err != nil {
		t.Fatal(err)
	}
}

// A deletion that fails is reported, leaves what the next run sees, and is finished by it, however young it is.
func TestPruneFailedDeletion(t *testing.T) {
	boom := errors.New("boom")
	for _, suffix := range []string{".json", "-0", ".sums", ".toc", ".incomplete"} {
		bubble(t, func(t *testing.T) {
			b := storagetest.Mem()
			ids := prunable(t, b, 3)
			faulty := storagetest.NewFaulty(b).Add(storagetest.Fault{Op: storagetest.Delete, Key: ids[0].String() + suffix, Err: boom})
			p := prune(t, faulty, Policy{Last: 1})
			if d := p.Plan[0]; !errors.Is(d.Err, boom) || p.Plan[1].Err != nil {
				t.Errorf("%s: %v, %v", suffix, d.Err, p.Plan[1].Err)
			}
			if got := statuses(t, b); len(got) != 2 || (got[0] == archive.Incomplete) == (suffix == ".json") || got[1] != archive.Complete {
				t.Errorf("%s: left are %v", suffix, got)
			}
			faulty.Heal()
			if p = prune(t, faulty, Policy{Last: 1}); p.Plan[0].Err != nil || !p.Plan[0].Remove {
				t.Errorf("%s: %+v", suffix, p.Plan[0])
			}
			if got := statuses(t, b); !slices.Equal(got, []archive.Status{archive.Complete}) {
				t.Errorf("%s: in the end there are %v", suffix, got)
			}
			for o, err := range b.List(t.Context(), "") {
				if !strings.HasPrefix(o.Key, ids[2].String()) {
					t.Errorf("%s: left is %s, %v", suffix, o.Key, err)
				}
			}
		})
	}
}

// The grace of what was never finished goes by the clock of the store.
func TestPruneGrace(t *testing.T) {
	for _, off := range []time.Duration{0, 100 * time.Hour, -100 * time.Hour} {
		bubble(t, func(t *testing.T) {
			b := storagetest.Mem()
			store := &other{Bucket: b, off: off}
			ids := prunable(t, b, 1)
			making := archive.NewID(guids[0], time.Now())
			putObject(t, b, making.String()+".incomplete")
			putObject(t, b, making.String()+"-0")
			putObject(t, b, "00000000-0000-0000-0000-000000000009-1700000000000-0") // nobody's, without a marker
			time.Sleep(20 * time.Hour)
			putObject(t, b, making.String()+"-1")
			time.Sleep(DefaultGrace - time.Minute)
			prune(t, store, Policy{IncompleteOnly: true})
			if got := statuses(t, b); len(got) != 3 {
				t.Errorf("off by %v: too early, left are %v", off, got)
			}
			time.Sleep(2 * time.Minute)
			dry, err := PreparePrune(t.Context(), archive.OpenCatalog(b, nil, nil), store, &PruneOptions{Policy: Policy{IncompleteOnly: true}, DryRun: true})
			if err != nil || off == 0 && len(dry.Plan.Removed()) != 1 || len(statuses(t, b)) != 3 {
				t.Errorf("dry run: %v", err)
			}
			prune(t, store, Policy{IncompleteOnly: true})
			if got := statuses(t, b); !slices.Equal(got, []archive.Status{archive.Complete, archive.Foreign}) {
				t.Errorf("off by %v: left are %v, of %v", off, got, ids)
			}
		})
	}
}

// locker is a store with locks.
type locker struct {
	storage.Bucket
	until map[string]time.Time
	err   error
}

func (l *locker) LockedUntil(_ context.Context, key string) (time.Time, error) {
	return l.until[key], l.err
}

func TestPruneLocked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := storagetest.Mem()
		ids := prunable(t, b, 5)
		until := time.Now().Add(time.Hour)
		counting := storagetest.NewFaulty(b)
		l := &locker{Bucket: counting, until: map[string]time.Time{
			ids[0].String() + ".toc":  until,
			ids[1].String() + ".json": time.Now().Add(-time.Hour),
			ids[2].String() + "-0":    storage.FarFuture,
			ids[4].String() + "-0":    until,
		}}
		p := prune(t, storage.Resume(l, nil), Policy{Last: 1})
		var got []string
		for _, d := range p.Plan {
			got = append(got, fmt.Sprint(d.Remove, " ", d.Locked.IsZero(), " ", strings.Join(d.Reasons, "; ")))
		}
		want := []string{
			"false false no rule keeps it; locked until " + until.UTC().Format(time.DateTime+"Z"),
			"true true no rule keeps it", "false false no rule keeps it; locked without end", "true true no rule keeps it", "false true last",
		}
		if !slices.Equal(got, want) {
			t.Errorf("plan is %q", got)
		}
		if got := statuses(t, b); !slices.Equal(got, []archive.Status{archive.Complete, archive.Complete, archive.Complete}) {
			t.Errorf("left are %v", got)
		}
		// Nothing of a locked one was touched.
		time.Sleep(2 * time.Hour)
		before := counting.Calls(storagetest.Delete)
		l.err = errors.New("boom")
		p = prune(t, l, Policy{Last: 1})
		if p.Plan[0].Err == nil || p.Plan[0].Remove || counting.Calls(storagetest.Delete) != before {
			t.Errorf("locks not known: %+v", p.Plan[0])
		}
		// Where they may not be asked, the store itself refuses.
		l.err = storage.ErrPermission
		if prune(t, l, Policy{Last: 1}); len(statuses(t, b)) != 1 {
			t.Error("not removed")
		}
	})
}

// uploader is a store with unfinished uploads.
type uploader struct {
	storage.Bucket
	uploads []storage.Upload
	err     error
}

func (u *uploader) Uploads(_ context.Context, prefix string) iter.Seq2[storage.Upload, error] {
	return func(yield func(storage.Upload, error) bool) {
		for _, x := range u.uploads {
			if strings.HasPrefix(x.Key, prefix) && !yield(x, nil) {
				return
			}
		}
	}
}

func (u *uploader) AbortUpload(_ context.Context, x storage.Upload) error {
	if u.err == nil {
		u.uploads = slices.DeleteFunc(u.uploads, func(o storage.Upload) bool { return o.ID == x.ID })
	}
	return u.err
}

func TestPruneUploads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := storagetest.Mem()
		ids := prunable(t, b, 1)
		time.Sleep(time.Hour)
		old, young := time.Now().Add(-25*time.Hour), time.Now().Add(-23*time.Hour)
		busy := archive.NewID(guids[0], time.Now()).String()
		gone := archive.NewID(guids[1], time.Now()).String()
		putObject(t, b, busy+".incomplete")
		u := &uploader{Bucket: b, uploads: []storage.Upload{
			{Key: gone + "-3", ID: "abandoned", Started: old},
			{Key: ids[0].String() + "-9", ID: "of a complete one", Started: old},
			{Key: gone + "-4", ID: "young", Started: young},
			{Key: busy + "-0", ID: "busy", Started: old},
			{Key: "film.mkv", ID: "foreign", Started: old},
		}}
		left := func() (out []string) {
			for _, x := range u.uploads {
				out = append(out, x.ID)
			}
			return out
		}
		u.err = errors.New("boom")
		p := prune(t, storage.Resume(u, nil), Policy{IncompleteOnly: true})
		if len(p.Uploads) != 2 || p.Uploads[0].Err == nil || len(left()) != 5 {
			t.Errorf("%+v", p.Uploads)
		}
		u.err = nil
		prune(t, storage.Resume(u, nil), Policy{IncompleteOnly: true})
		if got := left(); !slices.Equal(got, []string{"young", "busy", "foreign"}) {
			t.Errorf("left are %q", got)
		}
		pruning, err := PreparePrune(t.Context(), archive.OpenCatalog(u, nil, nil), u, &PruneOptions{Policy: Policy{IncompleteOnly: true}, GUID: guids[0]})
		if err != nil || len(pruning.Uploads) != 0 {
			t.Errorf("%+v, %v", pruning, err)
		}
		// The last that is left of a cluster is an upload.
		time.Sleep(2 * time.Hour)
		for range 2 {
			pruning, err = PreparePrune(t.Context(), archive.OpenCatalog(u, nil, nil), u, &PruneOptions{Policy: Policy{IncompleteOnly: true}, GUID: guids[1]})
			if len(left()) == 2 { // the second time
				break
			}
			if err != nil || len(pruning.Plan) != 0 || len(pruning.Uploads) != 1 {
				t.Fatalf("%+v, %v", pruning, err)
			}
			if err := pruning.Execute(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var none *archive.NotFoundError
		if !errors.As(err, &none) {
			t.Errorf("%+v, %v", pruning, err)
		}
	})
}

// Whoever can write to the store but has no key must not push good backups out.
func TestPruneAuthenticated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := storagetest.Mem()
		prunable(t, b, 3)
		other := crypto.NewKey(crypto.NewPassphrase([]byte("another passphrase altogether")), "other")
		for want, keys := range []crypto.Keyring{0: {other}, 2: {pruneKey}} {
			if keys == nil {
				continue
			}
			p, err := PreparePrune(t.Context(), archive.OpenCatalog(b, keys, nil), b, &PruneOptions{Policy: Policy{Last: 1}})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(p.Plan.Removed()); n != want {
				t.Errorf("%d are removed, want %d", n, want)
			}
		}
	})
}
