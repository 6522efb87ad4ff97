package file

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"encdump/storage"
	"encdump/storage/storagetest"
)

var errBoom = errors.New("boom")

var ifAbsent = &storage.PutOptions{IfAbsent: true}

// childEnv makes the test binary run one of children instead of the tests: for what needs a process of its own.
const childEnv = "ENCDUMP_FILE_TEST_CHILD"

// children run in the directory that the test made, write to standard output, and return an error to fail.
var children = map[string]func() error{
	"hang":     childHang,
	"ifabsent": childIfAbsent,
	"locked":   childLocked,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		run, ok := children[name]
		if !ok {
			run = func() error { return fmt.Errorf("no child %q", name) }
		}
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child prepares a process that runs children[name] in dir. It is killed if the test ends before it.
func child(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), childEnv+"="+name, "GORACE=atexit_sleep_ms=0")
	c.Dir = dir
	return c
}

// entries returns all names in dir, dot files too.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func wantEntries(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := entries(t, dir); !slices.Equal(got, want) {
		t.Fatalf("directory holds %q, want %q", got, want)
	}
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Fatalf("%s holds %.80q, %v; want %.80q", path, got, err, want)
	}
}

func keys(t *testing.T, b storage.Bucket) []string {
	t.Helper()
	keys := []string{}
	for o, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noTemps opens buckets, and checks that no test leaves temporary files in them.
func noTemps(change func(*Bucket)) func(*testing.T) storage.Bucket {
	return func(t *testing.T) storage.Bucket {
		dir := t.TempDir()
		b := New(dir)
		change(b)
		t.Cleanup(func() {
			for _, name := range entries(t, dir) {
				if strings.HasPrefix(name, ".") && name != lockName {
					t.Errorf("left behind: %s", name)
				}
			}
		})
		return b
	}
}

func noLink(_, _ string) error   { return &os.LinkError{Op: "link", Err: syscall.EPERM} }
func noRename(_, _ string) error { return syscall.EINVAL }

func TestConformance(t *testing.T) {
	storagetest.Conformance(t, noTemps(func(*Bucket) {}))
}

// IfAbsent where the file system has no hard links, and where it has no rename that spares the target either.
func TestIfAbsentFallbacks(t *testing.T) {
	for name, change := range map[string]func(*Bucket){
		"rename": func(b *Bucket) { b.link = noLink },
		"lock":   func(b *Bucket) { b.link, b.renameNoReplace = noLink, noRename },
	} {
		t.Run(name, func(t *testing.T) {
			b := noTemps(change)(t)
			must(t, b.Put(t.Context(), "key", strings.NewReader("first"), ifAbsent))
			if err := b.Put(t.Context(), "key", strings.NewReader("second"), ifAbsent); !errors.Is(err, storage.ErrExists) {
				t.Errorf("Put of a taken key: %v", err)
			}
			wantContent(t, filepath.Join(b.String(), "key"), "first")

			const racers = 16
			for round := range 10 {
				key := fmt.Sprint("race-", round)
				var arrived, done sync.WaitGroup
				arrived.Add(racers)
				errs := make([]error, racers)
				for i := range racers {
					done.Go(func() {
						first := true
						r := io.MultiReader(strings.NewReader(fmt.Sprint(i)), readerFunc(func([]byte) (int, error) {
							if first { // all find the name free, and have their data
								first = false
								arrived.Done()
								arrived.Wait()
							}
							return 0, io.EOF
						}))
						errs[i] = b.Put(t.Context(), key, r, ifAbsent)
					})
				}
				done.Wait()
				winner := slices.Index(errs, nil)
				for i, err := range errs {
					if i != winner && !errors.Is(err, storage.ErrExists) {
						t.Errorf("racer %d: %v, beside %d", i, err, winner)
					}
				}
				wantContent(t, filepath.Join(b.String(), key), fmt.Sprint(winner))
			}
		})
	}
	// A file system that cannot even lock is an error, not a gamble; so is a link that fails for another reason.
	dir := t.TempDir()
	b := New(dir)
	b.link, b.renameNoReplace = noLink, noRename
	must(t, os.Mkdir(filepath.Join(dir, lockName), 0o700))
	if err := b.Put(t.Context(), "key", strings.NewReader("x"), ifAbsent); err == nil {
		t.Error("Put without a lock succeeded")
	}
	wantEntries(t, dir, lockName)
}

func TestModes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	root := t.TempDir()
	dir := filepath.Join(root, "a", "b")
	b := New(dir)
	mode := func(path string) fs.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		must(t, err)
		return info.Mode().Perm()
	}
	// Only Put makes the directory.
	for _, err := range b.List(t.Context(), "") {
		if !errors.Is(err, storage.ErrNotFound) || err.Error() != "list "+dir+": no such directory" {
			t.Errorf("List without a directory: %v", err)
		}
	}
	if _, err := b.Open(t.Context(), "key", 0, -1); !errors.Is(err, storage.ErrNotFound) || err.Error() != "open key from "+dir+": no such directory" {
		t.Errorf("Open without a directory: %v", err)
	}
	must(t, b.Delete(t.Context(), "key"))
	wantEntries(t, root)

	must(t, b.Put(t.Context(), "key", strings.NewReader("x"), nil))
	must(t, b.Put(t.Context(), "new", strings.NewReader("x"), ifAbsent))
	for path, want := range map[string]fs.FileMode{filepath.Dir(dir): 0o700, dir: 0o700, filepath.Join(dir, "key"): 0o600, filepath.Join(dir, "new"): 0o600} {
		if got := mode(path); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	// An existing directory keeps its mode, an object does not keep that of the one it replaces.
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Join(dir, "key"), 0o644))
	must(t, New(dir).Put(t.Context(), "key", strings.NewReader("y"), nil))
	if d, f := mode(dir), mode(filepath.Join(dir, "key")); d != 0o755 || f != 0o600 {
		t.Errorf("modes are %o and %o, want 755 and 600", d, f)
	}
	// The temporary file is not open to others, either.
	seen := false
	r := readerFunc(func([]byte) (int, error) {
		for _, name := range entries(t, dir) {
			if strings.HasPrefix(name, ".") {
				seen = true
				if got := mode(filepath.Join(dir, name)); got != 0o600 {
					t.Errorf("temporary file has mode %o", got)
				}
			}
		}
		return 0, io.EOF
	})
	must(t, b.Put(t.Context(), "key", r, nil))
	if !seen {
		t.Error("no temporary file was seen")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Whatever fails, the old object stays and nothing else does.
func TestFailuresLeaveNothing(t *testing.T) {
	type kase struct {
		name   string
		reader func(cancel func()) io.Reader
		break_ func(b *Bucket, cancel func())
		want   error
	}
	data := func() io.Reader { return bytes.NewReader(make([]byte, 3<<20)) }
	plain := func(func()) io.Reader { return data() }
	cases := []kase{
		{"reader at once", func(func()) io.Reader { return iotest.ErrReader(errBoom) }, nil, errBoom},
		{"reader later", func(func()) io.Reader { return io.MultiReader(data(), iotest.ErrReader(errBoom)) }, nil, errBoom},
		{"cut", func(func()) io.Reader { return io.MultiReader(data(), iotest.ErrReader(io.ErrUnexpectedEOF)) }, nil, io.ErrUnexpectedEOF},
		{"no progress", func(func()) io.Reader { return readerFunc(func([]byte) (int, error) { return 0, nil }) }, nil, io.ErrNoProgress},
		{"WriteTo fails", func(func()) io.Reader { return writerToFunc(func(io.Writer) (int64, error) { return 0, errBoom }) }, nil, errBoom},
		{"cancelled", func(cancel func()) io.Reader {
			return io.MultiReader(data(), readerFunc(func([]byte) (int, error) { cancel(); return 1, nil }))
		}, nil, context.Canceled},
		{"cancelled during fsync", plain, func(b *Bucket, cancel func()) {
			b.syncFile = func(*os.File) error { cancel(); return nil }
		}, context.Canceled},
		{"fsync", plain, func(b *Bucket, _ func()) { b.syncFile = func(*os.File) error { return errBoom } }, errBoom},
		{"close", plain, func(b *Bucket, _ func()) { b.syncFile = (*os.File).Close }, os.ErrClosed},
		{"write", plain, func(b *Bucket, _ func()) {
			b.link = func(_, _ string) error { return syscall.EIO }
		}, nil},
	}
	for _, c := range cases {
		for _, taken := range []bool{false, true} {
			for _, o := range []*storage.PutOptions{nil, ifAbsent} {
				if taken && o != nil || c.name == "write" && o == nil {
					continue
				}
				t.Run(fmt.Sprintf("%s/taken=%v/ifabsent=%v", c.name, taken, o != nil), func(t *testing.T) {
					dir := t.TempDir()
					b := New(dir)
					want := []string{}
					if taken {
						must(t, b.Put(t.Context(), "key", strings.NewReader("old"), nil))
						want = append(want, "key")
					}
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if c.break_ != nil {
						c.break_(b, cancel)
					}
					err := b.Put(ctx, "key", c.reader(cancel), o)
					if err == nil || c.want != nil && !errors.Is(err, c.want) {
						t.Errorf("Put: %v, want %v", err, c.want)
					} else if text := err.Error(); !strings.HasPrefix(text, "put key to "+dir+": ") || strings.Contains(text, tempPrefix) {
						t.Errorf("error reads %q", text)
					}
					wantEntries(t, dir, want...)
					if taken {
						wantContent(t, filepath.Join(dir, "key"), "old")
					}
				})
			}
		}
	}
	t.Run("panic", func(t *testing.T) {
		dir := t.TempDir()
		defer wantEntries(t, dir)
		defer func() { recover() }()
		New(dir).Put(t.Context(), "key", readerFunc(func([]byte) (int, error) { panic("boom") }), nil)
	})
}

type writerToFunc func(io.Writer) (int64, error)

func (f writerToFunc) WriteTo(w io.Writer) (int64, error) { return f(w) }
func (f writerToFunc) Read([]byte) (int, error)           { return 0, errors.New("Read beside WriteTo") }

func TestWriteTo(t *testing.T) {
	dir := t.TempDir()
	want := strings.Repeat("0123456789", 300_000)
	for _, step := range []int{7, bufferSize, len(want)} {
		r := writerToFunc(func(w io.Writer) (n int64, err error) {
			for i := 0; i < len(want); i += step {
				m, err := w.Write([]byte(want[i:min(i+step, len(want))]))
				n += int64(m)
				if err != nil {
					return n, err
				}
			}
			return n, nil
		})
		must(t, New(dir).Put(t.Context(), "key", r, nil))
		wantContent(t, filepath.Join(dir, "key"), want)
	}
	// A WriteTo that does not care for the errors of its writer does not turn them into a success.
	ctx, cancel := context.WithCancel(t.Context())
	r := writerToFunc(func(w io.Writer) (int64, error) { cancel(); w.Write([]byte("x")); return 1, nil })
	if err := New(dir).Put(ctx, "key", r, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Put: %v, want context.Canceled", err)
	}
	wantContent(t, filepath.Join(dir, "key"), want)
}

// A cancelled Put stops at the next read or write, not only when the buffer is full.
func TestCancelStopsAtOnce(t *testing.T) {
	for name, r := range map[string]func(steps *int, cancel func()) io.Reader{
		"Read": func(steps *int, cancel func()) io.Reader {
			return readerFunc(func([]byte) (int, error) {
				if *steps++; *steps > 1000 {
					return 0, io.EOF
				}
				cancel()
				return 1, nil
			})
		},
		"WriteTo": func(steps *int, cancel func()) io.Reader {
			return writerToFunc(func(w io.Writer) (int64, error) {
				cancel()
				for ; *steps < 1000; *steps++ {
					if _, err := w.Write([]byte("x")); err != nil {
						*steps++
						return 0, err
					}
				}
				return 1000, nil
			})
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		steps := 0
		if err := New(t.TempDir()).Put(ctx, "key", r(&steps, cancel), nil); !errors.Is(err, context.Canceled) || steps != 1 {
			t.Errorf("%s: %v after %d steps, want one", name, err, steps)
		}
	}
}

// Where the name is known to be taken, nothing is read: what feeds the reader may be expensive.
func TestIfAbsentSparesReader(t *testing.T) {
	b := New(t.TempDir())
	must(t, b.Put(t.Context(), "key", strings.NewReader("x"), nil))
	r := readerFunc(func([]byte) (int, error) {
		t.Error("read, though the key is taken")
		return 0, io.EOF
	})
	if err := b.Put(t.Context(), "key", r, ifAbsent); !errors.Is(err, storage.ErrExists) {
		t.Errorf("Put: %v", err)
	}
}

// When syncing the folder fails, the name may be lost in a crash, so Put must not succeed; it has no old object to
// go back to where it replaced one.
func TestFolderSyncFails(t *testing.T) {
	for _, o := range []*storage.PutOptions{nil, ifAbsent} {
		dir := t.TempDir()
		b := New(dir)
		b.syncDir = func(string) error { return errBoom }
		if err := b.Put(t.Context(), "key", strings.NewReader("new"), o); !errors.Is(err, errBoom) {
			t.Errorf("Put: %v", err)
		}
		wantEntries(t, dir)
	}
	dir := t.TempDir()
	b := New(dir)
	must(t, b.Put(t.Context(), "key", strings.NewReader("old"), nil))
	b.syncDir = func(string) error { return errBoom }
	if err := b.Put(t.Context(), "key", strings.NewReader("new"), nil); !errors.Is(err, errBoom) {
		t.Errorf("Put: %v", err)
	}
	wantEntries(t, dir, "key")
	wantContent(t, filepath.Join(dir, "key"), "new")
	if err := b.Delete(t.Context(), "key"); !errors.Is(err, errBoom) {
		t.Errorf("Delete: %v", err)
	}
	// The name is gone now, but a second Delete must not call that a success before it is durable.
	if err := b.Delete(t.Context(), "key"); !errors.Is(err, errBoom) {
		t.Errorf("second Delete: %v", err)
	}
}

// Every change of names is followed by a sync of its folder, and data are synced before they get their name.
func TestSyncs(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a", "b")
	b := New(dir)
	var log []string
	b.syncFile = func(f *os.File) error {
		_, err := os.Lstat(filepath.Join(dir, "key"))
		log = append(log, fmt.Sprintf("file, visible=%v", err == nil))
		return f.Sync()
	}
	b.syncDir = func(d string) error {
		_, err := os.Lstat(filepath.Join(dir, "key"))
		rel, _ := filepath.Rel(root, d)
		log = append(log, fmt.Sprintf("%s, visible=%v", rel, err == nil))
		return syncDir(d)
	}
	must(t, b.Put(t.Context(), "key", strings.NewReader("x"), nil))
	must(t, b.Delete(t.Context(), "key"))
	must(t, b.Put(t.Context(), "key", strings.NewReader("x"), ifAbsent))
	want := []string{
		"., visible=false", "a, visible=false", "file, visible=false", "a/b, visible=true",
		"a/b, visible=false",
		"file, visible=false", "a/b, visible=true",
	}
	if !slices.Equal(log, want) {
		t.Errorf("synced\n%q, want\n%q", log, want)
	}
}

func TestListSkips(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write(t, in("plain"), "12345")
	write(t, in(".hidden"), "x")
	write(t, in("new\nline"), "x")
	write(t, in(strings.Repeat("k", storage.MaxKey+1)), "x")
	write(t, filepath.Join(other, "target"), "1234567")
	must(t, os.Mkdir(in("dir"), 0o700))
	must(t, syscall.Mkfifo(in("pipe"), 0o600))
	must(t, os.Symlink(filepath.Join(other, "target"), in("link")))
	must(t, os.Symlink(other, in("link-to-dir")))
	must(t, os.Symlink("nowhere", in("dangling")))
	must(t, os.Symlink("loop", in("loop")))
	modified := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	must(t, os.Chtimes(filepath.Join(other, "target"), modified, modified))
	b := New(dir)
	var got []storage.Object
	for o, err := range b.List(t.Context(), "") {
		must(t, err)
		got = append(got, o)
	}
	if len(got) != 2 || got[0].Key != "link" || got[0].Size != 7 || !got[0].Modified.Equal(modified) || got[1].Key != "plain" || got[1].Size != 5 {
		t.Errorf("listed %v, want link with 7 bytes of %v, and plain with 5", got, modified)
	}
	// Open agrees with List.
	for _, key := range []string{"dir", "pipe", "link-to-dir", "dangling", "loop"} {
		if _, err := b.Open(t.Context(), key, 0, -1); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Open of %s: %v", key, err)
		}
	}
	// All these take a name.
	for _, key := range []string{"plain", "link", "dangling", "dir", "pipe"} {
		if err := b.Put(t.Context(), key, strings.NewReader("x"), ifAbsent); !errors.Is(err, storage.ErrExists) {
			t.Errorf("Put of %s: %v", key, err)
		}
	}
	if err := b.Put(t.Context(), "dir", strings.NewReader("x"), nil); err == nil || errors.Is(err, storage.ErrExists) {
		t.Errorf("Put over a directory: %v", err)
	}
	// What a link leads to is not touched.
	must(t, b.Put(t.Context(), "link", strings.NewReader("new"), nil))
	must(t, os.Symlink(filepath.Join(other, "target"), in("link2")))
	must(t, b.Delete(t.Context(), "link2"))
	must(t, b.Delete(t.Context(), "dir"))
	wantContent(t, filepath.Join(other, "target"), "1234567")
	wantContent(t, in("link"), "new")
	if !slices.Contains(entries(t, dir), "dir") {
		t.Error("Delete removed a directory")
	}
}

func TestNotADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "x")
	b := New(path)
	_, openErr := b.Open(t.Context(), "key", 0, -1)
	putErr := b.Put(t.Context(), "key", strings.NewReader("x"), nil)
	var listErr error
	for _, listErr = range b.List(t.Context(), "") {
	}
	for _, err := range []error{openErr, putErr, listErr} {
		if !errors.Is(err, syscall.ENOTDIR) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("error %v", err)
		}
	}
}

