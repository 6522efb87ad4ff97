// Package gcs keeps objects in a bucket of Google Cloud Storage. It registers the URL scheme "gs": gs://bucket/folder;
// docs/gcs.md has the options of the query and where credentials come from.
package gcs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	gcs "cloud.google.com/go/storage"
	"github.com/dustin/go-humanize"
	"github.com/googleapis/gax-go/v2"
	"golang.org/x/oauth2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	htransport "google.golang.org/api/transport/http"

	"encdump/storage"
)

func init() { storage.Register("gs", open) }

// defaultChunk is in bytes. A chunk is held twice: while one is sent by the SDK the next is read.
const defaultChunk = 16 << 20

// Bucket is a folder of a bucket. It implements storage.Bucket, Locker and Inspector.
//
// Nothing of an upload is visible before its end. The session of one that was cut off shows in no listing, costs nothing,
// and is removed by the service after a week; there is no request that lists such, so Bucket is no storage.Uploader.
type Bucket struct {
	name         string // the URL
	prefix       string
	options      storage.Options
	bucket       *gcs.BucketHandle
	storageClass string
	chunk        int
}

var (
	bucketName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
	storageTier = []string{"STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"} // all of them can be read at once
)

func open(ctx context.Context, u *url.URL, o storage.Options) (storage.Bucket, error) {
	fail := func(format string, args ...any) (storage.Bucket, error) {
		return nil, fmt.Errorf("store %s: %w", storage.Redact(u.String()), fmt.Errorf(format, args...))
	}
	if !bucketName.MatchString(u.Host) {
		return fail("not a name of a bucket: lower-case letters, digits, and inside hyphens, dots and underscores")
	}
	prefix, err := storage.Prefix(u)
	if err != nil {
		return nil, err
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.Fragment != "" {
		return fail("options in the URL are written ?name=value&name=value")
	}
	b := &Bucket{prefix: prefix, options: o, chunk: defaultChunk}
	var endpoint, caBundle string
	var insecure bool
	for name, values := range query {
		value := values[len(values)-1]
		switch name {
		case "endpoint":
			e, err := url.Parse(value)
			if err != nil || e.Scheme != "https" && e.Scheme != "http" || e.Host == "" || e.User != nil || e.RawQuery != "" || e.Fragment != "" {
				return fail("option endpoint is not a URL, as https://storage.googleapis.com")
			}
			endpoint = value
		case "storage-class":
			if b.storageClass = strings.ToUpper(value); !slices.Contains(storageTier, b.storageClass) {
				return fail("option storage-class is standard, nearline, coldline or archive")
			}
		case "chunk-size":
			n, err := humanize.ParseBytes(value)
			if err != nil || n < 256<<10 || n > 1<<30 {
				return fail("option chunk-size is a size from 256KiB to 1GiB")
			}
			b.chunk = int(n) &^ (256<<10 - 1) // the service takes multiples of 256 KiB
		case "ca-bundle":
			caBundle = value
		case "insecure-skip-verify":
			if insecure, err = strconv.ParseBool(value); err != nil {
				return fail("option insecure-skip-verify is true or false")
			}
		default:
			return fail("unknown option; known are endpoint, storage-class, chunk-size, ca-bundle, insecure-skip-verify")
		}
	}
	b.name = storage.URL("gs", u.Host, prefix, query)
	transport, err := storage.NewTransport(o.Timeout, caBundle, insecure)
	if err != nil {
		return fail("%w", err)
	}
	client, err := connect(ctx, endpoint, brokenTransport{transport})
	if err != nil {
		return fail("%w", oneLine(err))
	}
	b.bucket = client.Bucket(u.Host)
	return b, nil
}

// connect returns a client with the application default credentials; without any for an emulator, which is what is
// reached without TLS: a token must not travel so.
func connect(ctx context.Context, endpoint string, base http.RoundTripper) (*gcs.Client, error) {
	var options []option.ClientOption
	emulator := os.Getenv("STORAGE_EMULATOR_HOST") != "" // which the SDK reads too, for the endpoint
	if endpoint != "" {
		emulator = strings.HasPrefix(endpoint, "http:")
		options = append(options, option.WithEndpoint(strings.TrimSuffix(endpoint, "/")+"/storage/v1/"))
	}
	client := &http.Client{Transport: base}
	if !emulator {
		var err error
		client.Transport, err = htransport.NewTransport(context.WithoutCancel(ctx), base, option.WithScopes(gcs.ScopeFullControl))
		if err != nil {
			return nil, err
		}
	}
	// The client brings its credentials; without this the SDK would look for others.
	options = append(options, option.WithHTTPClient(client), option.WithoutAuthentication(), gcs.WithJSONReads())
	return gcs.NewClient(ctx, options...)
}

// String returns the URL, which has no credentials, in one way of writing it.
func (b *Bucket) String() string { return b.name }

// object returns what makes requests about key, and repeats them as the options say.
func (b *Bucket) object(op, key string) (*gcs.ObjectHandle, *storage.Retry) {
	options, retry := b.retryer(op, key)
	return b.bucket.Object(b.prefix + key).Retryer(options...), retry
}

func (b *Bucket) retryer(op, key string) ([]gcs.RetryOption, *storage.Retry) {
	retry := &storage.Retry{Patience: b.options.Patience, Logger: b.options.Logger, Op: op, Key: key}
	initial, longest := b.options.Pauses()
	return []gcs.RetryOption{
		gcs.WithBackoff(gax.Backoff{Initial: initial, Max: longest, Multiplier: 2}),
		gcs.WithPolicy(gcs.RetryAlways), // Put knows its own object again; the other requests may be repeated anyway
		gcs.WithErrorFunc(func(err error) bool {
			if err == nil || errors.Is(err, context.Canceled) {
				return false
			}
			cause, kind := explain(err)
			return kind == storage.ErrTemporary && retry.Again(cause)
		}),
	}, retry
}

// uploadMetadata is the name of the metadata by which an upload knows its own object again.
const uploadMetadata = "dump-upload"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Put implements storage.Bucket. A stream of up to one chunk is one request, a longer one a resumable upload. The object
// becomes visible by the last request, in which the SDK states the CRC32C of the whole, or not at all if the service
// read something else.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader, o *storage.PutOptions) error {
	fail := func(err error) error { return b.fail(ctx, "put", key, err) }
	if err := check(ctx, key); err != nil {
		return fail(err)
	}
	if o == nil {
		o = &storage.PutOptions{}
	}
	data, end, err := storage.Fill(ctx, r, nil, b.chunk)
	if err != nil {
		return fail(&ownError{err})
	}
	object, retry := b.object("put", key)
	if o.IfAbsent {
		object = object.If(gcs.Conditions{DoesNotExist: true})
	}
	writing, cancel := context.WithCancel(ctx)
	defer cancel()
	w := object.NewWriter(writing)
	var random [16]byte
	rand.Read(random[:])
	id := hex.EncodeToString(random[:])
	w.Metadata = map[string]string{uploadMetadata: id}
	w.ContentType = "application/octet-stream" // else the SDK guesses one
	if !o.Transient {                          // early deletion costs in all classes but the standard one
		w.StorageClass = b.storageClass
	}
	w.ChunkSize = b.chunk
	// Retry counts patience instead, from the first failure, and the transport has an eye on progress.
	w.ChunkRetryDeadline = 24 * time.Hour
	w.ProgressFunc = func(int64) { retry.Progress() }
	if end {
		w.ChunkSize = len(data) + 1 // makes it one request
	}
	size, sum := int64(0), uint32(0)
	for {
		size += int64(len(data))
		sum = crc32.Update(sum, castagnoli, data)
		if _, err = w.Write(data); err != nil || end {
			break
		}
		if data, end, err = storage.Fill(ctx, r, data, b.chunk); err != nil {
			err = &ownError{err}
			break
		}
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		cancel() // first: Close would complete an object that is cut
		closeErr := w.Close()
		var own *ownError
		if closeErr != nil && !errors.Is(closeErr, context.Canceled) && !errors.As(err, &own) {
			err = closeErr // Write only says that the pipe is closed
		}
		return fail(err)
	}
	if err := w.Close(); err != nil {
		if err = b.settle(ctx, key, id, size, o.IfAbsent, retry, err); err != nil {
			return fail(err)
		}
		return nil
	}
	if a := w.Attrs(); a.Size != size || a.CRC32C != sum {
		// A service that checks what it is told does not get here.
		b.bucket.Object(b.prefix + key).If(gcs.Conditions{GenerationMatch: a.Generation}).Delete(ctx)
		return fail(&ownError{fmt.Errorf("the service stored something else than was sent: %d bytes with CRC32C %08x instead of %d with %08x", a.Size, a.CRC32C, size, sum)})
	}
	return nil
}

