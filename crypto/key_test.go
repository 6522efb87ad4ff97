package crypto

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestPassphraseNeverPrints(t *testing.T) {
	t.Parallel()
	const secret = "Zq7Xw9-Kv3Jy"
	p := NewPassphrase([]byte(secret))
	var numbers []string
	for _, c := range []byte(secret) {
		numbers = append(numbers, strconv.Itoa(int(c)))
	}
	// What would betray it: as text, in hex, as a list of numbers, in base 64.
	traces := []string{
		secret, secret[:6], fmt.Sprintf("%x", secret), strings.Join(numbers, " "), strings.Join(numbers, ","),
		fmt.Sprintf("% x", secret), fmt.Sprintf("%#x", []byte(secret)[:1]) + ", ", fmt.Sprintf("%o", []byte(secret)[:3])[1:8],
		base64.StdEncoding.EncodeToString([]byte(secret))[:12],
	}
	check := func(how, printed string) {
		t.Helper()
		for _, trace := range traces {
			if strings.Contains(strings.ToLower(printed), strings.ToLower(trace)) {
				t.Errorf("%s betrays the passphrase: %s", how, printed)
				return
			}
		}
	}

	k := NewKey(p, "somewhere")
	k.ID() // whatever is kept from now on must not print either
	type inside struct {
		Name string
		Pass Passphrase
		Next *Passphrase
	}
	values := map[string]any{
		"passphrase":          p,
		"pointer":             &p,
		"struct":              inside{"n", p, &p},
		"pointer to struct":   &inside{"n", p, &p},
		"nested":              struct{ In inside }{inside{"n", p, &p}},
		"pointer within":      struct{ In *inside }{&inside{"n", p, &p}},
		"unexported":          struct{ p Passphrase }{p},
		"unexported pointer":  &struct{ p *Passphrase }{&p},
		"unexported key":      struct{ k Key }{*k},
		"anonymous":           struct{ Passphrase }{p},
		"slice":               []Passphrase{p, p},
		"slice of pointers":   []*Passphrase{&p},
		"map":                 map[string]Passphrase{"a": p},
		"map of any":          map[string]any{"a": p, "b": []any{&p}},
		"interface":           struct{ V any }{p},
		"key":                 k,
		"key itself":          *k,
		"keyring":             Keyring{k, k},
		"struct with key":     struct{ K *Key }{k},
		"struct with a key":   struct{ K Key }{*k},
		"options and the key": []any{Options{Derivation: MD5}, k, *k},
		"sealed key":          k.AsSealed(),
		"error":               fmt.Errorf("it failed with %v, %s, %q, %x: %w", p, p, p, p, errors.New("reason")),
		"error of a key":      fmt.Errorf("%v %+v", k, *k),
	}
	verbs := []string{
		"%v", "%+v", "%#v", "%s", "%q", "%+q", "%#q", "%x", "%X", "% x", "%#x", "%d", "%o", "%b", "%c", "%U", "%08b", "%t", "%e", "%p", "%10.3s", "%T",
	}
	for name, v := range values {
		for _, verb := range verbs {
			check(name+" by "+verb, fmt.Sprintf(verb, v))
		}
		check(name+" by Sprint", fmt.Sprint(v))
		check(name+" by Sprintln", fmt.Sprintln("text", v))
		if b, err := json.Marshal(v); err == nil {
			check(name+" as JSON", string(b))
		}
		for kind, handler := range map[string]func(io.Writer) slog.Handler{
			"text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
			"json": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
		} {
			var out strings.Builder
			log := slog.New(handler(&out))
			log.With("with", v).WithGroup("group").Info("message", "value", v, slog.Any("any", v), slog.Group("g", "in", v))
			log.Info(fmt.Sprint("message ", v))
			if out.Len() == 0 {
				t.Fatal("nothing was logged")
			}
			check(name+" logged as "+kind, out.String())
		}
	}
	// It prints as something that tells what is there.
	for _, v := range []any{p, &p} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d"} {
			if got := fmt.Sprintf(verb, v); got != redacted {
				t.Errorf("%s of %T prints %s", verb, v, got)
			}
		}
		if b, err := json.Marshal(v); err != nil || string(b) != `"`+redacted+`"` {
			t.Errorf("JSON of %T: %s, %v", v, b, err)
		}
	}
	if k.Passphrase().Reveal() != secret {
		t.Error("Reveal gives another passphrase")
	}

	for name, p := range map[string]Passphrase{
		"short": p, "long": NewPassphrase([]byte(strings.Repeat(secret, 50))), "quoted": NewPassphrase([]byte(secret + "'")),
		"return": NewPassphrase([]byte(secret + "\r")), "not ASCII": NewPassphrase([]byte(secret + "ß")),
	} {
		err := p.CheckNew(MD5)
		if err == nil {
			t.Errorf("%s: allowed", name)
			continue
		}
		check(name+" refused", fmt.Sprintf("%v %+v %#v", err, err, err))
	}
	err := WriteKeyFile(t.TempDir(), p)
	check("WriteKeyFile", fmt.Sprintf("%v %+v", err, err))
	_, err = ReadPassphrase(strings.NewReader(strings.Repeat(secret, maxKeyFile)))
	if err == nil {
		t.Error("an endless line passes")
	}
	check("ReadPassphrase", fmt.Sprintf("%v %+v", err, err))
}

