package servers

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"encdump/storage/storagetest"
)

// S3Operation names what a request asks S3 for, as "UploadPart".
func S3Operation(r *http.Request) string {
	q := r.URL.Query()
	object := strings.Count(strings.Trim(r.URL.Path, "/"), "/") > 0
	switch {
	case q.Has("partNumber"):
		return "UploadPart"
	case q.Has("uploads") && r.Method == "POST":
		return "CreateMultipartUpload"
	case q.Has("uploads"):
		return "ListMultipartUploads"
	case q.Has("uploadId") && r.Method == "POST":
		return "CompleteMultipartUpload"
	case q.Has("uploadId") && r.Method == "DELETE":
		return "AbortMultipartUpload"
	case q.Get("list-type") == "2":
		return "ListObjectsV2"
	case object && r.Method == "HEAD":
		return "HeadObject"
	case object:
		return map[string]string{"GET": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}[r.Method]
	}
	return r.Method + " " + r.URL.RawQuery
}

// Always is S3Fault.Times for ever.
const Always = 1 << 30

// S3Fault is what goes wrong with the requests of an operation.
type S3Fault struct {
	Times  int    // of these requests
	After  int    // so many that go well
	Status int    // is answered, with Code; nothing reaches the service
	Code   string //
	Lost   bool   // the service does it, and the answer is lost
	Flip   bool   // a bit of the request's body is another when it arrives
	Cut    int64  // the connection ends after so many bytes of the answer's body
	Hook   func() // called at each such request
}

// FaultyS3 is a server of S3 behind a proxy that lets requests go wrong.
type FaultyS3 struct {
	*S3Server
	mu     sync.Mutex
	faults map[string]*S3Fault
	seen   map[string]int
	last   map[string]http.Header
}

// StartFaultyS3 puts a proxy before s, until the test ends.
func StartFaultyS3(t testing.TB, s *S3Server) *FaultyS3 {
	t.Helper()
	f := &FaultyS3{faults: map[string]*S3Fault{}, seen: map[string]int{}, last: map[string]http.Header{}}
	proxy := storagetest.NewProxy(t, s.Endpoint)
	proxy.Next(func(r *http.Request) storagetest.Mishap {
		bad := f.next(S3Operation(r), r.Header)
		m := storagetest.Mishap{Status: bad.Status, Swallow: bad.Lost, Flip: bad.Flip, CutBody: bad.Cut, Before: bad.Hook}
		if bad.Code != "" {
			m.Answer = fmt.Sprintf("<Error><Code>%s</Code><Message>made up</Message></Error>", bad.Code)
		}
		return m
	})
	f.S3Server = &S3Server{Address: strings.TrimPrefix(proxy.URL, "http://"), Endpoint: proxy.URL}
	return f
}

// Set says what goes wrong with an operation from now on, instead of what was said before. The operation "" is all
// of which nothing else is said.
func (f *FaultyS3) Set(op string, bad S3Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[op] = &bad
}

// Count returns how many requests of the operation there were.
func (f *FaultyS3) Count(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[op]
}

// Header returns the header of the last request of the operation.
func (f *FaultyS3) Header(op string) http.Header {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last[op]
}

// next counts a request and says what happens to it.
func (f *FaultyS3) next(op string, h http.Header) S3Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[op]++
	f.last[op] = h
	bad := f.faults[op]
	if bad == nil {
		bad = f.faults[""]
	}
	switch {
	case bad == nil || bad.Times == 0:
		return S3Fault{}
	case bad.After > 0:
		bad.After--
		return S3Fault{}
	}
	bad.Times--
	return *bad
}