// settle finds out how an upload ended whose last answer is err: when an earlier answer was lost, a repetition finds the
// key taken by its own success. It asks the listing, since who writes backups need not be allowed to read them.
func (b *Bucket) settle(ctx context.Context, key, id string, size int64, ifAbsent bool, retry *storage.Retry, err error) error {
	_, kind := explain(err)
	if ctx.Err() != nil || kind != storage.ErrTemporary && retry.Failed() == 0 {
		return err
	}
	options, again := b.retryer("put", key)
	if kind == storage.ErrTemporary {
		again.Patience = 0 // was spent already
	}
	name := b.prefix + key // the first of the names that begin with it
	query := &gcs.Query{Prefix: name, Projection: gcs.ProjectionNoACL}
	objects := b.bucket.Retryer(options...).Objects(ctx, query)
	objects.PageInfo().MaxSize = 1
	found, listErr := objects.Next()
	switch {
	case listErr != nil || found.Name != name:
		return err
	case found.Size == size && found.Metadata[uploadMetadata] == id:
		return nil
	case ifAbsent: // the session of the upload may be gone with the answer that said so
		return &googleapi.Error{Code: http.StatusPreconditionFailed}
	}
	return err
}

// Open implements storage.Bucket.
func (b *Bucket) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fail := func(err error) (io.ReadCloser, error) { return nil, b.fail(ctx, "open", key, err) }
	if err := check(ctx, key); err != nil {
		return fail(err)
	}
	if offset < 0 {
		return fail(&ownError{fmt.Errorf("negative offset %d", offset)})
	}
	object, _ := b.object("open", key)
	if length != 0 {
		if length > math.MaxInt64-offset {
			length = -1
		}
		reading, cancel := context.WithCancelCause(ctx)
		body, err := object.NewRangeReader(context.WithValue(reading, brokenKey{}, cancel), offset, max(length, -1))
		if err == nil {
			return &reader{ctx, reading, cancel, b, key, body}, nil
		}
		cancel(nil)
		if _, kind := explain(err); kind != storage.ErrRange {
			return fail(err)
		}
	}
	// There are no ranges of no bytes, which an offset at the very end asks for, too.
	attrs, err := object.Attrs(ctx)
	if err == nil && offset > attrs.Size {
		err = storage.ErrRange
	}
	if err != nil {
		return fail(err)
	}
	return &reader{ctx, ctx, func(error) {}, b, key, http.NoBody}, nil
}