// A file that is cut while it is read is not taken for a shorter one; what is appended is not read.
func TestFileChangesWhileRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	b := New(dir)
	for size, want := range map[int64]error{5: io.ErrUnexpectedEOF, 20: nil} {
		write(t, path, "0123456789")
		r, err := b.Open(t.Context(), "key", 1, -1)
		must(t, err)
		must(t, os.Truncate(path, size))
		got, err := io.ReadAll(r)
		must(t, r.Close())
		if !errors.Is(err, want) || int64(len(got)) != min(size, 10)-1 {
			t.Errorf("cut to %d: read %q, %v", size, got, err)
		}
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	hex := strings.Repeat("0a", 16)
	stale := []string{tempPrefix + hex + tempSuffix, tempPrefix + strings.Repeat("ff", 16) + tempSuffix}
	others := []string{".dump-" + hex, ".dump-x.tmp", ".dump-" + hex[1:] + ".tmp", ".dump-" + hex + "00.tmp", ".dump-" + strings.Repeat("xy", 16) + ".tmp", ".tmp", "." + hex + ".tmp", "dump-" + hex + ".tmp", lockName, "old"}
	fresh := tempPrefix + strings.Repeat("11", 16) + tempSuffix
	directory := tempPrefix + strings.Repeat("22", 16) + tempSuffix
	must(t, os.Mkdir(in(directory), 0o700))
	long := time.Now().Add(-25 * time.Hour)
	for _, name := range slices.Concat(stale, others, []string{fresh}) {
		write(t, in(name), "x")
	}
	for _, name := range slices.Concat(stale, others, []string{directory}) {
		must(t, os.Chtimes(in(name), long, long))
	}
	recent := time.Now().Add(-23 * time.Hour)
	must(t, os.Chtimes(in(fresh), recent, recent))
	want := slices.Sorted(slices.Values(slices.Concat(others, []string{fresh, directory, "key"})))

	b := New(dir)
	// Reading removes nothing.
	keys(t, b)
	must(t, b.Delete(t.Context(), "none"))
	if got := entries(t, dir); !slices.Contains(got, stale[0]) {
		t.Fatalf("removed without a Put: %q", got)
	}
	must(t, b.Put(t.Context(), "key", strings.NewReader("x"), nil))
	wantEntries(t, dir, want...)
	// Once per bucket.
	write(t, in(stale[0]), "x")
	must(t, os.Chtimes(in(stale[0]), long, long))
	must(t, b.Put(t.Context(), "key", strings.NewReader("x"), nil))
	if !slices.Contains(entries(t, dir), stale[0]) {
		t.Error("swept twice")
	}
	// A failing Put sweeps too.
	New(dir).Put(t.Context(), "key", iotest.ErrReader(errBoom), nil)
	wantEntries(t, dir, want...)
}

