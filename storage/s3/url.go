package s3

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"

	"encdump/storage"
)

// settings is what a URL says.
type settings struct {
	url            string // without what a user need not have written
	bucket, prefix string // the prefix ends in a slash where there is one

	region, profile, endpoint string
	pathStyle                 *bool
	caBundle                  []byte
	insecure                  bool
	storageClass              types.StorageClass
	sse                       types.ServerSideEncryption
	kmsKey                    *string
	lockMode                  types.ObjectLockMode
	lockDays                  int
	lockUntil                 time.Time
	checksum                  types.ChecksumAlgorithm // empty: Content-MD5 instead, which S3 always had
	chunk                     int64
	concurrency               int
}

// One Put holds 32 MiB of chunks. One connection to S3 carries 50 to 90 MB/s, so that three under way while the fourth
// chunk fills keep up with pg_dumpall.
const (
	defaultChunk       = 8 << 20
	defaultConcurrency = 4
	// What the SDKs take by default. Named outright, because a multipart upload that was begun without an algorithm
	// does not take the checksums of its chunks on all services.
	defaultChecksum = types.ChecksumAlgorithmCrc32
)

// checksums are the algorithms that both the SDK and the services know.
var checksums = map[string]types.ChecksumAlgorithm{
	"crc32": types.ChecksumAlgorithmCrc32, "crc32c": types.ChecksumAlgorithmCrc32c, "crc64nvme": types.ChecksumAlgorithmCrc64nvme,
	"sha1": types.ChecksumAlgorithmSha1, "sha256": types.ChecksumAlgorithmSha256,
}

// parsers takes the options of the URL. Their errors go after the option's name and must not contain its value.
var parsers = map[string]func(s *settings, value string) error{
	"region":  text(func(s *settings) *string { return &s.region }),
	"profile": text(func(s *settings) *string { return &s.profile }),
	"endpoint": func(s *settings, value string) error {
		u, err := url.Parse(value)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return errors.New("write http://HOST[:PORT] or https://HOST[:PORT]")
		}
		if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return errors.New("only scheme, host, port and path belong here; credentials come from where the AWS tools take them")
		}
		s.endpoint = value
		return nil
	},
	"path-style": func(s *settings, value string) error {
		var on bool
		s.pathStyle = &on
		return boolean(&on, value)
	},
	"ca-bundle": func(s *settings, value string) error {
		pem, err := os.ReadFile(value)
		var path *fs.PathError
		if errors.As(err, &path) {
			return fmt.Errorf("cannot read the file: %w", path.Err)
		}
		if err != nil || !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return errors.New("the file holds no certificate in PEM form")
		}
		s.caBundle = pem
		return nil
	},
	"insecure-skip-verify": func(s *settings, value string) error { return boolean(&s.insecure, value) },
	// Which classes there are is for the service to say.
	"storage-class": func(s *settings, value string) error { s.storageClass = types.StorageClass(value); return nil },
	"sse": func(s *settings, value string) error {
		s.sse = types.ServerSideEncryption(value)
		if s.sse != types.ServerSideEncryptionAes256 && s.sse != types.ServerSideEncryptionAwsKms {
			return errors.New("AES256 or aws:kms")
		}
		return nil
	},
	"sse-kms-key-id": func(s *settings, value string) error { s.kmsKey = &value; return nil },
	"lock-mode": func(s *settings, value string) error {
		s.lockMode = types.ObjectLockMode(strings.ToUpper(value))
		if !slices.Contains(s.lockMode.Values(), s.lockMode) {
			return errors.New("governance or compliance")
		}
		return nil
	},
	"lock-days": func(s *settings, value string) error { return number(&s.lockDays, value, 1, 36500) },
	"lock-until": func(s *settings, value string) (err error) {
		if s.lockUntil, err = time.Parse(time.RFC3339, value); err != nil {
			if s.lockUntil, err = time.Parse(time.DateOnly, value); err != nil {
				return errors.New("a day as 2030-12-31, or a time as 2030-12-31T00:00:00Z")
			}
		}
		return nil
	},
	"checksum": func(s *settings, value string) error {
		switch s.checksum = checksums[value]; {
		case value == "when-supported":
			s.checksum = defaultChecksum
		case s.checksum == "" && value != "when-required":
			return fmt.Errorf("when-supported, when-required or one of %s", strings.Join(slices.Sorted(maps.Keys(checksums)), ", "))
		}
		return nil
	},
	"chunk-size": func(s *settings, value string) error {
		mib, ok := strings.CutSuffix(value, "MiB")
		var n int
		if !ok || number(&n, mib, minChunk>>20, maxChunk>>20) != nil {
			return fmt.Errorf("%dMiB to %dMiB", minChunk>>20, maxChunk>>20)
		}
		s.chunk = int64(n) << 20
		return nil
	},
	"concurrency": func(s *settings, value string) error { return number(&s.concurrency, value, 1, 64) },
}