type reader struct {
	ctx, reading context.Context
	cancel       context.CancelCauseFunc
	b            *Bucket
	key          string
	body         io.ReadCloser
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.b.fail(r.ctx, "read", r.key, err)
	}
	n, err := r.body.Read(p)
	if err != nil && err != io.EOF {
		if r.reading.Err() != nil {
			err = context.Cause(r.reading)
		}
		err = r.b.fail(r.ctx, "read", r.key, err)
	}
	return n, err
}

func (r *reader) Close() error {
	r.cancel(nil)
	r.body.Close()
	return nil
}

// brokenTransport cancels the context of a download whose body breaks off. The SDK's reader would ask for the rest, at
// once and as often as it breaks; whoever called Open decides about that, and waits in between.
type brokenTransport struct{ http.RoundTripper }

type brokenKey struct{}

func (t brokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if cancel, ok := req.Context().Value(brokenKey{}).(context.CancelCauseFunc); ok && err == nil && resp.StatusCode < 300 {
		resp.Body = &brokenBody{resp.Body, cancel}
	}
	return resp, err
}

type brokenBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *brokenBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.cancel(err)
	}
	return n, err
}

// List implements storage.Bucket. What lies in folders below is not asked for. The service lists in the order of the
// bytes of the names.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		options, retry := b.retryer("list", prefix)
		query := &gcs.Query{Prefix: b.prefix + prefix, Delimiter: "/", Projection: gcs.ProjectionNoACL}
		err := query.SetAttrSelection([]string{"Name", "Size", "Created"})
		objects := b.bucket.Retryer(options...).Objects(ctx, query)
		for err == nil {
			var attrs *gcs.ObjectAttrs
			if err = ctx.Err(); err == nil {
				attrs, err = objects.Next()
			}
			if err == iterator.Done {
				return
			}
			if err != nil {
				break
			}
			retry.Progress()
			key, ok := strings.CutPrefix(attrs.Name, b.prefix)
			if !ok || storage.ValidKey(key) != nil { // a folder, or something that is not ours
				continue
			}
			if !yield(storage.Object{Key: key, Size: attrs.Size, Modified: attrs.Created}, nil) {
				return
			}
		}
		yield(storage.Object{}, b.fail(ctx, "list", "", err))
	}
}