// A link that was made is reported as existing by NFS when the first answer got lost.
func TestLinkAnswerLost(t *testing.T) {
	dir := t.TempDir()
	b := New(dir)
	b.link = func(oldname, newname string) error {
		if err := os.Link(oldname, newname); err != nil {
			return err
		}
		return os.Link(oldname, newname)
	}
	must(t, b.Put(t.Context(), "key", strings.NewReader("x"), ifAbsent))
	wantEntries(t, dir, "key")
	if err := b.Put(t.Context(), "key", strings.NewReader("y"), ifAbsent); !errors.Is(err, storage.ErrExists) {
		t.Errorf("Put of a taken key: %v", err)
	}
	wantContent(t, filepath.Join(dir, "key"), "x")
}

// Whoever waits for the lock can be cancelled, and gets it once it is free.
func TestLockWaits(t *testing.T) {
	dir := t.TempDir()
	b := New(dir)
	unlock, err := b.lock(t.Context())
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.lock(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("lock that is held, cancelled: %v", err)
	}
	done := make(chan error)
	go func() {
		unlock, err := New(dir).lock(t.Context())
		if err == nil {
			unlock()
		}
		done <- err
	}()
	unlock()
	must(t, <-done)
}

func childHang() error {
	sent := false
	return New("store").Put(context.Background(), "key", readerFunc(func(p []byte) (int, error) {
		if !sent { // more than the buffer holds
			sent = true
			return len(p), nil
		}
		fmt.Println("hanging")
		select {} // until it is killed
	}), nil)
}