func text(field func(*settings) *string) func(*settings, string) error {
	return func(s *settings, value string) error {
		*field(s) = value
		return nil
	}
}

func boolean(to *bool, value string) (err error) {
	if *to, err = strconv.ParseBool(value); err != nil {
		return errors.New("true or false")
	}
	return nil
}

func number(to *int, value string, low, high int) (err error) {
	if *to, err = strconv.Atoi(value); err != nil || *to < low || *to > high {
		return fmt.Errorf("a number from %d to %d", low, high)
	}
	return nil
}

// parse reads a URL. Its errors contain no value of the query and no name that is not known here.
func parse(u *url.URL) (*settings, error) {
	s := &settings{bucket: u.Host, checksum: defaultChecksum, chunk: defaultChunk, concurrency: defaultConcurrency}
	fail := func(format string, args ...any) (*settings, error) {
		return nil, fmt.Errorf("store s3://%s%s: %s", u.Host, u.Path, fmt.Sprintf(format, args...))
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		s.prefix = prefix + "/"
	}
	switch {
	case u.Host == "":
		return fail("no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
	case strings.ContainsAny(u.Host, ":[]"):
		return fail("a bucket has no port; the service is named by ?endpoint=https://HOST:PORT")
	case u.Fragment != "":
		return fail("write # in a prefix as %%23")
	case len(s.prefix) > 800:
		return fail("the prefix is longer than 800 bytes")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fail("the options after ? are not well formed")
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		take, known := parsers[name]
		if !known {
			return fail("unknown option (known: %s)", strings.Join(slices.Sorted(maps.Keys(parsers)), ", "))
		}
		if len(query[name]) != 1 || query[name][0] == "" {
			return fail("option %s: give it once, with a value", name)
		}
		if err := take(s, query[name][0]); err != nil {
			return fail("option %s: %v", name, err)
		}
	}
	locked := s.lockDays > 0 || !s.lockUntil.IsZero()
	switch {
	case s.lockDays > 0 && !s.lockUntil.IsZero():
		return fail("lock-days and lock-until exclude each other")
	case s.lockMode != "" && !locked:
		return fail("lock-mode needs lock-days or lock-until")
	case s.kmsKey != nil && s.sse != types.ServerSideEncryptionAwsKms:
		return fail("sse-kms-key-id needs sse=aws:kms")
	}
	if locked && s.lockMode == "" {
		s.lockMode = types.ObjectLockModeGovernance
	}
	clean := url.URL{Scheme: "s3", Host: u.Host, Path: strings.TrimSuffix("/"+s.prefix, "/"), RawQuery: query.Encode()}
	s.url = clean.String()
	return s, nil
}

// open is the storage.Opener. It makes no request, unless finding the credentials' configuration takes one.
func open(ctx context.Context, u *url.URL, o storage.Options) (storage.Bucket, error) {
	s, err := parse(u)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (storage.Bucket, error) {
		return nil, fmt.Errorf("store %s: %w", storage.Redact(s.url), err)
	}
	b := &Bucket{settings: *s, options: o, active: map[string]bool{}}
	switch {
	case s.lockDays > 0:
		// One instant for all that this run puts: a backup is locked as a whole.
		b.until = time.Now().AddDate(0, 0, s.lockDays).UTC().Truncate(time.Second)
	case !s.lockUntil.IsZero():
		b.until = s.lockUntil.UTC()
		if !b.until.After(time.Now()) {
			return fail(errors.New("option lock-until: that is past"))
		}
	}
	load := []func(*config.LoadOptions) error{
		config.WithLogger(logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
			o.Logger.Debug("aws: " + fmt.Sprintf(format, v...))
		})),
	}
	if s.region != "" {
		load = append(load, config.WithRegion(s.region))
	}
	if s.profile != "" {
		load = append(load, config.WithSharedConfigProfile(s.profile))
	}
	if s.caBundle != nil {
		load = append(load, config.WithCustomCABundle(bytes.NewReader(s.caBundle)))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		var none config.SharedConfigProfileNotExistError
		if errors.As(err, &none) {
			err = errors.New("option profile, or AWS_PROFILE: there is no such profile in the AWS configuration")
		}
		return fail(err)
	}
	b.credentials = &credentials{provider: cfg.Credentials}
	b.client = s3.NewFromConfig(cfg, func(c *s3.Options) {
		if s.endpoint != "" {
			c.BaseEndpoint = &s.endpoint
		}
		// Names of buckets as host names need a DNS entry for each, which only AWS can be taken to have.
		c.UsePathStyle = c.BaseEndpoint != nil
		if s.pathStyle != nil {
			c.UsePathStyle = *s.pathStyle
		}
		if c.Region == "" && c.BaseEndpoint != nil {
			c.Region = "us-east-1" // what other services call themselves, or do not look at
		}
		c.Credentials = b.credentials
		c.HTTPClient = httpClient(cfg.HTTPClient, o.Timeout, s.insecure)
		c.RetryMaxAttempts = 0 // AWS_MAX_ATTEMPTS counts; we look at the time, see request
		if s.checksum == "" {
			c.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		}
		// What is read is checked against digests of our own, and a whole object's checksum says nothing of a range.
		c.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	if b.client.Options().Region == "" {
		return fail(errors.New("the region is not known; give it as ?region=…, in AWS_REGION or in the AWS configuration"))
	}
	return b, nil
}

// httpClient returns a client for S3 whose attempts fail when nothing moves for timeout. base has the settings of the
// environment, such as proxies and AWS_CA_BUNDLE; it itself stays what asks for credentials, with short time-outs of its own.
func httpClient(base aws.HTTPClient, timeout time.Duration, insecure bool) *http.Client {
	buildable, ok := base.(*awshttp.BuildableClient)
	if !ok {
		buildable = awshttp.NewBuildableClient()
	}
	t := buildable.GetTransport()
	dialer := &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &watchedConn{c, timeout}, nil
	}
	t.TLSHandshakeTimeout = timeout
	t.ResponseHeaderTimeout = 0 // the connection knows better, see watchedConn
	t.IdleConnTimeout = min(t.IdleConnTimeout, timeout/2)
	t.MaxIdleConnsPerHost = 32
	t.TLSClientConfig.InsecureSkipVerify = insecure
	return &http.Client{
		Transport: t,
		// The SDK signs for one host, and makes an error of the answer.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// watchedConn fails when no byte moves in either direction for the time-out while somebody reads or writes. It does not
// matter how long a request takes as a whole: a chunk may be slow, and so may be whoever consumes what is read. What the
// kernel has taken counts as moved: it holds up to some 4 MB, which must be through within the time-out.
type watchedConn struct {
	net.Conn
	timeout time.Duration
}

func (c *watchedConn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.timeout))
	n, err := c.Conn.Read(p)
	return n, c.explain(err)
}

func (c *watchedConn) Write(p []byte) (written int, err error) {
	for {
		now := time.Now()
		c.SetWriteDeadline(now.Add(c.timeout))
		c.SetReadDeadline(now.Add(c.timeout)) // nobody answers before all is sent
		n, err := c.Conn.Write(p[:min(len(p), 64<<10)])
		written += n
		p = p[n:]
		if err != nil || len(p) == 0 {
			return written, c.explain(err)
		}
	}
}

func (c *watchedConn) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("no byte in %v: %w", c.timeout, err)
	}
	return err
}
