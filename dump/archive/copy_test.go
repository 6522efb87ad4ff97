package archive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"encdump/storage"
	"encdump/storage/storagetest"
)

// copyable are backups that can be copied.
func copyable() map[string]objects {
	g := goldenSmall()
	signed := maps.Clone(g.objects)
	signed[full(".sig")] = "a signature"
	signed[full(".verified-1700000000000")] = "a record"
	return map[string]objects{
		"ours": g.objects, "signed": signed, "whole": {testID.String(): "whole"},
		"foreign": {full("-1"): "first", full("-2"): "second", full(".json"): `{"of": "another program"}`},
	}
}

func TestCopy(t *testing.T) {
	t.Parallel()
	for name, all := range copyable() {
		for jobs := range 3 {
			from, to := all.bucket(t), &recorder{Bucket: storagetest.Mem()}
			progress := make(chan int, 1000)
			sum := func() (n int64) {
				for len(progress) > 0 {
					n += int64(<-progress)
				}
				return n
			}
			o := &CopyOptions{Jobs: jobs, Progress: func(n int) { progress <- n }}
			backup := find(t, from, testID.String(), otherKey) // needs no key
			r, err := backup.CopyTo(t.Context(), to, o)
			if err != nil || r != (CopyReport{len(all), 0, backup.Bytes}) {
				t.Errorf("%s: %+v, %v", name, r, err)
				continue
			}
			if got := contents(t, to.Bucket); !maps.Equal(got, all) {
				t.Errorf("%s: there is %q, want %q", name, got.names(), all.names())
			}
			if n := sum(); n != backup.Bytes {
				t.Errorf("%s: progress tells of %d bytes, want %d", name, n, backup.Bytes)
			}
			n := len(to.events)
			if to.events[1] != "new ID.incomplete" || to.events[n-1] != "delete ID.incomplete" {
				t.Errorf("%s: %q", name, to.events)
			}
			if slices.Contains(all.names(), "ID.json") && (to.events[n-3] != "list ID" || to.events[n-2] != "put ID.json") {
				t.Errorf("%s: %q", name, to.events)
			}
			// A second time nothing is sent.
			counted := storagetest.NewFaulty(to.Bucket)
			r, err = backup.CopyTo(t.Context(), counted, o)
			if err != nil || r != (CopyReport{Present: len(all)}) || counted.Calls(storagetest.Put) > 0 {
				t.Errorf("%s a second time: %+v, %v, %d puts", name, r, err, counted.Calls(storagetest.Put))
			}
			if n := sum(); n != backup.Bytes {
				t.Errorf("%s: progress tells of %d bytes, want %d", name, n, backup.Bytes)
			}
		}
	}
}

// TestCopyDamaged has the source be damaged, of which nothing must stay at the destination.
func TestCopyDamaged(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	for _, name := range []string{"-0", "-1", "-2", ".sums", ".toc"} {
		for how, data := range map[string]string{
			"changed": flip(g.objects[full(name)], 3, 1), "missing": "", "longer": g.objects[full(name)] + "x", "shorter": g.objects[full(name)][1:],
		} {
			all := maps.Clone(g.objects)
			if all[full(name)] = data; data == "" {
				delete(all, full(name))
			}
			to := storagetest.Mem()
			if _, err := find(t, all.bucket(t), testID.String()).CopyTo(t.Context(), to, nil); damagedObject(err) != "ID"+name {
				t.Errorf("%s %s: %v", name, how, err)
			}
			wantEmpty(t, to)
		}
	}
	// Where there is no digest, what was listed must come at least.
	all := copyable()
	for name, all := range map[string]objects{"-0": g.objects, ".toc": g.objects, "-2": all["foreign"], ".json": all["foreign"], ".sig": all["signed"], ".verified-1700000000000": all["signed"]} {
		to := storagetest.Mem()
		cut := storagetest.NewFaulty(all.bucket(t))
		backup := find(t, cut, testID.String())
		cut.Add(storagetest.Fault{Op: storagetest.Open, Key: full(name), Cut: 3})
		if _, err := backup.CopyTo(t.Context(), to, nil); damagedObject(err) != "ID"+name {
			t.Errorf("%s cut: %v", name, err)
		}
		wantEmpty(t, to)
	}
	for name, all := range map[string]objects{
		"incomplete": {full(".incomplete"): "", full("-0"): "x"},
		"damaged":    {full(".json"): damagedJSON, full("-0"): "x"},
		"gap":        {full("-0"): "x", full("-2"): "x"},
	} {
		to := storagetest.Mem()
		if _, err := find(t, all.bucket(t), testID.String()).CopyTo(t.Context(), to, nil); err == nil {
			t.Errorf("%s: copied", name)
		}
		wantEmpty(t, to)
	}
	// A copy that was complete stays, whatever happens to the source.
	to := g.bucket(t)
	if err := to.Delete(t.Context(), full(".toc")); err != nil {
		t.Fatal(err)
	}
	want := contents(t, to)
	broken := maps.Clone(g.objects)
	broken[full(".toc")] = flip(broken[full(".toc")], 3, 1)
	if _, err := find(t, broken.bucket(t), testID.String()).CopyTo(t.Context(), to, nil); damagedObject(err) != "ID.toc" || !maps.Equal(contents(t, to), want) {
		t.Errorf("%v, left is %q", err, contents(t, to).names())
	}
}

