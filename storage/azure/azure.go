// Package azure keeps objects as block blobs of a container of Azure Blob Storage. It registers the URL scheme "azblob":
// azblob://container/folder?account=…; docs/azure.md has the options of the query and where credentials come from.
package azure

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
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
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"github.com/dustin/go-humanize"

	"encdump/storage"
)

func init() { storage.Register("azblob", open) }

// Limits of the service, https://learn.microsoft.com/azure/storage/blobs/scalability-targets
const (
	maxBlocks = 50_000
	maxBlock  = 4000 << 20 // bytes
)

const (
	defaultBlock       = 8 << 20 // bytes, of the first blocks
	defaultConcurrency = 3       // blocks under way
)

// blockSize returns the size of block i of an upload whose blocks begin at base bytes. The length of the stream is not
// known, and a blob has 50,000 blocks at most, so blocks grow: by base after each 1,000. With a base of 8 MiB an
// upload of 1 TB ends in blocks of 120 MiB, one of 5 TB in blocks of 280 MiB, and all 50,000 hold 10.7 TB; memory is
// that times the number of blocks under way, so with 3 of them 24 MiB at first, 360 MiB at 1 TB and 840 MiB at 5 TB.
// Doubling sizes instead would get there with larger blocks on the way. The UploadStream of the SDK has blocks of one
// size only, which would have to be that of the largest backup from the start.
func blockSize(base int64, i int) int64 {
	return min(base*int64(1+i/1000), maxBlock)
}

// Bucket is a folder of a container. It implements storage.Bucket, Locker, Inspector and Wholer.
//
// Nothing of an upload is visible before its last request. What an upload that was cut off had sent so far is removed
// by the service after a week; no request of the API does that earlier, so Bucket is no storage.Uploader.
type Bucket struct {
	name        string // the URL
	prefix      string
	options     storage.Options
	container   *container.Client
	service     *service.Client
	tier        *blob.AccessTier
	block       int64
	concurrency int
	pageSize    *int32 // of listings; nil is the service's
}

var containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)