func TestPassphraseIsACopy(t *testing.T) {
	t.Parallel()
	b := []byte("mutable")
	p := NewPassphrase(b)
	copy(b, "changed")
	if p.Reveal() != "mutable" || p.IsZero() {
		t.Errorf("%q", p.Reveal())
	}
	if !(Passphrase{}).IsZero() || !NewPassphrase(nil).IsZero() {
		t.Error("no passphrase is not zero")
	}
}

func TestCheckNew(t *testing.T) {
	t.Parallel()
	pbkdf2 := NewPBKDF2(DefaultIterations)
	long := strings.Repeat("x", MaxPassphrase+1)
	for _, c := range []struct {
		secret         string
		md5OK, otherOK bool
		text           string
	}{
		{testSecret, true, true, ""},
		{long[:16], true, true, ""},
		{long[:15], false, true, "at least 16"},
		{"x", false, true, "at least 16"},
		{"", false, false, "empty"},
		{long[1:], true, true, ""},
		{long, false, false, "512 at most"},
		{"sixteen and more $\\!*?()[]{}<>|&;#~%^=+-_.,:/@", true, true, ""},
		{"a carriage return\r", false, false, "carriage return"},
		{"a carriage\rreturn within", false, false, "printable ASCII"},
		{"a tab\twithin the passphrase", false, false, "printable ASCII"},
		{"a nul\x00within the passphrase", false, false, "printable ASCII"},
		{"delete within \x7f", false, false, "printable ASCII"},
		{"sechzehn Zeichen und eine Größe", false, false, "printable ASCII"},
		{"it's sixteen and more", false, false, "quote"},
		{`"sixteen and more"`, false, false, "quote"},
		{"`sixteen and more`", false, false, "quote"},
	} {
		p := NewPassphrase([]byte(c.secret))
		for d, ok := range map[Derivation]bool{MD5: c.md5OK, {}: c.md5OK, SHA256: c.md5OK, pbkdf2: c.otherOK} {
			err := p.CheckNew(d)
			if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("%q with %v: %v", c.secret, d, err)
			}
		}
	}
	// What may encrypt a new backup works in the document's own command.
	plain := []byte("SELECT 1;\n")
	p := NewPassphrase([]byte("sixteen and more $HOME \\ !*?()[]{}<>|&;#~%^=+-_.,:/@ "))
	if err := p.CheckNew(MD5); err != nil {
		t.Fatal(err)
	}
	stream := seal(t, plain, p, nil, allAtOnce)
	if got := openssl(t, stream, "enc", "-aes256", "-md", "md5", "-d", "-pass", "pass:"+p.Reveal()); !bytes.Equal(got, plain) {
		t.Errorf("openssl reads %q", got)
	}
}

// opensslKDF returns what "openssl kdf" derives.
func opensslKDF(t *testing.T, kdf string, options ...string) []byte {
	t.Helper()
	args := []string{"kdf", "-keylen", "32", "-kdfopt", "digest:SHA256", "-binary"}
	for _, o := range options {
		args = append(args, "-kdfopt", o)
	}
	return openssl(t, nil, append(args, kdf)...)
}

