package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The backups in testdata/foreign, which other programs made; see README.md there.
const (
	foreignFolder = "../../testdata/foreign"
	foreignGUID   = "b6f4c071-ef44-4af2-9608-531b4ce4823f"
)

type foreignBackup struct {
	stamp string
	whole bool     // one object
	flags []string // of restore and so on, where the derivation is not found without
	kdf   string   // md5: recovered by the document's commands
}

var foreignBackups = []foreignBackup{
	{stamp: "1548967947", kdf: "md5"},
	{stamp: "1548967947154", kdf: "md5"},
	{stamp: "1569935509279", kdf: "md5"},
	{stamp: "1569935509280", kdf: "md5"},
	{stamp: "1740130000", kdf: "md5", whole: true},
	{stamp: "1740130001000", kdf: "sha256"},
	{stamp: "1740130002", kdf: "pbkdf2"},
	{stamp: "1740130003456", kdf: "pbkdf2", whole: true, flags: []string{"--iter", "12345"}},
	{stamp: "1740130004567", kdf: "md5"},
}

func (b foreignBackup) id() string { return foreignGUID + "-" + b.stamp }

// buildForeign builds the program and returns its path.
func buildForeign(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "dump")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// foreignTest is what the tests of a kind share.
type foreignTest struct {
	program string
	home    string // empty
	store   string
	key     string // file
	secret  string
	sql     []byte // of all foreign backups
}