func open(_ context.Context, u *url.URL, o storage.Options) (storage.Bucket, error) {
	fail := func(format string, args ...any) (storage.Bucket, error) {
		return nil, fmt.Errorf("store %s: %w", storage.Redact(u.String()), fmt.Errorf(format, args...))
	}
	if !containerName.MatchString(u.Host) || len(u.Host) > 63 {
		return fail("not a name of a container: 3 to 63 lower-case letters, digits and single hyphens")
	}
	prefix, err := storage.Prefix(u)
	if err != nil {
		return nil, err
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.Fragment != "" {
		return fail("options in the URL are written ?name=value&name=value")
	}
	b := &Bucket{prefix: prefix, options: o, block: defaultBlock, concurrency: defaultConcurrency}
	var account, endpoint, caBundle string
	var insecure bool
	for name, values := range query {
		value := values[len(values)-1]
		switch name {
		case "account":
			if account = value; !accountName.MatchString(value) {
				return fail("option account is not a name of a storage account")
			}
		case "endpoint":
			e, err := url.Parse(value)
			if err != nil || e.Scheme != "https" && e.Scheme != "http" || e.Host == "" || e.User != nil || e.RawQuery != "" || e.Fragment != "" {
				return fail("option endpoint is not a URL of a blob service, as https://account.blob.core.windows.net")
			}
			endpoint = value
		case "access-tier":
			// Archived blobs cannot be read before hours of rehydration, the metadata of a backup included.
			tiers := []blob.AccessTier{blob.AccessTierHot, blob.AccessTierCool, blob.AccessTierCold}
			i := slices.IndexFunc(tiers, func(t blob.AccessTier) bool { return strings.EqualFold(string(t), value) })
			if i < 0 {
				return fail("option access-tier is hot, cool or cold")
			}
			b.tier = &tiers[i]
		case "chunk-size":
			n, err := humanize.ParseBytes(value)
			if err != nil || n < 64<<10 || n > maxBlock {
				return fail("option chunk-size is a size from 64KiB to 4000MiB")
			}
			b.block = int64(n)
		case "concurrency":
			if b.concurrency, err = strconv.Atoi(value); err != nil || b.concurrency < 1 || b.concurrency > 100 {
				return fail("option concurrency is a number from 1 to 100")
			}
		case "ca-bundle":
			caBundle = value
		case "insecure-skip-verify":
			if insecure, err = strconv.ParseBool(value); err != nil {
				return fail("option insecure-skip-verify is true or false")
			}
		default:
			return fail("unknown option; known are account, endpoint, access-tier, chunk-size, concurrency, ca-bundle, insecure-skip-verify")
		}
	}
	b.name = storage.URL("azblob", u.Host, prefix, query)
	transport, err := storage.NewTransport(o.Timeout, caBundle, insecure)
	if err != nil {
		return fail("%w", err)
	}
	creds, err := findCredentials(account, endpoint)
	if err != nil {
		return fail("%w", err)
	}
	if err := b.connect(creds, u.Host, transport); err != nil {
		return fail("%w", err)
	}
	return b, nil
}

var accountName = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

// credentials say who asks what service. With neither key nor sas, it is who DefaultAzureCredential finds.
type credentials struct {
	endpoint     string // of the blob service
	account, key string
	sas          string // a query
}

// findCredentials looks where the az tool does, in its order; account and endpoint of the URL outrank what it finds.
func findCredentials(account, endpoint string) (credentials, error) {
	var c credentials
	if s := os.Getenv("AZURE_STORAGE_CONNECTION_STRING"); s != "" {
		var err error
		if c, err = parseConnectionString(s); err != nil {
			return c, err
		}
		if account != "" && c.account != "" && account != c.account {
			return c, errors.New("AZURE_STORAGE_CONNECTION_STRING is of another storage account than the URL")
		}
	} else {
		c = credentials{
			account: os.Getenv("AZURE_STORAGE_ACCOUNT"),
			key:     os.Getenv("AZURE_STORAGE_KEY"),
			sas:     strings.TrimPrefix(os.Getenv("AZURE_STORAGE_SAS_TOKEN"), "?"),
		}
	}
	c.account, c.endpoint = cmp.Or(account, c.account), cmp.Or(endpoint, c.endpoint)
	if c.endpoint == "" {
		if !accountName.MatchString(c.account) {
			return c, errors.New("no storage account: give the URL ?account=NAME, or set AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING")
		}
		c.endpoint = "https://" + c.account + ".blob.core.windows.net"
	}
	if c.key != "" && c.account == "" {
		return c, errors.New("AZURE_STORAGE_KEY is set, but no storage account: give the URL ?account=NAME, or set AZURE_STORAGE_ACCOUNT")
	}
	return c, nil
}

// parseConnectionString reads what the portal shows as connection string. Unlike the SDK's it keeps the parts apart, so
// that the URL may name another endpoint, and its errors quote nothing.
// https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string
func parseConnectionString(s string) (credentials, error) {
	parts := map[string]string{}
	for part := range strings.SplitSeq(s, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return credentials{}, errors.New("AZURE_STORAGE_CONNECTION_STRING is not valid: it is made of name=value, separated by semicolons")
		}
		parts[strings.ToLower(name)] = value
	}
	c := credentials{
		account:  parts["accountname"],
		key:      parts["accountkey"],
		sas:      strings.TrimPrefix(parts["sharedaccesssignature"], "?"),
		endpoint: parts["blobendpoint"],
	}
	if c.endpoint == "" && c.account != "" {
		c.endpoint = cmp.Or(parts["defaultendpointsprotocol"], "https") + "://" + c.account + ".blob." + cmp.Or(parts["endpointsuffix"], "core.windows.net")
	}
	if c.key == "" && c.sas == "" || c.endpoint == "" {
		return c, errors.New("AZURE_STORAGE_CONNECTION_STRING is not valid: it has no AccountKey or SharedAccessSignature, or neither AccountName nor BlobEndpoint")
	}
	return c, nil
}

// transporter sends requests without a http.Client, whose errors contain the URL, which may contain a signature.
type transporter struct{ http.RoundTripper }

func (t transporter) Do(req *http.Request) (*http.Response, error) { return t.RoundTrip(req) }