func TestKeyAgainstOpenSSL(t *testing.T) {
	t.Parallel()
	text := []byte(`{"version": 1, "mac": "`)
	for _, secret := range []string{testSecret, "another passphrase"} {
		k := NewKey(NewPassphrase([]byte(secret)), "test")
		master := hex.EncodeToString(opensslKDF(t, "PBKDF2", "pass:"+secret, "salt:dump v1", "iter:600000"))
		id := hex.EncodeToString(opensslKDF(t, "HKDF", "hexkey:"+master, "info:key id"))[:16]
		if k.ID() != id {
			t.Errorf("key ID %s, by openssl %s", k.ID(), id)
		}
		for _, salt := range []string{"0000000000000000", "0102030405060708", "ff00ff00ff00ff00"} {
			key := opensslKDF(t, "HKDF", "hexkey:"+master, "hexsalt:"+salt, "info:metadata mac")
			want := openssl(t, text, "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:"+hex.EncodeToString(key), "-binary")
			raw, err := hex.DecodeString(salt)
			if err != nil {
				t.Fatal(err)
			}
			mac := k.MetadataMAC(raw)
			mac.Write(text)
			if got := mac.Sum(nil); !bytes.Equal(got, want) {
				t.Errorf("MAC with salt %s is %x, by openssl %x", salt, got, want)
			}
		}
	}
}

func TestKeyring(t *testing.T) {
	t.Parallel()
	a, b := NewKey(NewPassphrase([]byte("a")), "first"), NewKey(NewPassphrase([]byte("b")), "second")
	ring := Keyring{a, b}
	if ring.Find(a.ID()) != a || ring.Find(b.ID()) != b || a.ID() == b.ID() {
		t.Error("a key is not found by its ID")
	}
	for _, id := range []string{"", "0123456789abcdef", strings.ToUpper(a.ID())} {
		if k := ring.Find(id); k != nil {
			t.Errorf("%q finds %s", id, k.Source)
		}
	}
	if Keyring(nil).Find(a.ID()) != nil {
		t.Error("no keys, and one is found")
	}
}

func TestKeyIDFromSeveralGoroutines(t *testing.T) {
	t.Parallel()
	k := NewKey(testPass, "test")
	ids := make([]string, 4)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i] = k.ID() })
	}
	wg.Wait()
	if len(ids[0]) != 16 || slices.ContainsFunc(ids, func(id string) bool { return id != k.ID() }) {
		t.Errorf("IDs %q", ids)
	}
}

func TestReadKeyFile(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", maxKeyFile-2)
	for content, want := range map[string]string{
		"secret\n":           "secret",
		"secret":             "secret",
		"secret\r\n":         "secret\r",
		"secret\r":           "secret\r",
		"secret\nmore\n":     "secret",
		"secret\n\n":         "secret",
		" secret \n":         " secret ",
		"\tsecret\t":         "\tsecret\t",
		"\xef\xbb\xbfsecret": "\xef\xbb\xbfsecret", // a byte order mark is part of it for openssl too
		long + "\n":          long[:1023],          // as openssl cuts it
		long[:5000]:          long[:1023],
		long[:1023] + "\n":   long[:1023],
	} {
		k, err := ReadKeyFile(keyFile(t, content))
		if err != nil {
			t.Errorf("%.20q: %v", content, err)
		} else if got := k.Passphrase().Reveal(); got != want {
			t.Errorf("%.20q gives %.20q", content, got)
		}
		if p, err := ReadPassphrase(strings.NewReader(content)); err != nil || p.Reveal() != want {
			t.Errorf("%.20q from a reader: %v", content, err)
		}
	}
	for content, text := range map[string]string{
		"":                      "empty",
		"\n":                    "empty",
		"\nsecret\n":            "empty",
		long + "kkk\n":          "longer than",
		long + long:             "longer than",
		long + long + "\n":      "longer than",
		strings.Repeat(long, 3): "longer than",
	} {
		path := keyFile(t, content)
		k, err := ReadKeyFile(path)
		if k != nil || err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "kkk") {
			t.Errorf("%.20q: %v, %v", content, k, err)
		}
		if _, err := ReadPassphrase(strings.NewReader(content)); err == nil {
			t.Errorf("%.20q from a reader passes", content)
		}
	}
	dir := t.TempDir()
	if _, err := ReadKeyFile(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := ReadKeyFile(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("folder: %v", err)
	}
	if k, err := ReadKeyFile("/dev/null"); err == nil {
		t.Errorf("/dev/null gives %v", k)
	}
}

