package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"encdump/storage"
)

// Delays between attempts double from the first to the last of these; a random half is taken off, so that the chunks
// of an upload do not come back all at once.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = 20 * time.Second
)

// request is the aws.Retryer of one request. The SDK's own count attempts and share a quota of retries, which both end
// the trying within seconds when a service is down for a minute; a backup that has run for an hour has more patience.
type request struct {
	ctx      context.Context // of the caller: once it is done, nothing is tried again
	b        *Bucket
	name     string
	start    time.Time
	failed   time.Time // for the first time
	failures int
	refresh  bool // credentials were asked for anew
	unsure   bool // an attempt failed in a way that does not tell whether the service did what it was asked to
}

func (b *Bucket) request(ctx context.Context, name string) *request {
	return &request{ctx: ctx, b: b, name: name, start: time.Now()}
}

// apply is an option of a call of the client.
func (r *request) apply(o *s3.Options) { o.Retryer = r }

func (r *request) IsErrorRetryable(err error) bool {
	again := r.temporary(err)
	if r.failures++; r.failures == 1 {
		r.failed = time.Now()
	}
	r.unsure = r.unsure || again || r.ctx.Err() != nil
	return again && r.ctx.Err() == nil
}

func (r *request) temporary(err error) bool {
	var c *credentialsError
	if errors.As(err, &c) {
		return c.worked // as when the service of a role is overloaded; what never worked is not there
	}
	if expired[codeOf(err)] && !r.refresh {
		// The service knows better than the time that came with them.
		r.refresh = r.b.credentials.invalidate()
		return r.refresh
	}
	return isTemporary(err)
}