// Delete implements storage.Bucket. Where the service keeps versions or deleted objects for a while, it still does.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := check(ctx, key)
	if err == nil {
		object, _ := b.object("delete", key)
		err = object.Delete(ctx)
	}
	if err == nil || errors.Is(err, gcs.ErrObjectNotExist) {
		return nil
	}
	return b.fail(ctx, "delete", key, err)
}

// LockedUntil implements storage.Locker: by the retention of the bucket and of the object, and by holds.
func (b *Bucket) LockedUntil(ctx context.Context, key string) (until time.Time, err error) {
	if err := check(ctx, key); err != nil {
		return until, b.fail(ctx, "open", key, err)
	}
	object, _ := b.object("open", key)
	attrs, err := object.Attrs(ctx)
	if err != nil {
		return until, b.fail(ctx, "open", key, err)
	}
	if attrs.TemporaryHold || attrs.EventBasedHold {
		return storage.FarFuture, nil
	}
	until = attrs.RetentionExpirationTime
	if r := attrs.Retention; r != nil && r.RetainUntil.After(until) {
		until = r.RetainUntil
	}
	if !until.After(time.Now()) {
		return time.Time{}, nil
	}
	return until, nil
}

// Inspect implements storage.Inspector. All of it takes the permission storage.buckets.get.
func (b *Bucket) Inspect(ctx context.Context) []storage.Setting {
	options, _ := b.retryer("list", "")
	a, err := b.bucket.Retryer(options...).Attrs(ctx)
	if err != nil {
		err = b.fail(ctx, "list", "", err)
		a = &gcs.BucketAttrs{}
	}
	onOff := func(on bool) string {
		if on {
			return "enabled"
		}
		return "disabled"
	}
	retention, softDelete := "none", "disabled"
	if p := a.RetentionPolicy; p != nil {
		retention = p.RetentionPeriod.String()
		if p.IsLocked {
			retention += ", locked"
		}
	}
	if p := a.SoftDeletePolicy; p != nil && p.RetentionDuration > 0 {
		softDelete = p.RetentionDuration.String()
	}
	deletes := 0
	for _, rule := range a.Lifecycle.Rules {
		if rule.Action.Type == gcs.DeleteAction {
			deletes++
		}
	}
	settings := []storage.Setting{
		{Name: "versioning", Value: onOff(a.VersioningEnabled)},
		{Name: "retention policy", Value: retention},
		{Name: "retention of single objects", Value: cmp.Or(a.ObjectRetentionMode, "disabled")},
		{Name: "event-based hold by default", Value: onOff(a.DefaultEventBasedHold)},
		{Name: "soft delete", Value: softDelete},
		{Name: "lifecycle rules that delete", Value: strconv.Itoa(deletes)},
		{Name: "encryption key", Value: "Google's own"},
		{Name: "public access prevention", Value: a.PublicAccessPrevention.String()},
		{Name: "storage class", Value: a.StorageClass},
	}
	for i := range settings {
		s := &settings[i]
		if e := a.Encryption; s.Name == "encryption key" && e != nil && e.DefaultKMSKeyName != "" {
			s.Value = e.DefaultKMSKeyName
		}
		if err != nil {
			s.Value, s.Err = "", err
		}
	}
	return settings
}