func newForeignTest(t *testing.T) *foreignTest {
	t.Helper()
	folder, err := filepath.Abs(foreignFolder)
	if err != nil {
		t.Fatal(err)
	}
	f := &foreignTest{
		program: buildForeign(t), home: t.TempDir(),
		store: filepath.Join(folder, "store"), key: filepath.Join(folder, "key"),
	}
	f.secret = strings.TrimSuffix(string(readForeign(t, f.key)), "\n")
	z, err := gzip.NewReader(bytes.NewReader(readForeign(t, filepath.Join(folder, "sql.gz"))))
	if err != nil {
		t.Fatal(err)
	}
	if f.sql, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestForeign reads backups that other programs made, and has other programs
// read ours.
func TestForeign(t *testing.T) {
	f := newForeignTest(t)
	for name, test := range map[string]func(*testing.T){
		"list":       f.testList,
		"restore":    f.testRestore,
		"refused":    f.testRefused,
		"fetch":      f.testFetch,
		"encrypted":  f.testFetchEncrypted,
		"verify":     f.testVerify,
		"latest":     f.testLatest,
		"naming":     f.testNaming,
		"keys":       f.testKeys,
		"derivation": f.testDerivation,
		"missing":    f.testMissing,
		"cut":        f.testCut,
		"flipped":    f.testFlipped,
		"by hand":    f.testByHand,
		"ours":       f.testOurs,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

func readForeign(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeForeign(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// foreignResult is a run of the program.
type foreignResult struct {
	args   []string
	status int
	stdout []byte
	stderr string
}

func (r *foreignResult) String() string {
	return fmt.Sprintf("dump %s: status %d, %d bytes on standard output, on standard error:\n%s",
		strings.Join(r.args, " "), r.status, len(r.stdout), r.stderr)
}

// runWith runs the program, in an environment that holds nothing of ours.
func (f *foreignTest) runWith(t *testing.T, stdin []byte, args ...string) *foreignResult {
	t.Helper()
	cmd := exec.Command(f.program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.Dir = f.home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.home, "XDG_CONFIG_HOME=" + filepath.Join(f.home, "config"), "LC_ALL=C"}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return &foreignResult{args, cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.String()}
}

// run runs a command on a store with the key.
func (f *foreignTest) run(t *testing.T, command, store string, args ...string) *foreignResult {
	t.Helper()
	return f.runWith(t, nil, append([]string{command, "--store", store, "--key-file", f.key}, args...)...)
}

// read runs a command that reads a foreign backup, as it must be asked to.
func (f *foreignTest) read(t *testing.T, command, store string, b foreignBackup, args ...string) *foreignResult {
	t.Helper()
	return f.run(t, command, store, append(append([]string{"--backup-id", b.id(), "--allow-unauthenticated"}, b.flags...), args...)...)
}

// want fails unless the run ended with the status and said each of the texts.
func (r *foreignResult) want(t *testing.T, status int, texts ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("want status %d: %v", status, r)
		return
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr+string(r.stdout), text) {
			t.Errorf("%q is not said: %v", text, r)
		}
	}
}

// wantSQL fails unless the run was a silent success with exactly this output.
func (r *foreignResult) wantSQL(t *testing.T, sql []byte) {
	t.Helper()
	if r.status != 0 || r.stderr != "" || !bytes.Equal(r.stdout, sql) {
		t.Errorf("want %d bytes of SQL: %v", len(sql), r)
	}
}

// wantRefused is want with nothing at all on standard output.
func (r *foreignResult) wantRefused(t *testing.T, status int, texts ...string) {
	t.Helper()
	r.want(t, status, texts...)
	if len(r.stdout) > 0 {
		t.Errorf("standard output is not empty: %v", r)
	}
}

// objects returns the names of a backup's objects.
func (f *foreignTest) objects(t *testing.T, store, id string) []string {
	t.Helper()
	entries, err := os.ReadDir(store)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		n := e.Name()
		if n == id || strings.HasPrefix(n, id+"-") || strings.HasPrefix(n, id+".") {
			names = append(names, n)
		}
	}
	return names
}

// copied returns a new store that holds a copy of the backup alone.
func (f *foreignTest) copied(t *testing.T, b foreignBackup) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range f.objects(t, f.store, b.id()) {
		writeForeign(t, filepath.Join(dir, n), readForeign(t, filepath.Join(f.store, n)))
	}
	return dir
}

func (f *foreignTest) testList(t *testing.T) {
	var out struct {
		Backups []struct {
			ID            string `json:"backup_id"`
			GUID          string `json:"backup_guid"`
			Status        string
			Authenticated bool
			Bytes         int64
			Metadata      json.RawMessage
		}
	}
	r := f.run(t, "list", f.store, "--json")
	r.want(t, 0)
	if err := json.Unmarshal(r.stdout, &out); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, b := range out.Backups {
		ids = append(ids, b.ID)
		var size int64
		for _, n := range f.objects(t, f.store, b.ID) {
			size += int64(len(readForeign(t, filepath.Join(f.store, n))))
		}
		if b.Status != "foreign" || b.Authenticated || b.Metadata != nil || b.GUID != foreignGUID || b.Bytes != size {
			t.Errorf("%+v, %d bytes are there", b, size)
		}
	}
	var want []string
	for _, b := range foreignBackups { // in order of time
		want = append(want, b.id())
	}
	if !slices.Equal(ids, want) {
		t.Errorf("listed are %q", ids)
	}

	// For people, with a key and without.
	for _, r := range []*foreignResult{f.run(t, "list", f.store), f.runWith(t, nil, "list", "--store", f.store)} {
		r.want(t, 0)
		for _, b := range foreignBackups {
			line := regexp.MustCompile(`(?m)^ *` + b.id() + ` .*$`).Find(r.stdout)
			if !bytes.HasSuffix(line, []byte("foreign, completeness unknown")) {
				t.Errorf("%s: %q in %s", b.stamp, line, r.stdout)
			}
		}
	}
}

func (f *foreignTest) testRestore(t *testing.T) {
	for _, b := range foreignBackups {
		f.read(t, "restore", f.store, b).wantSQL(t, f.sql)
		f.read(t, "restore", f.store, b, "--jobs", "1").wantSQL(t, f.sql)
		f.read(t, "fetch", f.store, b, "--output", "-").wantSQL(t, f.sql)
	}
}

// Not a byte without --allow-unauthenticated, and no file.
func (f *foreignTest) testRefused(t *testing.T) {
	for _, b := range foreignBackups {
		output := filepath.Join(t.TempDir(), "out")
		named := append([]string{"--backup-id", b.id()}, b.flags...)
		f.run(t, "restore", f.store, named...).wantRefused(t, statusDamaged, "--allow-unauthenticated")
		f.run(t, "verify", f.store, named...).wantRefused(t, statusDamaged)
		for _, o := range []string{"-", output, output + "/"} {
			f.run(t, "fetch", f.store, append(named, "--output", o)...).wantRefused(t, statusDamaged, "--allow-unauthenticated")
		}
		f.run(t, "restore", f.store, append(named, "--allow-unauthenticated=false")...).wantRefused(t, statusDamaged)
		if _, err := os.ReadFile(output); !errors.Is(err, fs.ErrNotExist) {
			if entries, err := os.ReadDir(output); err != nil || len(entries) > 0 {
				t.Errorf("%s: a refused fetch left %v, %v", b.stamp, entries, err)
			}
		}
	}
}

func (f *foreignTest) testFetch(t *testing.T) {
	for _, b := range foreignBackups {
		dir := t.TempDir()
		for _, output := range []string{dir, filepath.Join(dir, "file.sql"), filepath.Join(dir, "new") + "/"} {
			f.read(t, "fetch", f.store, b, "--output", output).wantSQL(t, nil)
		}
		for _, name := range []string{b.id() + ".dump", "file.sql", "new/" + b.id() + ".dump"} {
			path := filepath.Join(dir, name)
			if !bytes.Equal(readForeign(t, path), f.sql) {
				t.Errorf("%s: %s holds something else", b.stamp, name)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: %s has mode %v, %v", b.stamp, name, info.Mode(), err)
			}
		}
		// Never over an existing file.
		path := filepath.Join(dir, b.id()+".dump")
		writeForeign(t, path, []byte("mine"))
		f.read(t, "fetch", f.store, b, "--output", dir).wantRefused(t, statusFailed)
		if got := readForeign(t, path); string(got) != "mine" {
			t.Errorf("%s: an existing file was overwritten", b.stamp)
		}
	}
}

func (f *foreignTest) testFetchEncrypted(t *testing.T) {
	for _, b := range foreignBackups {
		dir := filepath.Join(t.TempDir(), "copy")
		// The key is not needed, and neither is a permission to read unauthenticated SQL.
		f.runWith(t, nil, "fetch", "--store", f.store, "--backup-id", b.id(), "--encrypted", "--output", dir).wantSQL(t, nil)
		names := f.objects(t, f.store, b.id())
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != len(names) {
			t.Errorf("%s: fetched are %v, %v; want %q", b.stamp, entries, err, names)
		}
		for _, n := range names {
			if !bytes.Equal(readForeign(t, filepath.Join(dir, n)), readForeign(t, filepath.Join(f.store, n))) {
				t.Errorf("%s was changed on the way", n)
			}
		}
		f.read(t, "restore", dir, b).wantSQL(t, f.sql)
	}
}

func (f *foreignTest) testVerify(t *testing.T) {
	for _, b := range foreignBackups {
		r := f.read(t, "verify", f.store, b, "--level", "decode")
		r.want(t, 0, b.id()+": decode ok", "not authenticated")
		if r = f.read(t, "verify", f.store, b, "--level", "decode", "--json"); r.status != 0 {
			t.Errorf("%v", r)
			continue
		}
		var out struct {
			OK            bool
			Authenticated bool
			PlainBytes    int `json:"plain_bytes"`
			Damage        []string
		}
		if err := json.Unmarshal(r.stdout, &out); err != nil {
			t.Fatal(err)
		}
		if !out.OK || out.Authenticated || out.PlainBytes != len(f.sql) || len(out.Damage) > 0 {
			t.Errorf("%s: %s", b.stamp, r.stdout)
		}
		// Nothing is known that these could compare with.
		for _, level := range []string{"metadata", "digest"} {
			f.read(t, "verify", f.store, b, "--level", level).wantRefused(t, statusDamaged)
		}
	}
}

// A foreign backup is never the latest.
func (f *foreignTest) testLatest(t *testing.T) {
	out := t.TempDir()
	for _, args := range [][]string{
		{"restore"},
		{"restore", "--backup-id", "latest"},
		{"restore", "latest"},
		{"restore", "--at", "2030-01-01"},
		{"restore", "--guid", foreignGUID},
		{"verify"},
		{"verify", "--backup-id", "latest"},
		{"fetch", "--backup-id", "latest", "--output", "-"},
		{"fetch", "--backup-id", "latest", "--output", out},
		{"fetch", "--at", "2030-01-01", "--output", "-"},
	} {
		f.run(t, args[0], f.store, append(args[1:], "--allow-unauthenticated")...).wantRefused(t, statusNotFound)
	}
	f.run(t, "fetch", f.store, "--backup-id", "latest", "--encrypted", "--output", out).wantRefused(t, statusNotFound)
	f.run(t, "show", f.store, "latest").wantRefused(t, statusNotFound)
	if entries, err := os.ReadDir(out); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}

	// Not even where it is newer than one of ours under the same GUID.
	source := foreignBackups[1]
	store := f.copied(t, source)
	future := foreignGUID + "-4102444800000"
	for _, n := range f.objects(t, store, source.id()) {
		if err := os.Rename(filepath.Join(store, n), filepath.Join(store, future+strings.TrimPrefix(n, source.id()))); err != nil {
			t.Fatal(err)
		}
	}
	ours := append(bytes.Clone(foreignSmallSQL), "-- the newer one\n"...)
	f.create(t, store, ours)
	for _, args := range [][]string{{}, {"latest"}, {"--backup-id", "latest", "--allow-unauthenticated"}, {"--at", "2100-06-01"}} {
		if r := f.run(t, "restore", store, args...); r.status != 0 || !bytes.Equal(r.stdout, ours) {
			t.Errorf("want ours: %v", r)
		}
	}
	f.run(t, "restore", store, future, "--allow-unauthenticated").wantSQL(t, f.sql)
}