// TestCopyInterrupted has a copy fail at each object and started again: what has arrived is not sent again, and no
// unfinished copy is a backup.
func TestCopyInterrupted(t *testing.T) {
	t.Parallel()
	for kind, all := range copyable() {
		for name := range all {
			for after := range int64(2) {
				for jobs := range 3 {
					to := storagetest.Mem()
					o := &CopyOptions{Jobs: jobs}
					from := storagetest.NewFaulty(all.bucket(t))
					backup := find(t, from, testID.String())
					faulty := storagetest.NewFaulty(to).Add(storagetest.Fault{Op: storagetest.Put, Key: name, Err: errBoom, After: after})
					first, err := backup.CopyTo(t.Context(), faulty, o)
					if !errors.Is(err, errBoom) {
						t.Errorf("%s: put of %s fails: %v", kind, name, err)
					}
					left := contents(t, to)
					if _, ok := left[full(".json")]; ok {
						t.Errorf("%s: %s failed, and there is %q", kind, name, left.names())
					}
					if first.Copied == 0 {
						wantEmpty(t, to)
					} else if _, ok := left[full(".incomplete")]; !ok {
						t.Errorf("%s: left is %q without a marker", kind, left.names())
					}
					faulty.Heal()
					second, err := backup.CopyTo(t.Context(), faulty, o)
					if err != nil || second.Copied != len(all)-first.Copied || second.Present != first.Copied {
						t.Errorf("%s, %s: first %+v, then %+v, %v", kind, name, first, second, err)
					}
					if got := contents(t, to); !maps.Equal(got, all) {
						t.Errorf("%s: in the end there is %q", kind, got.names())
					}
				}
			}
		}
	}
	g := goldenSmall()
	t.Run("marker", func(t *testing.T) {
		to := storagetest.Mem()
		for _, op := range []storagetest.Op{storagetest.Put, storagetest.List} {
			faulty := storagetest.NewFaulty(to).Add(storagetest.Fault{Op: op, Nth: 1, Err: errBoom})
			if _, err := find(t, g.bucket(t), testID.String()).CopyTo(t.Context(), faulty, nil); !errors.Is(err, errBoom) {
				t.Error(err)
			}
			wantEmpty(t, to)
		}
	})
	// A copy that goes on and fails before it has found anything in order leaves what the first one left, and its marker.
	t.Run("twice", func(t *testing.T) {
		to := storagetest.Mem()
		faulty := storagetest.NewFaulty(to).Add(storagetest.Fault{Op: storagetest.Put, Key: full("-1"), Err: errBoom})
		if r, err := find(t, g.bucket(t), testID.String()).CopyTo(t.Context(), faulty, nil); !errors.Is(err, errBoom) || r.Copied != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		left := contents(t, to)
		faulty = storagetest.NewFaulty(to).Add(storagetest.Fault{Op: storagetest.Open, Key: full("-0"), Err: errBoom})
		if _, err := find(t, g.bucket(t), testID.String()).CopyTo(t.Context(), faulty, nil); !errors.Is(err, errBoom) {
			t.Error(err)
		}
		if got := contents(t, to); !maps.Equal(got, left) {
			t.Errorf("left is %q, %q before", got.names(), left.names())
		}
		if r, err := find(t, g.bucket(t), testID.String()).CopyTo(t.Context(), to, nil); err != nil || r.Present != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	})
	// A Put that fails though the object is there, as when its answer is lost, leaves nothing without a marker.
	t.Run("answer lost", func(t *testing.T) {
		to := &recorder{Bucket: storagetest.Mem()}
		to.on = func(event string) error {
			if event == "put ID-0" {
				if err := to.Bucket.Put(t.Context(), full("-0"), strings.NewReader("x"), nil); err != nil {
					t.Error(err)
				}
				return errBoom
			}
			return nil
		}
		if _, err := find(t, g.bucket(t), testID.String()).CopyTo(t.Context(), to, nil); !errors.Is(err, errBoom) {
			t.Error(err)
		}
		wantEmpty(t, to.Bucket)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		to := &recorder{Bucket: storagetest.Mem()}
		to.on = func(event string) error {
			if event == "put ID-1" {
				cancel()
			}
			return nil
		}
		if _, err := find(t, g.bucket(t), testID.String()).CopyTo(ctx, to, nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		wantNoBackup(t, to.Bucket)
	})
}

// TestCopyMends has objects of a copy be wrong, whether it was complete or not.
func TestCopyMends(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	unfinished := func() objects {
		to := storagetest.Mem()
		faulty := storagetest.NewFaulty(to).Add(storagetest.Fault{Op: storagetest.Put, Key: full(".json"), Err: errBoom})
		if _, err := find(t, g.bucket(t), testID.String()).CopyTo(t.Context(), faulty, nil); !errors.Is(err, errBoom) {
			t.Fatal(err)
		}
		return contents(t, to)
	}()
	for kind, begin := range map[string]objects{"complete": g.objects, "unfinished": unfinished} {
		for _, name := range []string{"-0", "-2", ".sums", ".toc"} {
			for how, data := range map[string]string{
				"changed": flip(g.objects[full(name)], 3, 1), "missing": "", "shorter": g.objects[full(name)][1:],
			} {
				for _, quick := range []bool{false, true} {
					all := maps.Clone(begin)
					if all[full(name)] = data; data == "" {
						delete(all, full(name))
					}
					to := all.bucket(t)
					r, err := find(t, g.bucket(t), testID.String()).CopyTo(t.Context(), to, &CopyOptions{Quick: quick})
					want := 1
					if kind == "unfinished" {
						want++ // the metadata
					} else if quick && how == "changed" {
						want = 0
					}
					if err != nil || r.Copied != want || r.Copied+r.Present != len(g.objects) {
						t.Errorf("%s, %s %s, quick %v: %+v, %v", kind, name, how, quick, r, err)
					}
					if got := contents(t, to); want > 0 && !maps.Equal(got, g.objects) {
						t.Errorf("%s, %s %s, quick %v: there is %q", kind, name, how, quick, got.names())
					}
				}
			}
		}
	}
}

// TestCopyRefuses leaves alone what is not the same backup.
func TestCopyRefuses(t *testing.T) {
	t.Parallel()
	g := goldenSmall()
	other := contents(t, func() storage.Bucket {
		b := storagetest.Mem()
		mustBackUp(t, noiseOf(9, 1000), WriterOptions{PartSize: 500, AllowPartial: true}, b)
		return b
	}())
	with := func(name, data string) objects {
		all := maps.Clone(g.objects)
		all[full(name)] = data
		return all
	}
	from := map[string]objects{"ours": g.objects, "foreign": copyable()["foreign"], "foreign without metadata": {full("-0"): "x", full("-1"): "y"}}
	for name, there := range map[string]objects{
		"another backup":       other,
		"foreign":              {full("-0"): "x", full("-1"): "z"},
		"foreign, longer":      {full("-0"): "x", full("-1"): "y", full("-2"): "z"},
		"changed metadata":     with(".json", g.objects[full(".json")]+" "),
		"one more part":        with("-99", "x"),
		"a whole object":       with("", "x"),
		"being made":           {full(".incomplete"): "This backup is being made\n", full("-0"): g.objects[full("-0")]},
		"without a marker":     {full("-0"): g.objects[full("-0")]},
		"a strange large note": {full(".incomplete"): strings.Repeat("x", 5000)},
	} {
		for kind, all := range from {
			to := there.bucket(t)
			_, err := find(t, all.bucket(t), testID.String()).CopyTo(t.Context(), to, nil)
			var e *OtherBackupError
			if !errors.As(err, &e) || !errors.Is(err, storage.ErrExists) || e.Hint() == "" {
				t.Errorf("%s over %s: %v", kind, name, err)
			}
			if got := contents(t, to); !maps.Equal(got, there) {
				t.Errorf("%s over %s: left is %q", kind, name, got.names())
			}
		}
	}
}

// TestCopyInParallel counts the parts under way.
func TestCopyInParallel(t *testing.T) {
	t.Parallel()
	for _, jobs := range []int{1, 2, 3} {
		bubble(t, fmt.Sprintf("%d jobs", jobs), func(t *testing.T) {
			gate := newGate(t)
			all := goldenSmall()
			faulty := storagetest.NewFaulty(all.bucket(t)) // of three parts
			backup := find(t, faulty, testID.String())
			faulty.Add(storagetest.Fault{Op: storagetest.Open, Gate: gate})
			faulty.Add(storagetest.Fault{Op: storagetest.Open, Key: full(".json")})
			before := faulty.Calls(storagetest.Open)
			done := make(chan error)
			go func() {
				_, err := backup.CopyTo(t.Context(), storagetest.Mem(), &CopyOptions{Jobs: jobs})
				done <- err
			}()
			synctest.Wait()
			if n := faulty.Calls(storagetest.Open) - before - 1; n != jobs {
				t.Errorf("%d parts are under way", n)
			}
			gate.Release()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
