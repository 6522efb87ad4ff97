package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"encdump/storage"
	_ "encdump/storage/file"
)

// opened is what the test's own scheme was opened with.
type opened struct {
	storage.Bucket
	u *url.URL
}

func (o opened) String() string { return o.u.Host + o.u.Path }

func init() {
	storage.Register("test", func(_ context.Context, u *url.URL, _ storage.Options) (storage.Bucket, error) {
		if u.Host == "broken" {
			return nil, errors.New("broken")
		}
		return opened{u: u}, nil
	})
}

func TestOpenURLPaths(t *testing.T) {
	for in, want := range map[string]string{
		"/var/backups/pg":                  "/var/backups/pg",
		"/var/backups/pg/":                 "/var/backups/pg/",
		"backups":                          "backups",
		"./backups":                        "./backups",
		"../a b/%20?x#y":                   "../a b/%20?x#y",
		"./file:x":                         "./file:x",
		"./file://x":                       "./file://x",
		"C:x":                              "C:x",
		"12:30":                            "12:30",
		"user:pw@host":                     "user:pw@host",
		"nosuch:path":                      "nosuch:path",
		"dir/test://x":                     "dir/test://x",
		"file:///var/backups/pg":           "/var/backups/pg",
		"FILE:///x":                        "/x",
		"file:///a%20b/%3F%23":             "/a b/?#",
		"file://localhost/var/backups":     "/var/backups",
		"file:///var/lib/postgresql@host/": "/var/lib/postgresql@host/",
	} {
		b, err := storage.OpenURL(t.Context(), in, nil)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if b.String() != want {
			t.Errorf("%s opened %q, want %q", in, b, want)
		}
		again, err := storage.OpenURL(t.Context(), b.String(), nil)
		if err != nil || again.String() != want {
			t.Errorf("%s: its String %q opened %v, %v", in, b, again, err)
		}
	}
}

func TestOpenURLReachesTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b%20")
	b, err := storage.OpenURL(t.Context(), (&url.URL{Scheme: "file", Path: dir}).String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("opening made the directory")
	}
	if err := b.Put(t.Context(), "key", strings.NewReader("x"), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "key")); string(got) != "x" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestOpenURLSchemes(t *testing.T) {
	b, err := storage.OpenURL(t.Context(), "Test://bucket/some/prefix?endpoint=http%3A%2F%2Fhost%3A9000&path-style=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	o, ok := storage.As[opened](b)
	if !ok {
		t.Fatalf("As does not find the backend in %T", b)
	}
	u := o.u
	if u.Host != "bucket" || u.Path != "/some/prefix" || u.Query().Get("endpoint") != "http://host:9000" || u.Query().Get("path-style") != "true" {
		t.Errorf("opener got %v", u)
	}
	_, err = storage.OpenURL(t.Context(), "s3x://bucket/prefix", nil)
	if err == nil || err.Error() != `store s3x://bucket/prefix: unknown scheme "s3x" (known: file, test)` {
		t.Errorf("unknown scheme: %v", err)
	}
	for in, want := range map[string]string{
		"":                    "empty",
		"test:bucket":         "write test://",
		"test:/bucket":        "write test://",
		"file:/var/backups":   "write file://",
		"file:backups":        "write file://",
		"file://backups/pg":   "three slashes",
		"file://./backups":    "three slashes",
		"file://":             "without a path",
		"file:///x?mode=0600": "no options",
		"file:///x?":          "no options",
		"file:///x#y":         "no options",
		"file:///%00":         "NUL",
		"/x\x00":              "NUL",
		"test://broken":       "broken",
		"://x":                "", // a path, as odd as it is
	} {
		_, err := storage.OpenURL(t.Context(), in, nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

// Whatever is wrong with a URL, what may be a password in it is not repeated.
func TestErrorsWithoutCredentials(t *testing.T) {
	for _, scheme := range []string{"test", "unknown", "file", "TEST"} {
		for _, rest := range []string{
			"user:SECRET@bucket/prefix", "user:SECRET@broken", "SECRET@bucket/prefix", ":SECRET@bucket", "user:SECRET@",
			"user:SEC/SECRET@bucket", "user:SEC?SECRET@bucket", "user:SECRET?x@bucket", "user:SECRET#x@bucket", "user:SEC#SECRET@bucket/x", "user:SECRET%zz@bucket", "user:SEC@SECRET@bucket",
			"user:SECRET/x@bucket/a@b", "user:SECRET@x?SECRET@bucket",
			"[user:SECRET@bucket", "user:SECRET@bucket:port/", "user:SECRET\x01@bucket", "user: SECRET@bucket",
			"bucket:port/prefix?secret=SECRET", "bucket\x7f/?key=SECRET&sig=a@b", "user:SECRET@bucket?key=SECRET#SECRET",
		} {
			in := scheme + "://" + rest
			b, err := storage.OpenURL(t.Context(), in, nil)
			if err == nil {
				t.Errorf("%q opened %v", in, b)
			} else if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%q: error %q", in, err)
			}
			if got := storage.Redact(in); strings.Contains(got, "SECRET") {
				t.Errorf("%q redacted is %q", in, got)
			}
		}
	}
	for _, in := range []string{"test:user:SECRET@bucket", "test:/user:SECRET@bucket", "file:///x?key=SECRET", "file:///x?SECRET", "file:///x#SECRET", "unknown://bucket?key=SECRET"} {
		if _, err := storage.OpenURL(t.Context(), in, nil); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%q: error %v", in, err)
		}
	}
}

func TestRedactKeepsWhatIsNoSecret(t *testing.T) {
	for in, want := range map[string]string{
		"/var/backups/pg@host":         "/var/backups/pg@host",
		"../x:y@z":                     "../x:y@z",
		"s3://bucket/prefix":           "s3://bucket/prefix",
		"s3://bucket/pg@host":          "s3://bucket/pg@host",
		"s3://bucket/prefix?region=eu": "s3://bucket/prefix",
		"s3://key:pass@bucket/prefix":  "s3://bucket/prefix",
		"s3://key:12/pass@bucket":      "s3://bucket", // though it parses, with a port
	} {
		if got := storage.Redact(in); got != want {
			t.Errorf("%s redacted is %s, want %s", in, got, want)
		}
	}
}

func TestRegisterPanics(t *testing.T) {
	for name, register := range map[string]func(){
		"nil": func() { storage.Register("other", nil) },
		"twice": func() {
			storage.Register("file", func(context.Context, *url.URL, storage.Options) (storage.Bucket, error) { return nil, nil })
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			register()
		}()
	}
}

func TestError(t *testing.T) {
	cause := fmt.Errorf("cause: %w", io.ErrUnexpectedEOF)
	for want, e := range map[string]*storage.Error{
		"put 1234-0 to /var/backups/pg: no space left on device": {Op: "put", Key: "1234-0", Bucket: "/var/backups/pg", Err: errors.New("no space left on device")},
		"open a b from s3://bucket: not found":                   {Op: "open", Key: "a b", Bucket: "s3://bucket", Kind: storage.ErrNotFound},
		"read x from s3://bucket: cause: unexpected EOF":         {Op: "read", Key: "x", Bucket: "s3://bucket", Kind: storage.ErrTemporary, Err: cause},
		"delete x from here: already exists":                     {Op: "delete", Key: "x", Bucket: "here", Err: storage.ErrExists},
		"list backups: permission denied":                        {Op: "list", Bucket: "backups", Kind: storage.ErrPermission},
		"list x in backups: cause: unexpected EOF":               {Op: "list", Key: "x", Bucket: "backups", Err: cause},
		`put "a\nb\x1b[31m" to "\xff": boom`:                     {Op: "put", Key: "a\nb\x1b[31m", Bucket: "\xff", Err: errors.New("boom")},
	} {
		if got := e.Error(); got != want {
			t.Errorf("error reads %q, want %q", got, want)
		}
		if e.Kind != nil && !errors.Is(e, e.Kind) || e.Err != nil && !errors.Is(e, e.Err) {
			t.Errorf("%v does not match its kind and cause", e)
		}
		if errors.Is(e, context.Canceled) {
			t.Errorf("%v matches what it should not", e)
		}
	}
	if e := (&storage.Error{Err: cause}); !errors.Is(e, io.ErrUnexpectedEOF) {
		t.Error("the cause's cause is not found")
	}
}

func TestValidKey(t *testing.T) {
	for _, key := range []string{"a", "1234-0", "a.json", "a b", "100%", "a?b#c", `a\b`, "ä", "日本", "😀", "-", "~", strings.Repeat("k", storage.MaxKey)} {
		if err := storage.ValidKey(key); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
	for _, key := range []string{"", ".", "..", ".a", "/", "a/b", "a/", "\x00", "a\x00", "a\tb", "a\n", "\x7f", "\u0085", "\xff", "a\xc3", strings.Repeat("k", storage.MaxKey+1)} {
		if err := storage.ValidKey(key); err == nil {
			t.Errorf("%q is valid", key)
		}
	}
}