// A process that is killed in the middle of Put leaves nothing but a hidden file, which a later Put sweeps.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	must(t, os.Mkdir(store, 0o700))
	c := child(t, "hang", dir)
	out, err := c.StdoutPipe()
	must(t, err)
	c.Stderr = os.Stderr
	must(t, c.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "hanging\n" {
		t.Fatalf("child wrote %q, %v", line, err)
	}
	must(t, c.Process.Kill())
	if err := c.Wait(); c.ProcessState.Success() {
		t.Fatalf("child was not killed: %v", err)
	}
	left := entries(t, store)
	if len(left) != 1 || !isTemp(left[0]) {
		t.Fatalf("left: %q, want one temporary file", left)
	}
	b := New(store)
	if got := keys(t, b); len(got) > 0 {
		t.Errorf("listed: %q", got)
	}
	if _, err := b.Open(t.Context(), "key", 0, -1); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Open: %v", err)
	}
	must(t, b.Put(t.Context(), "other", strings.NewReader("x"), ifAbsent))
	wantEntries(t, store, left[0], "other") // it might be at work yet
	long := time.Now().Add(-25 * time.Hour)
	must(t, os.Chtimes(filepath.Join(store, left[0]), long, long))
	must(t, New(store).Put(t.Context(), "other", strings.NewReader("x"), nil))
	wantEntries(t, store, "other")
}

