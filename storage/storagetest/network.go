package storagetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"encdump/storage"
)

// Mishap is what happens to one request that goes through a Proxy. The zero value is nothing.
type Mishap struct {
	Before  func()      // is called first; may make requests through the proxy itself
	Status  int         // answer with this, without asking the server
	Answer  string      // the same, with this body, JSON or XML; without Status it is for what the server cannot do
	Header  http.Header // set these in the server's answer
	Cut     bool        // close the connection when half of the request's body is there
	Swallow bool        // let the server do it, then close the connection instead of answering
	Stall   bool        // do not answer until the client gives up
	Flip    bool        // invert a bit of the request's body
	CutBody int64       // close the connection behind so many bytes of the answer's body
	Hang    bool        // with CutBody: keep the connection, and send no more
}

// Proxy stands between a client and a server, and lets requests go wrong.
type Proxy struct {
	URL string

	mu   sync.Mutex
	next func(r *http.Request) Mishap
}

// NewProxy starts a proxy before the server at the URL target. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{}
	stop := make(chan struct{})
	silent := log.New(io.Discard, "", 0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		var m Mishap
		if p.next != nil {
			m = p.next(r)
		}
		p.mu.Unlock()
		if m.Before != nil {
			m.Before()
		}
		switch {
		case m.Stall:
			io.Copy(io.Discard, r.Body) // else the server does not see the client go
			select {
			case <-r.Context().Done():
			case <-stop:
			}
			return
		case m.Cut:
			io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			panic(http.ErrAbortHandler)
		case m.Answer != "" || m.Status != 0:
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json") // S3's client does not look
			w.WriteHeader(cmp.Or(m.Status, http.StatusOK))
			io.WriteString(w, m.Answer)
			return
		}
		if m.Flip {
			body, _ := io.ReadAll(r.Body)
			if len(body) > 0 {
				body[len(body)/2] ^= 1
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		proxy := &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = u.Scheme, u.Host, r.In.Host
			},
			FlushInterval: -1,
			ErrorLog:      silent,
			ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
			ModifyResponse: func(resp *http.Response) error {
				if m.Swallow {
					io.Copy(io.Discard, resp.Body)
					return errors.New("swallowed")
				}
				for name := range m.Header {
					resp.Header.Set(name, m.Header.Get(name))
				}
				if m.CutBody > 0 {
					resp.Body = &cutBody{resp.Body, io.LimitReader(resp.Body, m.CutBody), m.Hang, r.Context(), stop}
				}
				return nil
			},
		}
		proxy.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = silent
	p.URL = server.URL
	t.Cleanup(func() {
		close(stop)
		server.Close()
	})
	return p
}

// Next sets what decides about requests from now on; nil lets all pass. It is called for one request at a time.
func (p *Proxy) Next(f func(r *http.Request) Mishap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = f
}

type cutBody struct {
	io.Closer
	r    io.Reader
	hang bool
	ctx  context.Context
	stop chan struct{}
}

func (c *cutBody) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 || err != io.EOF {
		return n, err
	}
	if c.hang {
		select {
		case <-c.ctx.Done():
		case <-c.stop:
		}
	}
	return 0, errors.New("cut")
}