func (b *Bucket) connect(c credentials, name string, transport http.RoundTripper) error {
	options := policy.ClientOptions{Transport: transporter{transport}}
	containerOptions := &container.ClientOptions{ClientOptions: options}
	serviceOptions := &service.ClientOptions{ClientOptions: options}
	endpoint := strings.TrimSuffix(c.endpoint, "/")
	var err error
	switch {
	case c.key != "":
		var key *blob.SharedKeyCredential
		if key, err = blob.NewSharedKeyCredential(c.account, c.key); err != nil {
			return errors.New("the storage account's key is not valid base64")
		}
		b.container, err = container.NewClientWithSharedKeyCredential(endpoint+"/"+name, key, containerOptions)
		if err == nil {
			b.service, err = service.NewClientWithSharedKeyCredential(endpoint, key, serviceOptions)
		}
	case c.sas != "":
		b.container, err = container.NewClientWithNoCredential(endpoint+"/"+name+"?"+c.sas, containerOptions)
		if err == nil {
			b.service, err = service.NewClientWithNoCredential(endpoint+"/?"+c.sas, serviceOptions)
		}
	default:
		var token *azidentity.DefaultAzureCredential
		if token, err = azidentity.NewDefaultAzureCredential(nil); err != nil {
			return err
		}
		b.container, err = container.NewClient(endpoint+"/"+name, token, containerOptions)
		if err == nil {
			b.service, err = service.NewClient(endpoint, token, serviceOptions)
		}
	}
	if err != nil {
		return errors.New("the endpoint is not valid") // the reason may quote a signature
	}
	return nil
}

// String returns the URL, which has no credentials, in one way of writing it.
func (b *Bucket) String() string { return b.name }

// PrefersWhole implements storage.Wholer: on Azure the layout of one object is what others write and expect.
func (b *Bucket) PrefersWhole() bool { return true }

// request returns the context of one request to the service, which makes the SDK repeat it as the options say.
func (b *Bucket) request(ctx context.Context, op, key string) (context.Context, *storage.Retry) {
	retry := &storage.Retry{Patience: b.options.Patience, Logger: b.options.Logger, Op: op, Key: key}
	initial, longest := b.options.Pauses()
	return policy.WithRetryOptions(ctx, policy.RetryOptions{
		MaxRetries:    math.MaxInt32 - 1, // ShouldRetry ends it
		RetryDelay:    initial,
		MaxRetryDelay: longest,
		ShouldRetry: func(resp *http.Response, err error) bool {
			if err != nil {
				cause, kind := explain(err)
				return kind == storage.ErrTemporary && retry.Again(cause)
			}
			status := &statusError{resp.StatusCode, resp.Header.Get("x-ms-error-code")}
			return status.kind() == storage.ErrTemporary && retry.Again(status)
		},
	}), retry
}

func check(ctx context.Context, key string) error {
	if err := storage.ValidKey(key); err != nil {
		return &ownError{err}
	}
	return ctx.Err()
}

// uploadMetadata is the name of the metadata by which an upload knows its own blob again. Names are identifiers of C#.
const uploadMetadata = "dumpupload"

// Put implements storage.Bucket. A stream of up to one block is one request. A longer one is sent in blocks, each with
// its MD5 for the service to check, and becomes visible by the last request, which names them all.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader, o *storage.PutOptions) error {
	fail := func(err error) error { return b.fail(ctx, "put", key, err) }
	if err := check(ctx, key); err != nil {
		return fail(err)
	}
	if o == nil {
		o = &storage.PutOptions{}
	}
	var random [16]byte
	rand.Read(random[:])
	u := &upload{b: b, key: key, blob: b.container.NewBlockBlobClient(b.prefix + key), id: random, ifAbsent: o.IfAbsent}
	if !o.Transient { // moving down and deleting early both cost
		u.tier = b.tier
	}
	data, end, err := storage.Fill(ctx, r, nil, int(blockSize(b.block, 0)))
	if err != nil {
		return fail(&ownError{err})
	}
	if end {
		err = u.whole(ctx, data)
	} else {
		err = u.blocks(ctx, data, r)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// upload is one Put.
type upload struct {
	b        *Bucket
	key      string
	blob     *blockblob.Client
	id       [16]byte
	ifAbsent bool
	tier     *blob.AccessTier
}

func (u *upload) metadata() map[string]*string {
	id := hex.EncodeToString(u.id[:])
	return map[string]*string{uploadMetadata: &id}
}

func (u *upload) conditions() *blob.AccessConditions {
	if !u.ifAbsent {
		return nil
	}
	any := azcore.ETagAny
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &any}}
}

