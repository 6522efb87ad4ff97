package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Opener makes a Bucket of a URL. It must not create anything, and its errors must not contain the values of u's
// query, nor its names where it does not know them: people put secrets there. u never has user information. For the scheme
// "file" u.Path may be relative, which in text it could not be. o is complete.
type Opener func(ctx context.Context, u *url.URL, o Options) (Bucket, error)

var (
	openersMu sync.RWMutex
	openers   = map[string]Opener{}
)

// Register makes a backend known under a URL scheme in lower case; a backend calls it in its init. It panics when
// open is nil or the scheme is taken.
func Register(scheme string, open Opener) {
	openersMu.Lock()
	defer openersMu.Unlock()
	if open == nil {
		panic("storage: Register without an opener for " + scheme)
	}
	if _, taken := openers[scheme]; taken {
		panic("storage: Register called twice for " + scheme)
	}
	openers[scheme] = open
}

// OpenURL opens the store that a user named: a URL of a registered scheme, or a plain path, which goes to the scheme
// "file" as it stands. Nothing is created by it. nil options are the defaults. Errors name the URL as Redact shows it.
// The bucket repeats what fails for a while, see Resume; As finds what the backend can do besides.
func OpenURL(ctx context.Context, rawURL string, options *Options) (Bucket, error) {
	o := options.WithDefaults()
	if rawURL == "" {
		return nil, errors.New("store: empty URL")
	}
	scheme, rest, ok := strings.Cut(rawURL, ":")
	scheme = strings.ToLower(scheme)
	if !ok || !isScheme(scheme) || !strings.HasPrefix(rest, "//") {
		// "s3:bucket" is a mistake more probably than a directory of that name, which can still be had as "./s3:bucket".
		if ok && opener(scheme) != nil {
			return nil, fmt.Errorf("store %s: write %s://…, or ./%s:… for a directory of that name", Redact(rawURL), scheme, scheme)
		}
		if strings.ContainsRune(rawURL, 0) {
			return nil, errors.New("store: path contains a NUL character")
		}
		return open(ctx, "file", &url.URL{Scheme: "file", Path: rawURL}, o)
	}
	if opener(scheme) == nil {
		return nil, unknownScheme(scheme, rawURL)
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		// The reason is left out: it quotes pieces of the URL, which may be pieces of a password.
		return nil, fmt.Errorf("store %s: not a valid URL", Redact(rawURL))
	}
	if u.User != nil {
		return nil, fmt.Errorf("store %s: user and password do not belong into the URL; credentials come from where the service's own tools take them", Redact(rawURL))
	}
	return open(ctx, scheme, u, o)
}

func open(ctx context.Context, scheme string, u *url.URL, options Options) (Bucket, error) {
	o := opener(scheme)
	if o == nil {
		return nil, unknownScheme(scheme, u.Path)
	}
	b, err := o(ctx, u, options)
	if err != nil {
		return nil, err
	}
	return Resume(b, &options), nil
}

func opener(scheme string) Opener {
	openersMu.RLock()
	defer openersMu.RUnlock()
	return openers[scheme]
}

func unknownScheme(scheme, rawURL string) error {
	openersMu.RLock()
	defer openersMu.RUnlock()
	known := strings.Join(slices.Sorted(maps.Keys(openers)), ", ")
	if known == "" {
		known = "none"
	}
	return fmt.Errorf("store %s: unknown scheme %q (known: %s)", Redact(rawURL), scheme, known)
}

// isScheme tells whether s, in lower case, has the syntax of a URL scheme (RFC 3986, 3.1).
func isScheme(s string) bool {
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789+-.", rune(c))) {
			return false
		}
	}
	return s != ""
}

// Redact returns a URL for people to read: without user, password, query and fragment. It works on text, because a URL
// that cannot be parsed may hold a password too, and where it cannot tell what is a password it leaves out more. A
// plain path comes back as it is.
func Redact(rawURL string) string {
	scheme, rest, ok := strings.Cut(rawURL, ":")
	if !ok || !isScheme(strings.ToLower(scheme)) || strings.HasPrefix(scheme, ".") {
		return rawURL
	}
	if !strings.HasPrefix(rest, "//") {
		if opener(strings.ToLower(scheme)) == nil {
			return rawURL // a path with a colon
		}
		return scheme + ":…"
	}
	rest = rest[2:]
	tail := ""
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest, tail = rest[:i], rest[i:]
	}
	if strings.Contains(tail, "@") {
		return scheme + "://…" // the question mark may stand inside a password
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		// "bucket/pg@host" is a path, "key:pass/word@bucket" and "key@bucket" are not.
		if before := rest[:at]; strings.Contains(before, ":") || !strings.Contains(before, "/") {
			rest = rest[at+1:]
		}
	}
	return scheme + "://" + rest
}