// NetworkFaults checks how a backend bears a network and a service that fail. target is the URL of the server;
// open opens an empty store that is reached through another URL instead, with chunks of 1 MiB at most; last tells
// whether a request is the one that makes an object visible.
func NetworkFaults(t *testing.T, target string, open func(t *testing.T, endpoint string, o *storage.Options) storage.Bucket, last func(r *http.Request) bool) {
	patient := &storage.Options{Patience: 6 * time.Second, Timeout: 3 * time.Second}
	impatient := &storage.Options{Patience: 200 * time.Millisecond, Timeout: 3 * time.Second}
	quick := &storage.Options{Patience: 20 * time.Second, Timeout: 500 * time.Millisecond}
	contents := map[string][]byte{"small": data(20, 1000), "large": data(21, 3<<20+1000)}

	type outcome struct {
		name    string
		options *storage.Options
		mishap  func() func(r *http.Request) Mishap
		want    error // of Put; nil is success
	}
	writes := func(r *http.Request) bool { return r.Method != http.MethodGet && r.Method != http.MethodHead }
	nth := func(n int, chosen func(*http.Request) bool, m Mishap) func() func(*http.Request) Mishap {
		return func() func(*http.Request) Mishap {
			seen := 0
			return func(r *http.Request) Mishap {
				if !chosen(r) {
					return Mishap{}
				}
				if seen++; seen == n || n == 0 {
					return m
				}
				return Mishap{}
			}
		}
	}
	for _, test := range []outcome{
		{"every first attempt fails", patient, func() func(*http.Request) Mishap {
			seen := map[string]int{}
			return func(r *http.Request) Mishap {
				name := r.Method + r.URL.String() + r.Header.Get("Content-Range")
				seen[name]++
				switch seen[name] {
				case 1:
					return Mishap{Status: http.StatusServiceUnavailable}
				case 2:
					return Mishap{Cut: true}
				}
				return Mishap{}
			}
		}, nil},
		{"internal error", patient, nth(1, last, Mishap{Status: http.StatusInternalServerError}), nil},
		{"stalls once", quick, nth(1, last, Mishap{Stall: true}), nil},
		{"answer lost", patient, nth(1, last, Mishap{Swallow: true}), nil},
		{"never recovers", impatient, nth(0, writes, Mishap{Status: http.StatusServiceUnavailable}), storage.ErrTemporary},
		{"never recovers at the end", impatient, nth(0, last, Mishap{Cut: true}), storage.ErrTemporary},
		{"refused at the end", patient, nth(1, last, Mishap{Status: http.StatusForbidden}), storage.ErrPermission},
		{"refused", patient, nth(2, writes, Mishap{Status: http.StatusForbidden}), storage.ErrPermission},
	} {
		for name, content := range contents {
			for _, o := range []*storage.PutOptions{nil, ifAbsent} {
				if name == "small" && test.name == "refused" {
					continue // it has one request
				}
				t.Run(fmt.Sprintf("Put/%s/%s/%v", test.name, name, o != nil), func(t *testing.T) {
					t.Parallel()
					proxy := NewProxy(t, target)
					b := open(t, proxy.URL, test.options)
					proxy.Next(test.mishap())
					err := putReader(t, t.Context(), b, "key", bytes.NewReader(content), o)
					proxy.Next(nil)
					if test.want == nil {
						if err != nil {
							t.Fatal(err)
						}
						wantObject(t, b, "key", content)
						return
					}
					wantError(t, err, test.want, "put", b)
					if errors.Is(err, io.EOF) {
						t.Errorf("error %q looks like the end of the data", err)
					}
					wantAbsent(t, b, "key")
				})
			}
		}
	}
	for name, content := range contents {
		t.Run("Put/answer lost and key taken/"+name, func(t *testing.T) {
			t.Parallel()
			proxy := NewProxy(t, target)
			b := open(t, proxy.URL, patient)
			put(t, b, "key", []byte("first"))
			proxy.Next(nth(1, last, Mishap{Swallow: true})())
			wantError(t, b.Put(t.Context(), "key", bytes.NewReader(content), ifAbsent), storage.ErrExists, "put", b)
			wantObject(t, b, "key", []byte("first"))
		})
		t.Run("Put/all answers lost/"+name, func(t *testing.T) {
			t.Parallel()
			proxy := NewProxy(t, target)
			b := open(t, proxy.URL, impatient)
			proxy.Next(nth(0, last, Mishap{Swallow: true})())
			if err := b.Put(t.Context(), "key", bytes.NewReader(content), ifAbsent); err != nil {
				t.Fatal(err)
			}
			wantObject(t, b, "key", content)
		})
		t.Run("Put/cancelled between attempts/"+name, func(t *testing.T) {
			t.Parallel()
			proxy := NewProxy(t, target)
			b := open(t, proxy.URL, &storage.Options{Patience: time.Hour})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			proxy.Next(func(*http.Request) Mishap {
				cancel()
				return Mishap{Status: http.StatusServiceUnavailable}
			})
			wantError(t, b.Put(ctx, "key", bytes.NewReader(content), nil), context.Canceled, "put", b)
			proxy.Next(nil)
			wantAbsent(t, b, "key")
		})
	}
	for _, hang := range []bool{false, true} {
		for _, at := range []int64{1, 1 << 20, 2<<20 + 1} {
			t.Run(fmt.Sprintf("Open/cut/%d/%v", at, hang), func(t *testing.T) {
				t.Parallel()
				proxy := NewProxy(t, target)
				content := contents["large"]
				b := open(t, proxy.URL, quick)
				put(t, b, "key", content)
				requests := 0
				proxy.Next(func(*http.Request) Mishap {
					requests++
					return Mishap{CutBody: at, Hang: hang}
				})
				r, err := b.Open(t.Context(), "key", 1000, -1)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				got, err := io.ReadAll(r)
				wantError(t, err, storage.ErrTemporary, "read", b)
				if int64(len(got)) > at || !bytes.HasPrefix(content[1000:], got) {
					t.Errorf("%d bytes were read of the %d that came, or others", len(got), at)
				}
				proxy.Next(nil)
				if requests != 1 {
					t.Errorf("%d requests: the reader resumed by itself", requests)
				}
			})
		}
	}
	t.Run("Others", func(t *testing.T) {
		t.Parallel()
		proxy := NewProxy(t, target)
		b := open(t, proxy.URL, patient)
		put(t, b, "key", []byte("content"))
		all := func(*http.Request) bool { return true }
		for _, m := range []Mishap{{Status: http.StatusServiceUnavailable}, {Status: http.StatusTooManyRequests}, {Cut: true}, {Swallow: true}} {
			proxy.Next(nth(1, all, m)())
			wantObject(t, b, "key", []byte("content"))
			proxy.Next(nth(1, all, m)())
			if got := keysOf(list(t, b, "")); len(got) != 1 {
				t.Errorf("listed %q", got)
			}
		}
		proxy.Next(nth(1, all, Mishap{Swallow: true})())
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, b, "key")
	})
	t.Run("OthersFail", func(t *testing.T) {
		t.Parallel()
		proxy := NewProxy(t, target)
		b := open(t, proxy.URL, impatient)
		put(t, b, "key", []byte("content"))
		for status, want := range map[int]error{http.StatusServiceUnavailable: storage.ErrTemporary, http.StatusForbidden: storage.ErrPermission} {
			proxy.Next(func(*http.Request) Mishap { return Mishap{Status: status} })
			_, err := b.Open(t.Context(), "key", 0, -1)
			wantError(t, err, want, "open", b)
			_, err = b.Open(t.Context(), "key", 0, 0)
			wantError(t, err, want, "open", b)
			wantError(t, b.Delete(t.Context(), "key"), want, "delete", b)
			for _, err := range b.List(t.Context(), "") {
				wantError(t, err, want, "list", b)
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q has several lines", err)
				}
			}
		}
		proxy.Next(nil)
		wantObject(t, b, "key", []byte("content"))
	})
}