// childIfAbsent puts its process number, and says that it is there before it waits for the end of standard input.
func childIfAbsent() error {
	b := New("store")
	if os.Getenv("ENCDUMP_FILE_TEST_LOCK") != "" {
		b.link, b.renameNoReplace = noLink, noRename
	}
	r := io.MultiReader(strings.NewReader(fmt.Sprint(os.Getpid())), readerFunc(func([]byte) (int, error) {
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
		return 0, io.EOF
	}))
	err := b.Put(context.Background(), "key", r, ifAbsent)
	if errors.Is(err, storage.ErrExists) {
		fmt.Println("exists")
		return nil
	}
	if err == nil {
		fmt.Println("won")
	}
	return err
}

func TestIfAbsentBetweenProcesses(t *testing.T) {
	for _, lock := range []string{"", "1"} {
		for range 3 {
			dir := t.TempDir()
			const n = 8
			var cmds []*exec.Cmd
			var outs []*bufio.Reader
			var gates []io.WriteCloser
			for range n {
				c := child(t, "ifabsent", dir)
				c.Env = append(c.Env, "ENCDUMP_FILE_TEST_LOCK="+lock)
				c.Stderr = os.Stderr
				out, err := c.StdoutPipe()
				must(t, err)
				in, err := c.StdinPipe()
				must(t, err)
				must(t, c.Start())
				cmds, outs, gates = append(cmds, c), append(outs, bufio.NewReader(out)), append(gates, in)
			}
			for _, out := range outs {
				if line, err := out.ReadString('\n'); line != "ready\n" {
					t.Fatalf("child wrote %q, %v", line, err)
				}
			}
			for _, gate := range gates {
				must(t, gate.Close())
			}
			winner := 0
			for i, c := range cmds {
				line, _ := outs[i].ReadString('\n')
				must(t, c.Wait())
				if line == "won\n" {
					if winner != 0 {
						t.Fatal("two won")
					}
					winner = c.Process.Pid
				} else if line != "exists\n" {
					t.Fatalf("child wrote %q", line)
				}
			}
			wantContent(t, filepath.Join(dir, "store", "key"), fmt.Sprint(winner))
			want := []string{"key"}
			if lock != "" {
				want = []string{lockName, "key"}
			}
			wantEntries(t, filepath.Join(dir, "store"), want...)
		}
	}
}