// digest makes the service refuse what arrives changed. CRC64 would be faster, but Azurite does not know it.
func digest(data []byte) blob.TransferValidationType {
	sum := md5.Sum(data)
	return blob.TransferValidationTypeMD5(sum[:])
}

func body(data []byte) io.ReadSeekCloser { return streaming.NopCloser(bytes.NewReader(data)) }

func (u *upload) whole(ctx context.Context, data []byte) error {
	request, retry := u.b.request(ctx, "put", u.key)
	_, err := u.blob.Upload(request, body(data), &blockblob.UploadOptions{
		Metadata: u.metadata(), Tier: u.tier, AccessConditions: u.conditions(), TransactionalValidation: digest(data),
	})
	err = u.settle(ctx, retry, err)
	if err == errLeftover {
		return u.blocks(ctx, data, http.NoBody)
	}
	return err
}

// errLeftover is a key that is free, though the service says that it is taken: by blocks of an upload that was cut off.
// Blocks of another upload may be committed beside them.
var errLeftover = fmt.Errorf("blocks of another upload are in the way: %w", storage.ErrExists)

// ownError is an error that is not the service's and not the network's, such as that of Put's reader.
type ownError struct{ error }

// blocks uploads first and the rest of r. It reads one block while others are sent.
func (u *upload) blocks(outer context.Context, first []byte, r io.Reader) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	var sending sync.WaitGroup
	defer sending.Wait() // before the caller's error returns nothing may be under way
	buffers := make(chan []byte, u.b.concurrency)
	for range u.b.concurrency - 1 {
		buffers <- nil
	}
	var ids []string
	stage := func(data []byte) {
		// All identifiers of a blob have the same length; those of another upload under this key are others.
		id := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(slices.Clone(u.id[:]), uint32(len(ids))))
		ids = append(ids, id)
		sending.Go(func() {
			request, _ := u.b.request(ctx, "put", u.key)
			if _, err := u.blob.StageBlock(request, id, body(data), &blockblob.StageBlockOptions{TransactionalValidation: digest(data)}); err != nil {
				cancel(err)
			}
			buffers <- data
		})
	}
	stage(first)
	for end := false; !end; {
		var buf []byte
		select {
		case buf = <-buffers:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if len(ids) == maxBlocks {
			cancel(&ownError{fmt.Errorf("more than fits into %d blocks; give the store's URL a larger chunk-size than %s", maxBlocks, humanize.IBytes(uint64(u.b.block)))})
			return context.Cause(ctx)
		}
		data, last, err := storage.Fill(ctx, r, buf, int(blockSize(u.b.block, len(ids))))
		if err != nil {
			if ctx.Err() == nil {
				cancel(&ownError{err}) // so that blocks under way are not waited for
			}
			return context.Cause(ctx)
		}
		if len(data) > 0 {
			stage(data)
		}
		end = last
	}
	sending.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	request, retry := u.b.request(ctx, "put", u.key)
	_, err := u.blob.CommitBlockList(request, ids, &blockblob.CommitBlockListOptions{
		Metadata: u.metadata(), Tier: u.tier, AccessConditions: u.conditions(),
	})
	return u.settle(outer, retry, err)
}

// settle finds out how a request ended that makes the blob visible, of which err is the last answer: when an earlier
// answer was lost, a repetition finds the key taken, or the blocks gone, by its own success. It asks the listing, since who
// writes backups need not be allowed to read them.
func (u *upload) settle(ctx context.Context, retry *storage.Retry, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	_, kind := explain(err)
	conflict := kind == storage.ErrExists || bloberror.HasCode(err, bloberror.InvalidBlockList)
	if !(kind == storage.ErrTemporary || conflict && (u.ifAbsent || retry.Failed() > 0)) {
		// With a signature that allows to create only, what is there already is a matter of permission.
		if u.ifAbsent && bloberror.HasCode(err, bloberror.UnauthorizedBlobOverwrite) {
			return storage.ErrExists
		}
		return err
	}
	request, again := u.b.request(ctx, "put", u.key)
	if kind == storage.ErrTemporary {
		again.Patience = 0 // was spent already
	}
	found, listErr := u.b.find(request, u.key)
	switch {
	case listErr != nil:
		return err
	case found == nil:
		if kind == storage.ErrExists {
			return errLeftover
		}
		return err
	}
	for name, value := range found.Metadata {
		if strings.EqualFold(name, uploadMetadata) && value != nil && *value == hex.EncodeToString(u.id[:]) {
			return nil
		}
	}
	if conflict && u.ifAbsent {
		return storage.ErrExists
	}
	return err
}