// A FIFO is read to the end of its first line and no further, as with <(command).
func TestReadKeyFIFO(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("from a ")
		}
		if err == nil {
			_, err = f.WriteString("FIFO\n")
		}
		<-read // still open, with nothing more to come
		done <- errors.Join(err, f.Close())
	}()
	k, err := ReadKeyFile(path)
	close(read)
	if err != nil || k.Passphrase().Reveal() != "from a FIFO" {
		t.Errorf("%v, %v", k, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// commandEnv is what key commands of these tests get: nothing but a path.
var commandEnv = []string{"PATH=" + os.Getenv("PATH")}

func TestRunKeyCommand(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]string{
		"echo secret":                              "secret",
		"printf secret":                            "secret",
		"printf 'secret\\r\\nmore\\n'":             "secret\r",
		"echo ' spaces  within '":                  " spaces  within ",
		"echo a; echo b":                           "a",
		"echo one | tr a-z A-Z":                    "ONE",
		"head -c 100000 /dev/zero >&2; echo quiet": "quiet",
		"printf 'no newline'; exit 0":              "no newline",
	} {
		k, err := RunKeyCommand(t.Context(), command, commandEnv, io.Discard)
		if err != nil || k.Passphrase().Reveal() != want || k.Source != "key command" {
			t.Errorf("%s: %v, %v", command, k, err)
		}
	}
	for command, text := range map[string]string{
		"echo hunter2hunter2; exit 3":                        "exit status 3",
		"echo hunter2hunter2; kill -9 $$":                    "signal: killed",
		"echo hunter2hunter2; ./no-such-program":             "exit status 127",
		"true":                                               "empty",
		"echo; echo hunter2hunter2":                          "empty",
		"yes hunter2hunter2 | head -c 1000000 | tr -d '\\n'": "longer",
	} {
		k, err := RunKeyCommand(t.Context(), command, commandEnv, io.Discard)
		if k != nil || err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, %v", command, k, err)
			continue
		}
		for _, verb := range []string{"%v", "%+v", "%#v"} {
			if s := fmt.Sprintf(verb, err); strings.Contains(s, "hunter2") {
				t.Errorf("%s: its output is in the error: %s", command, s)
			}
		}
	}
}

func TestRunKeyCommandSurroundings(t *testing.T) {
	t.Setenv("DUMP_KEY", "of the parent")
	t.Setenv("OTHER", "of the parent")
	var stderr bytes.Buffer
	k, err := RunKeyCommand(t.Context(), `echo "words for people" >&2; echo "[$DUMP_KEY$OTHER$GIVEN]"`,
		append(commandEnv, "GIVEN=given"), &stderr)
	if err != nil || k.Passphrase().Reveal() != "[given]" {
		t.Errorf("%q, %v: the environment is not the one given", k.Passphrase().Reveal(), err)
	}
	if stderr.String() != "words for people\n" {
		t.Errorf("standard error is %q", &stderr)
	}
	k, err = RunKeyCommand(t.Context(), `printf '[%s]' "$DUMP_KEY$DUMP_KEY_FILE$OTHER"`, WithoutSecrets(os.Environ()), io.Discard)
	if err != nil || k.Passphrase().Reveal() != "[of the parent]" {
		t.Errorf("%q, %v", k.Passphrase().Reveal(), err)
	}
}

