package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Prefix returns the folder that the path of a store's URL names, as it stands before every key: "" or ending in a
// slash. Names that clients and proxies on the way would change are refused.
func Prefix(u *url.URL) (string, error) {
	path := strings.Trim(u.Path, "/")
	if path == "" {
		return "", nil
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("store %s: a folder in the path is empty or consists of dots", Redact(u.String()))
		}
	}
	if !utf8.ValidString(path) || strings.ContainsFunc(path, func(r rune) bool { return r == '\\' || unicode.IsControl(r) }) {
		return "", fmt.Errorf("store %s: a backslash or a control character in the path", Redact(u.String()))
	}
	return path + "/", nil
}

// URL returns the URL of a store in one way of writing it, for people too: options are sorted, and colons and slashes
// in them stand as they are.
func URL(scheme, host, prefix string, options url.Values) string {
	query := strings.NewReplacer("%3A", ":", "%2F", "/").Replace(options.Encode())
	return (&url.URL{Scheme: scheme, Host: host, Path: strings.TrimSuffix("/"+prefix, "/"), RawQuery: query}).String()
}

// Fill reads size bytes from r, or up to r's end, into buf, which it grows as data come, so that a small object takes
// little memory. It looks at ctx between reads. err is ctx's or r's own; the end of r is none.
func Fill(ctx context.Context, r io.Reader, buf []byte, size int) (data []byte, end bool, err error) {
	data = buf[:0]
	for len(data) < size {
		if err := ctx.Err(); err != nil {
			return data, false, err
		}
		if len(data) == cap(data) {
			grown := make([]byte, len(data), min(max(2*cap(data), 64<<10), size))
			copy(grown, data)
			data = grown
		}
		n, err := r.Read(data[len(data):min(cap(data), size)])
		data = data[:len(data)+n]
		if err == io.EOF {
			return data, true, ctx.Err()
		}
		if err != nil {
			return data, false, err
		}
	}
	return data, false, ctx.Err()
}

// NewTransport returns what HTTP requests to a store go through. A request that makes no progress for timeout, neither
// sending nor receiving, fails with an error that matches ErrTemporary; time in which the caller does not read the
// answer does not count. caBundle is a file of PEM certificates that are trusted besides those of the system; empty
// is none. insecure switches the check of the server's certificate off.
func NewTransport(timeout time.Duration, caBundle string, insecure bool) (http.RoundTripper, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true // ranges and lengths are those of the stored bytes
	t.MaxIdleConnsPerHost = 16
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: insecure}
	if caBundle != "" {
		pem, err := os.ReadFile(caBundle)
		if err != nil {
			return nil, fmt.Errorf("ca-bundle: %w", err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca-bundle %s: no PEM certificate in it", caBundle)
		}
		t.TLSClientConfig.RootCAs = roots
	}
	return &stallTransport{t, timeout}, nil
}

type stallTransport struct {
	base    http.RoundTripper
	timeout time.Duration
}

// stalledError is temporary, and no error of a context: that would look like the caller's own.
type stalledError struct{ timeout time.Duration }

func (e *stalledError) Error() string   { return fmt.Sprintf("no progress for %s", e.timeout) }
func (e *stalledError) Is(t error) bool { return t == ErrTemporary }

func (t *stallTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{ctx: ctx, cancel: cancel, timeout: t.timeout, sending: true}
	w.timer = time.AfterFunc(t.timeout, func() { cancel(&stalledError{t.timeout}) })
	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &sentBody{req.Body, w}
		if get := req.GetBody; get != nil {
			req.GetBody = func() (io.ReadCloser, error) {
				b, err := get()
				return &sentBody{b, w}, err
			}
		}
	}
	resp, err := t.base.RoundTrip(req)
	w.sent()
	if err != nil {
		err = w.explain(err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &receivedBody{resp.Body, w}
	return resp, nil
}

// watch cancels a request that stands still.
type watch struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timeout time.Duration
	timer   *time.Timer
	mu      sync.Mutex
	sending bool // until the header of the answer is there; the body may still be read a while after
}

func (w *watch) progress() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sending {
		w.timer.Reset(w.timeout)
	}
}

func (w *watch) sent() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sending = false
	w.timer.Stop()
}

// explain returns why the request was cancelled, if it was so by the watch.
func (w *watch) explain(err error) error {
	var stalled *stalledError
	if errors.As(context.Cause(w.ctx), &stalled) {
		return stalled
	}
	return err
}

type sentBody struct {
	io.ReadCloser
	w *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.w.progress()
	return b.ReadCloser.Read(p)
}

type receivedBody struct {
	io.ReadCloser
	w *watch
}

func (b *receivedBody) Read(p []byte) (int, error) {
	b.w.timer.Reset(b.w.timeout)
	n, err := b.ReadCloser.Read(p)
	b.w.timer.Stop()
	if err != nil && err != io.EOF {
		err = b.w.explain(err)
	}
	return n, err
}

func (b *receivedBody) Close() error {
	defer b.w.cancel(nil)
	return b.ReadCloser.Close()
}

// NetworkError returns the cause for people and the kind of an error that a request failed with before there was an
// answer, or while its body was read. The kind is ErrTemporary for most of them, ErrNotFound where the host does not
// exist, and nil where trying again is no use, as with a certificate that is not trusted. The cause never matches
// io.EOF, which to callers is the end of the data.
func NetworkError(err error) (cause, kind error) {
	var (
		dns    *net.DNSError
		cert   *tls.CertificateVerificationError
		notTLS tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("connection closed: %w", io.ErrUnexpectedEOF), ErrTemporary
	case errors.As(err, &dns) && dns.IsNotFound:
		return err, ErrNotFound
	case errors.As(err, &cert), errors.As(err, &notTLS), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return err, nil
	}
	return err, ErrTemporary
}

// Retry decides whether one request is tried again. The zero value with Patience and Logger is ready.
type Retry struct {
	Patience time.Duration
	Logger   *slog.Logger
	Op, Key  string // for the log

	mu       sync.Mutex
	failed   int
	deadline time.Time
}

// Again tells whether to try again after this failure, which the caller knows to be temporary. Patience counts from
// the first failure, so that an attempt that took long before it failed gets its second.
func (r *Retry) Again(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.failed++
	if r.deadline.IsZero() {
		r.deadline = now.Add(r.Patience)
	}
	r.Logger.Info("attempt failed", "op", r.Op, "key", r.Key, "failed", r.failed, "err", err)
	return now.Before(r.deadline)
}

// Progress begins a new request: patience starts anew.
func (r *Retry) Progress() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = time.Time{}
}

// Failed returns how many attempts failed. Where one did, the outcome of what was tried may not be what the last answer says.
func (r *Retry) Failed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// Pauses returns the shortest and the longest pause between attempts, in between which it should double.
func (o Options) Pauses() (initial, longest time.Duration) {
	return min(500*time.Millisecond, o.Patience/20), min(time.Minute, o.Patience/4)
}