func (f *foreignTest) testNaming(t *testing.T) {
	read := func(args ...string) *foreignResult {
		return f.run(t, "restore", f.store, append(args, "--allow-unauthenticated")...)
	}
	read(foreignGUID+"-15489679471").wantSQL(t, f.sql)                                   // a unique beginning
	read("--backup-id", strings.ToUpper(foreignGUID)+"-1569935509279").wantSQL(t, f.sql) // in capitals
	read("--guid", foreignGUID[:3], foreignGUID+"-1740130000").wantSQL(t, f.sql)
	read(foreignGUID+"-1569").wantRefused(t, statusUsage, "ambiguous")
	read(foreignGUID+"-1").wantRefused(t, statusUsage, "ambiguous")
	read(foreignGUID+"-2").wantRefused(t, statusNotFound)
	read(strings.Replace(foreignGUID, "b", "c", 1)+"-1548967947").wantRefused(t, statusNotFound)
}

func (f *foreignTest) testKeys(t *testing.T) {
	dir := t.TempDir()
	wrong, crlf, empty := filepath.Join(dir, "wrong"), filepath.Join(dir, "crlf"), filepath.Join(dir, "empty")
	writeForeign(t, wrong, []byte(f.secret[1:]+"\n"))
	writeForeign(t, crlf, []byte(f.secret+"\r\n")) // openssl takes the carriage return too
	writeForeign(t, empty, nil)
	read := func(b foreignBackup, command string, args ...string) *foreignResult {
		args = append(append([]string{command, "--store", f.store, "--backup-id", b.id(), "--allow-unauthenticated"}, b.flags...), args...)
		return f.runWith(t, nil, args...)
	}
	for _, b := range foreignBackups {
		for _, key := range []string{wrong, crlf} {
			read(b, "restore", "--key-file", key).wantRefused(t, statusKey, "wrong key or damaged start", b.id())
		}
		read(b, "restore", "--key-file", wrong, "--key-file", f.key).wantSQL(t, f.sql)
	}
	for _, b := range foreignBackups[4:6] {
		read(b, "fetch", "--key-file", wrong, "--output", "-").wantRefused(t, statusKey, "wrong key or damaged start")
		read(b, "fetch", "--key-file", wrong, "--output", filepath.Join(dir, "out")).wantRefused(t, statusKey)
		read(b, "verify", "--key-file", wrong).wantRefused(t, statusKey, "wrong key or damaged start")
		read(b, "restore", "--key-file", f.key, "--key-file", wrong).wantSQL(t, f.sql)
		read(b, "restore", "--key-command", "cat '"+f.key+"'").wantSQL(t, f.sql)
		for _, key := range []string{empty, filepath.Join(dir, "none"), dir} {
			read(b, "restore", "--key-file", key).wantRefused(t, statusKey, key)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a fetch with the wrong key left a file: %v", err)
	}
}

func (f *foreignTest) testDerivation(t *testing.T) {
	kdfs := []string{"md5", "sha256", "pbkdf2"}
	for _, b := range foreignBackups[4:] {
		f.read(t, "restore", f.store, b, "--kdf", b.kdf).wantSQL(t, f.sql)
		if b.flags != nil {
			continue
		}
		for _, kdf := range kdfs {
			if kdf != b.kdf {
				f.read(t, "restore", f.store, b, "--kdf", kdf).wantRefused(t, statusKey, "wrong key or damaged start")
			}
		}
	}
	b := foreignBackups[7]
	if len(b.flags) == 0 {
		t.Fatal("the table has another order")
	}
	b.flags = nil // from here on without --iter
	refused := func(args ...string) {
		t.Helper()
		f.read(t, "restore", f.store, b, args...).wantRefused(t, statusKey, "wrong key or damaged start", "--iter")
	}
	refused()
	refused("--kdf", "pbkdf2")
	refused("--iter", "12344")
	refused("--kdf", "md5")
	f.read(t, "verify", f.store, b).wantRefused(t, statusKey, "--iter")
	f.read(t, "restore", f.store, b, "--kdf", "pbkdf2", "--iter", "12345").wantSQL(t, f.sql)
	f.read(t, "verify", f.store, b, "--iter", "12345").want(t, 0)
	f.read(t, "restore", f.store, b, "--kdf", "md5", "--iter", "12345").wantRefused(t, statusUsage)
	f.read(t, "restore", f.store, b, "--kdf", "rot13").wantRefused(t, statusUsage)
	f.read(t, "restore", f.store, b, "--iter", "10000001").wantRefused(t, statusUsage)
}

// readBad reads a backup that is not what it was in every way there is; none
// may succeed or leave a file. It returns what was released to standard output.
func (f *foreignTest) readBad(t *testing.T, what, store string, b foreignBackup, status ...int) []byte {
	t.Helper()
	output := filepath.Join(t.TempDir(), "out")
	check := func(r *foreignResult) {
		t.Helper()
		if r.status == 0 || len(status) > 0 && !slices.Contains(status, r.status) {
			t.Errorf("%s, %s: want status %v: %v", b.stamp, what, status, r)
		}
		if !strings.Contains(r.stderr, "dump: error: ") || strings.Contains(r.stderr, "goroutine") {
			t.Errorf("%s, %s: not an error as it should be: %v", b.stamp, what, r)
		}
	}
	r := f.read(t, "restore", store, b)
	check(r)
	check(f.read(t, "fetch", store, b, "--output", output))
	if entries, err := os.ReadDir(filepath.Dir(output)); err != nil || len(entries) > 0 {
		t.Errorf("%s, %s: fetch left %v, %v", b.stamp, what, entries, err)
	}
	v := f.read(t, "verify", store, b, "--level", "decode")
	check(v)
	if len(v.stdout) > 0 {
		t.Errorf("%s, %s: %s", b.stamp, what, v.stdout)
	}
	return withoutEnding(r.stdout)
}

// withoutEnding cuts off what follows a script that failed on the way, for psql
// to fail too. It begins with an end of line and a row of tabs.
func withoutEnding(stdout []byte) []byte {
	released, _, _ := bytes.Cut(stdout, []byte("\n"+strings.Repeat("\t", 1700)+"\n"))
	return released
}

// readCut is readBad of a backup whose end is missing: nothing is released but
// the beginning of the SQL. It returns how much.
func (f *foreignTest) readCut(t *testing.T, what, store string, b foreignBackup, status ...int) int {
	t.Helper()
	released := f.readBad(t, what, store, b, status...)
	if !bytes.HasPrefix(f.sql, released) {
		t.Errorf("%s, %s: what was released is not the beginning of the SQL", b.stamp, what)
	}
	return len(released)
}

func (f *foreignTest) testMissing(t *testing.T) {
	zero, one, many, padded, whole := foreignBackups[1], foreignBackups[0], foreignBackups[2], foreignBackups[3], foreignBackups[4]
	type change func(store string) error
	remove := func(b foreignBackup, indexes ...string) change {
		return func(store string) error {
			for _, i := range indexes {
				if err := os.Remove(filepath.Join(store, b.id()+"-"+i)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	move := func(b foreignBackup, from, to string) change {
		return func(store string) error {
			return os.Rename(filepath.Join(store, b.id()+from), filepath.Join(store, b.id()+to))
		}
	}
	add := func(b foreignBackup, suffix string, like string) change {
		return func(store string) error {
			data, err := os.ReadFile(filepath.Join(store, b.id()+like))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(store, b.id()+suffix), data, 0o600)
		}
	}
	for _, c := range []struct {
		b    foreignBackup
		what string
		do   change
		text string // in the error; where there is one, nothing is read at all
	}{
		{zero, "first part missing", remove(zero, "0"), ""}, // then it looks like one that counts from 1
		{zero, "first two missing", remove(zero, "0", "1"), "missing"},
		{zero, "gap", remove(zero, "1"), zero.id() + "-1: missing"},
		{zero, "last missing", remove(zero, "3"), ""},
		{zero, "only the first left", remove(zero, "1", "2", "3"), ""},
		{zero, "only the last left", remove(zero, "0", "1", "2"), "missing"},
		{one, "first part missing", remove(one, "1"), "missing"},
		{one, "gap", remove(one, "2"), one.id() + "-2: missing"},
		{one, "last missing", remove(one, "3"), ""},
		{one, "first index 2", move(one, "-1", "-4"), "missing"},
		{many, "tenth missing", remove(many, "10"), many.id() + "-10: missing"},
		{many, "last two missing", remove(many, "20", "21"), ""},
		{padded, "first missing", remove(padded, "000"), ""},
		{padded, "gap", remove(padded, "009"), "missing"},
		{padded, "one index twice", add(padded, "-3", "-003"), "two parts with index 3"},
		{padded, "one index twice, both padded", add(padded, "-0000", "-000"), "two parts with index 0"},
		{zero, "one part more", add(zero, "-4", "-3"), ""},
		{zero, "a whole object too", add(zero, "", "-0"), "both a whole object and parts"},
		{whole, "a part too", add(whole, "-0", ""), "both a whole object and parts"},
	} {
		store := f.copied(t, c.b)
		if err := c.do(store); err != nil {
			t.Fatal(err)
		}
		f.readCut(t, c.what, store, c.b, statusDamaged)
		if c.text != "" {
			f.read(t, "restore", store, c.b).wantRefused(t, statusDamaged, c.text)
		}
	}

	// In another order nothing but the content shows it.
	store := f.copied(t, zero)
	if err := errors.Join(move(zero, "-1", "-x")(store), move(zero, "-2", "-1")(store), move(zero, "-x", "-2")(store)); err != nil {
		t.Fatal(err)
	}
	f.readBad(t, "swapped", store, zero, statusDamaged, statusKey)

	// All parts gone: then there is no backup, metadata or not.
	store = f.copied(t, zero)
	if err := remove(zero, "0", "1", "2", "3")(store); err != nil {
		t.Fatal(err)
	}
	if r := f.read(t, "restore", store, zero); r.status == 0 || len(r.stdout) > 0 {
		t.Errorf("without parts: %v", r)
	}
}

func (f *foreignTest) testCut(t *testing.T) {
	whole := foreignBackups[4]
	stream := readForeign(t, filepath.Join(f.store, whole.id()))
	n := len(stream)
	store := f.copied(t, whole)
	released := 0
	for _, size := range []int{
		0, 1, 8, 15, 16, 17, 31, 32, 33, 48, 100, 1000, 4096, n / 2, n / 2 / 16 * 16, 1 << 16, 1<<16 + 16, n - 100,
		n - 33, n - 32, n - 31, n - 17, n - 16, n - 15, n - 2, n - 1,
	} {
		writeForeign(t, filepath.Join(store, whole.id()), stream[:size])
		released += f.readCut(t, fmt.Sprintf("cut to %d bytes", size), store, whole, statusDamaged, statusKey)
	}
	if released == 0 {
		t.Error("no cut stream gave anything: then this test does not look at what is released")
	}

	// A part cut. Where others follow, CBC is right again after a block and no
	// more than gzip's checksum tells, at the end.
	for _, c := range []struct {
		b    foreignBackup
		part string
		last bool
		less []int
	}{
		{foreignBackups[1], "-0", false, []int{1, 16, 20000}},
		{foreignBackups[1], "-1", false, []int{1, 16, 10000, 20000}},
		{foreignBackups[1], "-3", true, []int{1, 15, 16, 17, 32, 10319, 10320}},
		{foreignBackups[0], "-3", true, []int{1, 14, 30, 10318}},
		{foreignBackups[2], "-10", false, []int{1, 16, 3333}},
		{foreignBackups[2], "-21", true, []int{1, 16, 327}},
		{foreignBackups[5], "-4", true, []int{1, 16, 5000}},
		{foreignBackups[6], "-2", true, []int{1, 16, 5000}},
	} {
		store := f.copied(t, c.b)
		path := filepath.Join(store, c.b.id()+c.part)
		data := readForeign(t, path)
		for _, less := range c.less {
			writeForeign(t, path, data[:len(data)-less])
			read := f.readBad(t, fmt.Sprintf("part %s shorter by %d bytes", c.part, less), store, c.b, statusDamaged, statusKey)
			if c.last && !bytes.HasPrefix(f.sql, read) {
				t.Errorf("%s: part %s shorter by %d bytes: what was released is not the beginning of the SQL", c.b.stamp, c.part, less)
			}
		}
	}
}

func (f *foreignTest) testFlipped(t *testing.T) {
	for _, b := range []foreignBackup{foreignBackups[4], foreignBackups[6]} {
		names := f.objects(t, f.store, b.id())
		names = slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, ".json") })
		last := readForeign(t, filepath.Join(f.store, names[len(names)-1]))
		first := readForeign(t, filepath.Join(f.store, names[0]))
		store := f.copied(t, b)
		flip := func(name string, data []byte, offset int) {
			changed := bytes.Clone(data)
			changed[offset] ^= 0x20
			writeForeign(t, filepath.Join(store, name), changed)
			r := f.read(t, "restore", store, b)
			if r.status == 0 || !strings.Contains(r.stderr, "dump: error: ") {
				t.Errorf("byte %d of %s flipped: %v", offset, name, r)
			}
			if v := f.read(t, "verify", store, b); v.status != r.status {
				t.Errorf("byte %d of %s flipped: verify does not say the same: %v", offset, name, v)
			}
			writeForeign(t, filepath.Join(store, name), data)
		}
		// The magic, the salt, the first cipher blocks, the middle.
		for _, offset := range []int{0, 7, 8, 15, 16, 31, 32, 47, 200, len(first) / 2, len(first) / 2 / 16 * 16} {
			flip(names[0], first, offset)
		}
		for back := 1; back <= 48; back += 5 { // the last cipher blocks
			flip(names[len(names)-1], last, len(last)-back)
		}
		f.read(t, "restore", store, b).wantSQL(t, f.sql) // all is as it was again
	}
}

// What the a9s document on recovery tells its readers to type, for S3 and for Azure.
const (
	foreignDocumentedParts = "cat $(ls -1v <backup-id>-*) \\\n" +
		"| openssl enc -aes256 -md md5 -d -pass 'pass:<backup-encryption-key>' \\\n" +
		"| gunzip -c > <dst-dir>/<backup-id>.dump\n"
	foreignDocumentedWhole = "cat <file-name> \\\n" +
		"| openssl enc -aes256 -md md5 -d -pass 'pass:<backup-encryption-key>' \\\n" +
		"| gunzip -c > <dst-dir>/<file-name>\n"
)

// foreignShell runs a script in a folder and returns its output; it must succeed.
func foreignShell(t *testing.T, dir, script string) []byte {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s: %v\n%s", script, err, &stderr)
	}
	return out
}