// A cancelled command does not wait for what it has started.
func TestRunKeyCommandCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	pid := 0
	k, err := RunKeyCommand(ctx, "sleep 1000 & echo $! >&2; wait; echo secret", commandEnv, writerFunc(func(p []byte) (int, error) {
		pid, _ = strconv.Atoi(strings.TrimSpace(string(p)))
		cancel()
		return len(p), nil
	}))
	cancel()
	if pid == 0 {
		t.Fatalf("the command did not start: %v", err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("what the command has started is gone, so it was waited for: %v", err)
	}
	if k != nil || err == nil {
		t.Errorf("%v, %v", k, err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestWithoutSecrets(t *testing.T) {
	t.Parallel()
	env := []string{
		"PATH=/bin", "DUMP_KEY=secret", "HOME=/", "DUMP_KEY_COMMAND=cat", "DUMP_=x", "MY_DUMP_KEY=kept",
		"DUMPLING=kept", "X=DUMP_KEY=kept", "dump_key=kept", "PGPASSWORD=kept", "",
	}
	before := slices.Clone(env)
	got := WithoutSecrets(env)
	want := []string{"PATH=/bin", "HOME=/", "MY_DUMP_KEY=kept", "DUMPLING=kept", "X=DUMP_KEY=kept", "dump_key=kept", "PGPASSWORD=kept", ""}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if !slices.Equal(env, before) {
		t.Error("its argument was changed")
	}
	if got := WithoutSecrets(nil); len(got) != 0 {
		t.Errorf("%q of nothing", got)
	}
}

func TestGenerate(t *testing.T) {
	t.Parallel()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	const keys = 20_000
	count := make(map[rune]int)
	seen := make(map[string]bool)
	for range keys {
		p := Generate()
		s := p.Reveal()
		if len(s) != KeyLength || strings.Trim(s, alphabet) != "" {
			t.Fatalf("%q", s)
		}
		if seen[s] {
			t.Fatalf("%q twice", s)
		}
		seen[s] = true
		for _, c := range s {
			count[c]++
		}
		if err := p.CheckNew(MD5); err != nil {
			t.Fatal(err)
		}
	}
	// 10,323 of each are expected with a standard deviation of 101; a letter off by
	// eight of these is no chance. Remainders of bytes by 62 would be off by twenty.
	const mean = keys * KeyLength / len(alphabet)
	for _, c := range alphabet {
		if n := count[c]; n < mean-800 || n > mean+800 {
			t.Errorf("%c occurs %d times, %d are expected", c, n, mean)
		}
	}
}

// umask is the process's, so this test is not parallel to others.
func TestWriteKeyFile(t *testing.T) {
	for _, mask := range []int{0, 0o002, 0o022, 0o027, 0o077} {
		old := syscall.Umask(mask)
		defer syscall.Umask(old)
		dir := t.TempDir()
		path := filepath.Join(dir, "new", "dump", "key")
		if err := WriteKeyFile(path, testPass); err != nil {
			t.Fatal(err)
		}
		for name, mode := range map[string]fs.FileMode{
			path: 0o600, filepath.Dir(path): 0o700 | fs.ModeDir, filepath.Join(dir, "new"): 0o700 | fs.ModeDir,
		} {
			if info, err := os.Stat(name); err != nil || info.Mode() != mode {
				t.Errorf("umask %03o: %s has mode %v, %v", mask, name, info.Mode(), err)
			}
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != testSecret+"\n" {
			t.Errorf("it holds %q, %v", b, err)
		}
		k, err := ReadKeyFile(path)
		if err != nil || k.Passphrase().Reveal() != testSecret {
			t.Errorf("read back: %v, %v", k, err)
		}
	}
}

func TestWriteKeyFileRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("old"), []byte("the only copy\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"dangling": "nowhere", "link": "old", "loop": "loop"} {
		if err := os.Symlink(target, path(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path("folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"old", "dangling", "link", "loop", "folder"} {
		if err := WriteKeyFile(path(name), testPass); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := WriteKeyFile(path("old/key"), testPass); err == nil {
		t.Error("a file served as a folder")
	}
	if b, err := os.ReadFile(path("old")); err != nil || string(b) != "the only copy\n" {
		t.Errorf("the existing file now holds %q, %v", b, err)
	}
	if info, err := os.Stat(path("old")); err != nil || info.Mode() != 0o640 {
		t.Errorf("the existing file has mode %v, %v", info.Mode(), err)
	}
	if _, err := os.Lstat(path("nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dangling link was followed: %v", err)
	}
	var names []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"dangling", "folder", "link", "loop", "old"}; !slices.Equal(names, want) {
		t.Errorf("the folder holds %q", names)
	}
}
