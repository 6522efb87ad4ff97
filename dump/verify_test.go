package dump

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"encdump/dump/archive"
)

func agedBackups(now time.Time, guid string, days ...int) (all []*archive.Backup) {
	for _, d := range days {
		b := &archive.Backup{ID: archive.ID{GUID: guid, Stamp: fmt.Sprint(now.AddDate(0, 0, -d).UnixMilli())}}
		all = append(all, b)
	}
	return all
}

// TestSample: the newest is always there, and a daily run comes to every age.
func TestSample(t *testing.T) {
	now := time.Date(2026, 5, 1, 3, 0, 0, 0, time.UTC)
	var days []int
	for d := range 100 {
		days = append(days, 99-d)
	}
	all := append(agedBackups(now, "11111111-1111-1111-1111-111111111111", days...), agedBackups(now, "22222222-2222-2222-2222-222222222222", 0)...)
	if got := Sample(all, 200, now); len(got) != len(all) {
		t.Errorf("%d of %d", len(got), len(all))
	}
	if got := Sample(all, 0, now); len(got) != 0 {
		t.Errorf("%d of none", len(got))
	}
	seen := map[*archive.Backup]int{}
	for day := range 400 {
		got := Sample(all, 3, now.Add(time.Duration(day)*24*time.Hour/400)) // the same ages
		if len(got) != 4 || got[2] != all[99] || got[3] != all[100] {
			t.Fatal(day, got)
		}
	}
	for day := range 900 {
		later := now.AddDate(0, 0, day)
		shifted := append(agedBackups(later, "11111111-1111-1111-1111-111111111111", days...), all[100])
		got := Sample(shifted, 3, later)
		if len(got) != 4 {
			t.Fatal(day, len(got))
		}
		for i, b := range shifted {
			for _, g := range got {
				if g == b {
					seen[all[i]]++
				}
			}
		}
	}
	for i, b := range all {
		if seen[b] == 0 {
			t.Errorf("the backup of an age of %d days never had its turn", 99-i)
		}
	}
}

func TestStale(t *testing.T) {
	b := agedBackups(time.Now(), "11111111-1111-1111-1111-111111111111", 2)[0]
	for limit, want := range map[time.Time]string{
		{}:                                   "",
		time.Now().Add(-49 * time.Hour):      "",
		time.Now().Add(-47 * time.Hour):      "too old: the dump started ",
		time.Now().Add(-30 * 24 * time.Hour): "",
	} {
		if got := stale(b, limit); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%v: %q", limit, got)
		}
	}
	future := agedBackups(time.Now(), "11111111-1111-1111-1111-111111111111", -1)[0]
	if got := stale(future, time.Now().Add(-time.Hour)); !strings.Contains(got, "clock") {
		t.Errorf("%q", got)
	}
}