// childLocked works on a directory that it may not touch, as a user that may not touch everything.
func childLocked() error {
	if os.Getuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
			return err
		}
	}
	ctx := context.Background()
	b := New("locked")
	var listErr error
	for _, listErr = range b.List(ctx, "") {
	}
	_, openErr := b.Open(ctx, "key", 0, -1)
	for op, err := range map[string]error{
		"list":   listErr,
		"open":   openErr,
		"put":    b.Put(ctx, "new", strings.NewReader("x"), nil),
		"absent": b.Put(ctx, "new", strings.NewReader("x"), ifAbsent),
		"delete": b.Delete(ctx, "key"),
		"mkdir":  New("locked/sub").Put(ctx, "new", strings.NewReader("x"), nil),
	} {
		if !errors.Is(err, storage.ErrPermission) || !strings.HasSuffix(err.Error(), ": permission denied") {
			return fmt.Errorf("%s: %v, want ErrPermission", op, err)
		}
	}
	// Only the object may not be read.
	if _, err := New(".").Open(ctx, "secret", 0, -1); !errors.Is(err, storage.ErrPermission) {
		return fmt.Errorf("open of secret: %v, want ErrPermission", err)
	}
	fmt.Println("done")
	return nil
}

func TestPermission(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	locked := filepath.Join(dir, "locked")
	must(t, os.Mkdir(locked, 0o700))
	write(t, filepath.Join(locked, "key"), "x")
	write(t, filepath.Join(dir, "secret"), "x")
	must(t, os.Chmod(filepath.Join(dir, "secret"), 0))
	must(t, os.Chmod(locked, 0))
	t.Cleanup(func() { os.Chmod(locked, 0o700) })
	out, err := child(t, "locked", dir).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "done\n") {
		t.Errorf("%v\n%s", err, out)
	}
	must(t, os.Chmod(locked, 0o700))
	wantEntries(t, locked, "key")
}