func check(ctx context.Context, key string) error {
	if err := storage.ValidKey(key); err != nil {
		return &ownError{err}
	}
	return ctx.Err()
}

// ownError is an error that is not the service's and not the network's, such as that of Put's reader.
type ownError struct{ error }

// statusError is what the service answered. The SDK's own errors may have the whole of it.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s (status %d)", cmp.Or(e.message, http.StatusText(e.status), "refused"), e.status)
}

func oneLine(err error) error { return errors.New(strings.Join(strings.Fields(err.Error()), " ")) }

// explain returns the cause for people, on one line and without anything secret, and its kind. Errors of an
// http.Client name the URL, and that of a resumable upload is all that is needed to write to it.
func explain(err error) (cause, kind error) {
	if err == storage.ErrRange {
		return nil, err
	}
	var (
		own    *ownError
		answer *googleapi.Error
		login  *oauth2.RetrieveError
		at     *url.Error
	)
	switch {
	case errors.As(err, &own):
		return own.error, nil
	case errors.As(err, &answer):
		message, _, _ := strings.Cut(strings.TrimSpace(answer.Message), "\n")
		cause = &statusError{answer.Code, message}
		switch {
		case answer.Code == http.StatusPreconditionFailed:
			return nil, storage.ErrExists // the one condition of this package
		case answer.Code == http.StatusUnauthorized, answer.Code == http.StatusForbidden:
			kind = storage.ErrPermission
		case answer.Code == http.StatusNotFound:
			kind = storage.ErrNotFound
		case answer.Code == http.StatusRequestedRangeNotSatisfiable:
			kind = storage.ErrRange
		case answer.Code == http.StatusRequestTimeout, answer.Code == http.StatusTooManyRequests, answer.Code >= 500:
			kind = storage.ErrTemporary
		}
		return cause, kind
	case errors.Is(err, gcs.ErrObjectNotExist):
		return errors.New("no such object"), storage.ErrNotFound
	case errors.Is(err, gcs.ErrBucketNotExist):
		return errors.New("no such bucket"), storage.ErrNotFound
	case errors.As(err, &login):
		code := 0
		if login.Response != nil {
			code = login.Response.StatusCode
		}
		cause = fmt.Errorf("no token for the credentials: %w", &statusError{code, strings.TrimSpace(login.ErrorCode + " " + login.ErrorDescription)})
		if code >= 400 && code < 500 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout {
			return cause, storage.ErrPermission
		}
		return cause, storage.ErrTemporary
	case errors.As(err, &at):
		err = at.Err
	}
	return storage.NetworkError(err)
}

func (b *Bucket) fail(ctx context.Context, op, key string, err error) error {
	cause, kind := explain(err)
	var own *ownError
	if ctx.Err() != nil && !errors.As(err, &own) {
		cause, kind = ctx.Err(), nil
	}
	return &storage.Error{Op: op, Key: key, Bucket: b.name, Kind: kind, Err: cause}
}