// recoverByDocument follows the document in a store, word for word.
func (f *foreignTest) recoverByDocument(t *testing.T, store, id string, whole bool) []byte {
	t.Helper()
	script, name := foreignDocumentedParts, id+".dump"
	if whole {
		script, name = foreignDocumentedWhole, id
	}
	dst := t.TempDir()
	script = strings.NewReplacer("<backup-id>", id, "<file-name>", id,
		"<backup-encryption-key>", f.secret, "<dst-dir>", dst).Replace(script)
	foreignShell(t, store, script)
	return readForeign(t, filepath.Join(dst, name))
}

func (f *foreignTest) testByHand(t *testing.T) {
	n := 0
	for _, b := range foreignBackups {
		if b.kdf == "md5" {
			n++
			if got := f.recoverByDocument(t, f.store, b.id(), b.whole); !bytes.Equal(got, f.sql) {
				t.Errorf("%s: by hand %d bytes come out", b.stamp, len(got))
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d backups are for the document's commands", n)
	}
}

var foreignSmallSQL = []byte("--\n-- PostgreSQL database cluster dump\n--\n\nSELECT 1;\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n")

// create makes a backup of ours and returns its ID.
func (f *foreignTest) create(t *testing.T, store string, sql []byte, args ...string) string {
	t.Helper()
	r := f.runWith(t, sql, append([]string{"create", "--stdin", "--guid", foreignGUID, "--store", store, "--key-file", f.key, "--json"}, args...)...)
	r.want(t, 0)
	var out struct {
		ID string `json:"backup_id"`
	}
	if err := json.Unmarshal(r.stdout, &out); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	return out.ID
}

// Our backups are recovered by the document's commands, by their own, and by us.
func (f *foreignTest) testOurs(t *testing.T) {
	for _, c := range []struct {
		sql   []byte
		size  int
		flags []string
	}{
		{foreignSmallSQL, 1, nil},
		{foreignSmallSQL, 2, nil},
		{foreignSmallSQL, 3, nil},
		{foreignSmallSQL, 4, nil},
		{foreignSmallSQL, 7, nil},
		{foreignSmallSQL, 8, nil},
		{foreignSmallSQL, 15, nil},
		{foreignSmallSQL, 16, nil},
		{foreignSmallSQL, 17, nil},
		{foreignSmallSQL, 100, nil},
		{foreignSmallSQL, 0, nil}, // one object
		{foreignSmallSQL, 10, []string{"--kdf", "pbkdf2", "--iter", "1000"}},
		{f.sql, 4095, nil},
		{f.sql, 65536, []string{"--level", "1"}},
		{f.sql, 20_000, []string{"--level", "9", "--jobs", "1"}},
		{f.sql, 0, []string{"--kdf", "pbkdf2", "--iter", "12345"}},
		{f.sql, 0, nil},
		{f.sql, 1_000_000_000, nil},
	} {
		t.Run(fmt.Sprintf("%d in parts of %d %s", len(c.sql), c.size, strings.Join(c.flags, " ")), func(t *testing.T) {
			t.Parallel()
			store := t.TempDir()
			id := f.create(t, store, c.sql, append(c.flags, "--part-size", fmt.Sprint(c.size))...)

			var metadata struct {
				Parts []struct {
					Name string
					Size int
				}
				Sizes   struct{ Stored, Plain int }
				Recover string
			}
			if err := json.Unmarshal(readForeign(t, filepath.Join(store, id+".json")), &metadata); err != nil {
				t.Fatal(err)
			}
			stored := 0
			for i, p := range metadata.Parts {
				name := fmt.Sprintf("%s-%d", id, i)
				if c.size == 0 {
					name = id
				}
				last := i == len(metadata.Parts)-1
				if size := len(readForeign(t, filepath.Join(store, name))); p.Name != name || p.Size != size || c.size > 0 && (size > c.size || size != c.size && !last) {
					t.Errorf("part %d is %+v, %s has %d bytes", i, p, name, size)
				}
				stored += p.Size
			}
			want := []string{}
			if c.size > 0 {
				for i := range (stored + c.size - 1) / c.size {
					want = append(want, fmt.Sprintf("%s-%d", id, i))
				}
			} else {
				want = append(want, id)
			}
			want = append(want, id+".json", id+".sums", id+".toc")
			slices.Sort(want)
			if names := f.objects(t, store, id); !slices.Equal(names, want) {
				t.Errorf("the store holds %q", names)
			}
			if stored != metadata.Sizes.Stored || stored%16 != 0 || metadata.Sizes.Plain != len(c.sql) {
				t.Errorf("%d bytes are stored, of sizes %+v", stored, metadata.Sizes)
			}

			if !slices.Contains(c.flags, "pbkdf2") {
				if got := f.recoverByDocument(t, store, id, c.size == 0); !bytes.Equal(got, c.sql) {
					t.Errorf("by the document's commands %d bytes come out, not these %d", len(got), len(c.sql))
				}
			}
			writeForeign(t, filepath.Join(store, "key"), []byte(f.secret+"\n"))
			if got := foreignShell(t, store, metadata.Recover); !bytes.Equal(got, c.sql) {
				t.Errorf("by its own commands %d bytes come out, not these %d:\n%s", len(got), len(c.sql), metadata.Recover)
			}
			f.run(t, "restore", store, "--backup-id", id).wantSQL(t, c.sql)
		})
	}
}