// find returns the listing's entry of a blob, or nil.
func (b *Bucket) find(ctx context.Context, key string) (*container.BlobItem, error) {
	name, one := b.prefix+key, int32(1) // which is the first of the names that begin with it
	pager := b.container.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
		Prefix: &name, MaxResults: &one, Include: container.ListBlobsInclude{Metadata: true},
	})
	for pager.More() { // pages may be empty
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		if items := page.Segment.BlobItems; len(items) > 0 {
			if value(items[0].Name) == name {
				return items[0], nil
			}
			break
		}
	}
	return nil, nil
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
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
	client := b.container.NewBlobClient(b.prefix + key)
	if length != 0 {
		part := blob.HTTPRange{Offset: offset} // without a count to the end
		if length > 0 && length <= math.MaxInt64-offset {
			part.Count = length
		}
		request, _ := b.request(ctx, "open", key)
		resp, err := client.DownloadStream(request, &blob.DownloadStreamOptions{Range: part})
		if err == nil {
			return &reader{ctx, b, key, resp.Body}, nil
		}
		if _, kind := explain(err); kind != storage.ErrRange {
			return fail(err)
		}
	}
	// There are no ranges of no bytes, which an offset at the very end asks for, too.
	request, _ := b.request(ctx, "open", key)
	p, err := client.GetProperties(request, nil)
	if err == nil && offset > value(p.ContentLength) {
		err = storage.ErrRange
	}
	if err != nil {
		return fail(err)
	}
	return &reader{ctx, b, key, http.NoBody}, nil
}

type reader struct {
	ctx  context.Context
	b    *Bucket
	key  string
	body io.ReadCloser
}

// Read fails with io.ErrUnexpectedEOF, by net/http, where the body is shorter than was announced.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.b.fail(r.ctx, "read", r.key, err)
	}
	n, err := r.body.Read(p)
	if err != nil && err != io.EOF {
		err = r.b.fail(r.ctx, "read", r.key, err)
	}
	return n, err
}

func (r *reader) Close() error { r.body.Close(); return nil }

// List implements storage.Bucket. What lies in folders below is not asked for. It holds the names with this prefix in
// memory, because the order of the service is not documented, and is not that of bytes beyond ASCII in Azurite.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		var objects []storage.Object
		name := b.prefix + prefix
		pager := b.container.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &name, MaxResults: b.pageSize})
		for pager.More() {
			if err := ctx.Err(); err != nil {
				yield(storage.Object{}, b.fail(ctx, "list", "", err))
				return
			}
			request, _ := b.request(ctx, "list", prefix)
			page, err := pager.NextPage(request)
			if err != nil {
				yield(storage.Object{}, b.fail(ctx, "list", "", err))
				return
			}
			for _, item := range page.Segment.BlobItems {
				key := strings.TrimPrefix(value(item.Name), b.prefix)
				if storage.ValidKey(key) == nil && item.Properties != nil {
					objects = append(objects, storage.Object{
						Key: key, Size: value(item.Properties.ContentLength), Modified: value(item.Properties.LastModified),
					})
				}
			}
		}
		slices.SortFunc(objects, func(a, c storage.Object) int { return cmp.Compare(a.Key, c.Key) })
		for _, o := range objects {
			if err := ctx.Err(); err != nil {
				yield(storage.Object{}, b.fail(ctx, "list", "", err))
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// Delete implements storage.Bucket. Where the service keeps versions or deleted blobs for a while, it still does.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := check(ctx, key)
	if err == nil {
		request, _ := b.request(ctx, "delete", key)
		_, err = b.container.NewBlobClient(b.prefix+key).Delete(request, nil)
	}
	if err == nil || bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil
	}
	return b.fail(ctx, "delete", key, err)
}