// RetryDelay counts patience from the first failure, so that a large chunk that took long before it failed gets another
// attempt. It waits itself: a call may go on when the caller's context is done, see linger, but not to wait.
func (r *request) RetryDelay(_ int, err error) (time.Duration, error) {
	left := r.b.options.Patience - time.Since(r.failed)
	if left <= 0 {
		return 0, &patienceError{r.b.options.Patience, err}
	}
	d := min(lastDelay, firstDelay<<min(r.failures-1, 10))
	d = min(left, d/2+rand.N(d/2+1))
	r.b.options.Logger.Info("request failed, trying again", "store", r.b.String(), "request", r.name, "attempt", r.failures, "after", d, "err", explain(err))
	select {
	case <-time.After(d):
		return 0, nil
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

func (r *request) MaxAttempts() int { return 0 } // no limit

func (r *request) GetRetryToken(context.Context, error) (func(error) error, error) {
	return func(error) error { return nil }, nil
}

func (r *request) GetInitialToken() func(error) error { return func(error) error { return nil } }

func (r *request) GetAttemptToken(context.Context) (func(error) error, error) {
	return func(error) error { return nil }, nil
}

// patienceError is the end of a request whose last attempt could still have been tried again.
type patienceError struct {
	patience time.Duration
	last     error
}

func (e *patienceError) Error() string {
	return fmt.Sprintf("no success in %v of trying: %v", e.patience, explain(e.last))
}
func (e *patienceError) Unwrap() error { return e.last }

// credentials notes whether the chain of providers has ever had any.
type credentials struct {
	provider aws.CredentialsProvider
	mu       sync.Mutex
	worked   bool
}

func (c *credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	got, err := c.provider.Retrieve(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return got, &credentialsError{err, c.worked}
	}
	c.worked = true
	return got, nil
}

// invalidate makes the next request ask for new credentials, where there is more than what a file or a variable says.
func (c *credentials) invalidate() bool {
	cache, ok := c.provider.(*aws.CredentialsCache)
	if ok {
		cache.Invalidate()
	}
	return ok
}

type credentialsError struct {
	err    error
	worked bool
}

func (e *credentialsError) Error() string {
	return "no usable credentials (environment, profile and role were asked): " + oneLine(e.err.Error())
}
func (e *credentialsError) Unwrap() error { return e.err }

// codes of errors, as far as they mean the same on all services.
var (
	temporaryCodes = set("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
		"RequestLimitExceeded", "TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded", "InternalError", "ServiceUnavailable",
		// Another change of the same bucket or key is under way.
		"OperationAborted", "ConditionalRequestConflict",
		// The bytes changed on the way.
		"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")
	expired = set("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
	// What is wrong with the credentials, in words.
	credentialCodes = map[string]string{
		"ExpiredToken":          "the credentials have expired",
		"ExpiredTokenException": "the credentials have expired",
		"TokenRefreshRequired":  "the credentials have expired",
		"RequestExpired":        "the credentials have expired",
		"InvalidAccessKeyId":    "the service does not know this access key",
		"SignatureDoesNotMatch": "the secret key is not the one of this access key",
		"InvalidToken":          "the session token is not valid",
		"InvalidSecurity":       "the credentials are not valid",
		"RequestTimeTooSkewed":  "the clock of this machine differs too much from the service's",
		"AccountProblem":        "the account has a problem",
		"AllAccessDisabled":     "all access is disabled",
	}
)

func set(codes ...string) map[string]bool {
	m := map[string]bool{}
	for _, c := range codes {
		m[c] = true
	}
	return m
}

// codeOf returns the service's code of an error, "" where it is none of the service's.
func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// statusOf returns the HTTP status of an error, 0 where no answer came.
func statusOf(err error) int {
	var r *awshttp.ResponseError
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}

// isTemporary tells whether the same request may succeed later.
func isTemporary(err error) bool {
	var canRetry interface{ RetryableError() bool }
	if errors.As(err, &canRetry) && canRetry.RetryableError() {
		return true // as when the SDK has learned by how much the clock is wrong
	}
	code, status := codeOf(err), statusOf(err)
	switch {
	case temporaryCodes[code]:
		return true
	case status == http.StatusNotImplemented || status == http.StatusInsufficientStorage:
		return false
	case status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout:
		return true
	case status >= 300 || code != "":
		return false
	}
	// No answer, or one that was cut. Other errors are the SDK's own, which sent nothing.
	var send *smithyhttp.RequestSendError
	var answer *smithy.DeserializationError
	_, permanent := connection(err)
	return !permanent && (errors.As(err, &send) || errors.As(err, &answer) || status != 0)
}

// connection explains errors of the connection that will be the same next time.
func connection(err error) (text string, permanent bool) {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown):
		return "TLS: the service's certificate is of an unknown authority; name the authority's certificate with ca-bundle=FILE", true
	case errors.As(err, &host):
		return "TLS: the service's certificate is for another host name; use that name in endpoint: " + oneLine(host.Error()), true
	case errors.As(err, &invalid), errors.As(err, &verify):
		return "TLS: the service's certificate is not valid: " + oneLine(innermost(err).Error()), true
	case errors.As(err, &record), err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "TLS: the service does not speak TLS at this port; is it endpoint=http://…?", true
	}
	return "", false
}

// cause is an error that reads well and is still the SDK's to errors.Is and errors.As.
type cause struct {
	text string
	err  error
}

func (c *cause) Error() string { return c.text }
func (c *cause) Unwrap() error { return c.err }

// explain puts an error of the SDK into words, without the request's name, URL and IDs.
func explain(err error) error {
	if c, ok := err.(*cause); ok {
		return c
	}
	var patience *patienceError
	var creds *credentialsError
	switch {
	case errors.As(err, &patience):
		return patience
	case errors.As(err, &creds):
		return creds
	}
	if text, ok := connection(err); ok {
		return &cause{text, err}
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		code, status := api.ErrorCode(), statusOf(err)
		if text, ok := credentialCodes[code]; ok {
			return &cause{text + " (" + code + ")", err}
		}
		if status == http.StatusMovedPermanently || status == http.StatusTemporaryRedirect || code == "AuthorizationHeaderMalformed" {
			text := "the bucket is in another region"
			var r *awshttp.ResponseError
			if errors.As(err, &r) && r.Response.Header.Get("X-Amz-Bucket-Region") != "" {
				text += "; use region=" + oneLine(r.Response.Header.Get("X-Amz-Bucket-Region"))
			}
			return &cause{text, err}
		}
		switch {
		case code == "" || code == "UnknownError":
			code = http.StatusText(status)
		case code == "NoSuchBucket":
			return &cause{"there is no such bucket", err}
		}
		text := oneLine(api.ErrorMessage())
		if text == "" || text == code || text == "UnknownError" {
			return &cause{fmt.Sprintf("the service says %s (%d)", oneLine(code), status), err}
		}
		return &cause{fmt.Sprintf("%s (%s)", text, oneLine(code)), err}
	}
	var send *smithyhttp.RequestSendError
	var answer *smithy.DeserializationError
	var operation *smithy.OperationError
	switch {
	case errors.As(err, &send):
		return &cause{oneLine(innermost(send.Err).Error()), err}
	case errors.As(err, &answer):
		return &cause{"the answer is not whole: " + oneLine(innermost(answer.Err).Error()), err}
	case errors.As(err, &operation):
		return &cause{oneLine(operation.Err.Error()), err}
	}
	return err
}

// innermost leaves out what wraps an error of the network: the request's URL, and that there was a request.
func innermost(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var v *tls.CertificateVerificationError
	if errors.As(err, &v) {
		err = v.Err
	}
	return err
}

// oneLine makes the words of others fit to print.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}

// fail makes a *storage.Error.
func (b *Bucket) fail(ctx context.Context, op, key string, err error) error {
	e := &storage.Error{Op: op, Key: key, Bucket: b.String(), Err: err}
	if ctx.Err() != nil {
		e.Err = ctx.Err()
		return e
	}
	e.Kind = b.kind(op, err)
	if e.Kind != nil && err == e.Kind {
		e.Err = nil
		return e
	}
	e.Err = explain(err)
	return e
}

func (b *Bucket) kind(op string, err error) error {
	for _, kind := range []error{storage.ErrExists, storage.ErrRange, storage.ErrPermission} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	var patience *patienceError
	var creds *credentialsError
	code, status := codeOf(err), statusOf(err)
	switch {
	case code == "ConditionalRequestConflict": // whoever else puts this key has kept us out for all our patience
		return storage.ErrExists
	case errors.As(err, &creds):
		if creds.worked {
			return storage.ErrTemporary
		}
		return storage.ErrPermission
	case errors.As(err, &patience):
		return storage.ErrTemporary
	case code == "NoSuchUpload":
		return nil // the object is not what is missing
	case status == http.StatusPreconditionFailed:
		return storage.ErrExists
	case credentialCodes[code] != "", status == http.StatusForbidden, status == http.StatusUnauthorized:
		return storage.ErrPermission
	case status == http.StatusNotFound:
		return storage.ErrNotFound
	case status == http.StatusRequestedRangeNotSatisfiable:
		return storage.ErrRange
	case isTemporary(err), op == "read" && status == 0 && !errors.Is(err, io.EOF):
		return storage.ErrTemporary
	}
	return nil
}
