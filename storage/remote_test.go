package storage

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// slow yields n bytes, one after each pause, and notices when ctx is done.
type slow struct {
	ctx   context.Context
	n     int
	pause time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-time.After(s.pause):
	}
	s.n--
	p[0] = 'x'
	return 1, nil
}

func (s *slow) Close() error { return nil }

// What moves is not cut off, however long it takes; what stands still is, and that is no error of the caller's context.
func TestStall(t *testing.T) {
	const timeout = time.Minute
	for _, test := range []struct {
		name                   string
		send, answer, received time.Duration // pauses
		consumer               time.Duration
		cancelled              bool
		want                   error
	}{
		{"all in time", timeout / 2, timeout / 2, timeout / 2, 0, false, nil},
		{"consumer takes its time", 0, 0, 0, 10 * timeout, false, nil},
		{"sending stalls", 2 * timeout, 0, 0, 0, false, ErrTemporary},
		{"no answer", 0, 2 * timeout, 0, 0, false, ErrTemporary},
		{"answer stalls", 0, 0, 2 * timeout, 0, false, ErrTemporary},
		{"caller gives up", 0, timeout / 2, 0, 0, true, context.Canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := &stallTransport{roundTrip(func(r *http.Request) (*http.Response, error) {
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						return nil, err
					}
					select {
					case <-r.Context().Done():
						return nil, r.Context().Err()
					case <-time.After(test.answer):
					}
					return &http.Response{Body: &slow{r.Context(), 10, test.received}}, nil
				}), timeout}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.cancelled {
					time.AfterFunc(timeout/4, cancel)
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://host/", &slow{ctx, 10, test.send})
				if err != nil {
					t.Fatal(err)
				}
				resp, err := transport.RoundTrip(req)
				var got []byte
				if err == nil {
					p := make([]byte, 1)
					for err == nil {
						time.Sleep(test.consumer)
						var n int
						n, err = resp.Body.Read(p)
						got = append(got, p[:n]...)
					}
					resp.Body.Close()
				}
				if test.want == nil && (err != io.EOF || len(got) != 10) || test.want != nil && !errors.Is(err, test.want) {
					t.Errorf("%d bytes, %v; want %v", len(got), err, test.want)
				}
				if test.want == ErrTemporary && (errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "no progress for 1m")) {
					t.Errorf("error %q", err)
				}
			})
		})
	}
}

// Patience counts from the first failure, and anew after progress.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &Retry{Patience: time.Minute, Logger: slog.New(slog.DiscardHandler)}
		time.Sleep(time.Hour)
		for _, step := range []struct {
			after time.Duration
			want  bool
		}{{0, true}, {59 * time.Second, true}, {time.Second, false}} {
			time.Sleep(step.after)
			if got := r.Again(errors.New("failed")); got != step.want {
				t.Errorf("after %s more: %v", step.after, got)
			}
		}
		r.Progress()
		if !r.Again(errors.New("failed")) || r.Failed() != 4 {
			t.Errorf("progress did not help; %d failures", r.Failed())
		}
	})
}

func TestTransportTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(bundle, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	get := func(bundle string, insecure bool, url string) error {
		transport, err := NewTransport(time.Minute, bundle, insecure)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Get(url)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(bundle, false, server.URL); err != nil {
		t.Error(err)
	}
	if err := get("", true, server.URL); err != nil {
		t.Error(err)
	}
	// What is no use to try again.
	err := get("", false, server.URL)
	if err == nil {
		t.Fatal("a certificate of nobody was trusted")
	}
	if _, kind := NetworkError(err); kind != nil {
		t.Errorf("%v is %v", err, kind)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	err = get("", false, "https"+strings.TrimPrefix(plain.URL, "http"))
	if _, kind := NetworkError(err); err == nil || kind != nil {
		t.Errorf("%v is %v", err, kind)
	}
	if _, err := NewTransport(time.Minute, os.DevNull, false); err == nil {
		t.Error("an empty bundle was taken")
	}
}

func TestFill(t *testing.T) {
	content := []byte(strings.Repeat("0123456789", 30_000))
	for _, size := range []int{1, 10, 64 << 10, len(content) - 1, len(content), len(content) + 1} {
		for _, r := range []io.Reader{bytes.NewReader(content), iotest.HalfReader(bytes.NewReader(content)), iotest.DataErrReader(bytes.NewReader(content))} {
			var got, buf []byte
			for end := false; !end; {
				var err error
				buf, end, err = Fill(t.Context(), r, buf, size)
				if err != nil || len(buf) > size || !end && len(buf) != size {
					t.Fatalf("size %d: %d bytes, %v, %v", size, len(buf), end, err)
				}
				if got = append(got, buf...); size < 10 && len(got) > 100 {
					break
				}
			}
			if !bytes.HasPrefix(content, got) || size >= 10 && len(got) != len(content) {
				t.Fatalf("size %d: %d bytes, or others", size, len(got))
			}
		}
	}
	if small, _, _ := Fill(t.Context(), strings.NewReader("x"), nil, 1<<30); cap(small) > 1<<20 {
		t.Errorf("one byte took %d", cap(small))
	}
	boom := errors.New("boom")
	for _, want := range []error{boom, io.ErrUnexpectedEOF} {
		if data, end, err := Fill(t.Context(), io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(want)), nil, 10); err != want || end || string(data) != "abc" {
			t.Errorf("%q, %v, %v", data, end, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Fill(ctx, strings.NewReader("abc"), nil, 10); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPrefix(t *testing.T) {
	for path, want := range map[string]string{"": "", "/": "", "/a": "a/", "/a/": "a/", "//a/b//": "a/b/", "/%2e%2e": "!", "/a//b": "!", "/a/../b": "!", "/.": "!", "/a%0Ab": "!", "/a%5Cb": "!", "/a%FF": "!", "/ä b": "ä b/"} {
		u, err := url.Parse("x://host" + path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Prefix(u)
		if (err != nil) != (want == "!") || err == nil && got != want {
			t.Errorf("%q: %q, %v; want %q", path, got, err, want)
		}
	}
}