// LockedUntil implements storage.Locker: by immutability policy and legal hold of the blob. A policy of the whole
// container shows in no blob; what it forbids is ErrPermission when it is tried.
func (b *Bucket) LockedUntil(ctx context.Context, key string) (time.Time, error) {
	if err := check(ctx, key); err != nil {
		return time.Time{}, b.fail(ctx, "open", key, err)
	}
	request, _ := b.request(ctx, "open", key)
	p, err := b.container.NewBlobClient(b.prefix+key).GetProperties(request, nil)
	if err != nil {
		return time.Time{}, b.fail(ctx, "open", key, err)
	}
	if value(p.LegalHold) {
		return storage.FarFuture, nil
	}
	if until := value(p.ImmutabilityPolicyExpiresOn); until.After(value(p.Date)) {
		return until, nil
	}
	return time.Time{}, nil
}

// Inspect implements storage.Inspector.
func (b *Bucket) Inspect(ctx context.Context) []storage.Setting {
	request, _ := b.request(ctx, "list", "")
	c, containerErr := b.container.GetProperties(request, nil)
	request, _ = b.request(ctx, "list", "")
	s, serviceErr := b.service.GetProperties(request, nil)
	setting := func(name string, err error, value func() string) storage.Setting {
		if err != nil {
			return storage.Setting{Name: name, Err: b.fail(ctx, "list", "", err)}
		}
		return storage.Setting{Name: name, Value: value()}
	}
	yes := func(p *bool) string {
		if value(p) {
			return "yes"
		}
		return "no"
	}
	return []storage.Setting{
		setting("soft delete", serviceErr, func() string {
			if d := s.DeleteRetentionPolicy; d != nil && value(d.Enabled) {
				return fmt.Sprintf("%d days", value(d.Days))
			}
			return "disabled"
		}),
		{Name: "versioning", Err: errors.New("not told to users of the data; az storage account blob-service-properties show does")},
		setting("immutability policy of the container", containerErr, func() string { return yes(c.HasImmutabilityPolicy) }),
		setting("legal hold of the container", containerErr, func() string { return yes(c.HasLegalHold) }),
		setting("immutability of single blobs", containerErr, func() string { return yes(c.IsImmutableStorageWithVersioningEnabled) }),
		setting("encryption scope", containerErr, func() string { return cmp.Or(value(c.DefaultEncryptionScope), "not told") }),
		setting("public access", containerErr, func() string { return cmp.Or(string(value(c.BlobPublicAccess)), "none") }),
	}
}

// statusError is what the service answered. The SDK's own errors have many lines, with the answer's body.
type statusError struct {
	status int
	code   string
}

func (e *statusError) Error() string {
	if e.code == "" {
		return fmt.Sprintf("status %d %s", e.status, http.StatusText(e.status))
	}
	return fmt.Sprintf("%s (status %d)", e.code, e.status)
}

func (e *statusError) kind() error {
	switch bloberror.Code(e.code) {
	case bloberror.BlobAlreadyExists, bloberror.ConditionNotMet, bloberror.TargetConditionNotMet: // of If-None-Match
		return storage.ErrExists
	case "BlobImmutableDueToPolicy":
		return storage.ErrPermission
	case bloberror.MD5Mismatch: // was changed on the way
		return storage.ErrTemporary
	case bloberror.ContainerBeingDeleted, bloberror.ContainerDisabled:
		return storage.ErrNotFound
	}
	switch e.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return storage.ErrPermission
	case http.StatusNotFound:
		return storage.ErrNotFound
	case http.StatusRequestedRangeNotSatisfiable:
		return storage.ErrRange
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return storage.ErrTemporary
	}
	return nil
}

// explain returns the cause for people, on one line and without anything secret, and its kind.
func explain(err error) (cause, kind error) {
	for _, kind := range []error{storage.ErrExists, storage.ErrRange} {
		if err == kind {
			return nil, kind
		}
	}
	if err == errLeftover {
		return err, nil
	}
	var answer *azcore.ResponseError
	var own *ownError
	var final interface {
		error
		NonRetriable()
	}
	switch {
	case errors.As(err, &own):
		return own.error, nil
	case errors.As(err, &answer):
		s := &statusError{answer.StatusCode, answer.ErrorCode}
		return s, s.kind()
	case errors.As(err, &final): // of azidentity: several lines, without secrets
		return errors.New(strings.Join(strings.Fields(final.Error()), " ")), storage.ErrPermission
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
