// Package s3 keeps objects in a bucket of Amazon S3, or of another service that speaks its protocol. It registers the
// URL scheme "s3". docs/s3.md tells users of its options.
//
// Objects are those whose keys lie directly under the prefix of the URL and are valid under storage.ValidKey; what else
// lies in the bucket is not seen.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"encdump/storage"
)

func init() { storage.Register("s3", open) }

// Bucket is a bucket, or what lies under a prefix of one. It implements storage.Bucket, storage.Uploader,
// storage.Locker and storage.Inspector.
type Bucket struct {
	settings
	client      *s3.Client
	credentials *credentials
	options     storage.Options
	until       time.Time // what is put is locked until then; zero: not

	mu     sync.Mutex
	active map[string]bool // IDs of this Bucket's uploads under way
}

func (b *Bucket) String() string { return b.url }

// Open implements storage.Bucket. The request is tried again until the service begins to answer; a transfer that breaks
// off after that is an error that matches storage.ErrTemporary.
func (b *Bucket) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fail := func(err error) (io.ReadCloser, error) { return nil, b.fail(ctx, "open", key, err) }
	if err := storage.ValidKey(key); err != nil {
		return fail(err)
	}
	if offset < 0 {
		return fail(fmt.Errorf("negative offset %d", offset))
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if length == 0 {
		return b.openEmpty(ctx, key, offset)
	}
	in := &s3.GetObjectInput{Bucket: &b.bucket, Key: b.key(key)}
	switch {
	case length > 0 && length <= math.MaxInt64-offset:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := b.client.GetObject(ctx, in, b.request(ctx, "GetObject").apply)
	if statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return b.openEmpty(ctx, key, offset) // to S3 a range must hold a byte
	}
	if err != nil {
		return fail(err)
	}
	if in.Range != nil && out.ContentRange == nil && offset > aws.ToInt64(out.ContentLength) {
		out.Body.Close()
		return fail(storage.ErrRange) // some services take no notice of a range that is far off
	}
	// The whole object instead of a range would give wrong bytes.
	if in.Range != nil && !strings.HasPrefix(aws.ToString(out.ContentRange), fmt.Sprintf("bytes %d-", offset)) {
		out.Body.Close()
		return fail(errors.New("the service does not keep to the range that it was asked for"))
	}
	return &reader{ctx: ctx, b: b, key: key, body: out.Body, left: aws.ToInt64(out.ContentLength), sized: out.ContentLength != nil}, nil
}

// openEmpty is Open where no byte is to come, or none is there.
func (b *Bucket) openEmpty(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	head, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.bucket, Key: b.key(key)}, b.request(ctx, "HeadObject").apply)
	if err == nil && offset > aws.ToInt64(head.ContentLength) {
		err = storage.ErrRange
	}
	if err != nil {
		return nil, b.fail(ctx, "open", key, err)
	}
	return &reader{ctx: ctx, b: b, key: key, body: http.NoBody}, nil
}

type reader struct {
	ctx   context.Context
	b     *Bucket
	key   string
	body  io.ReadCloser
	left  int64 // bytes that are to come, if sized
	sized bool
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.b.fail(r.ctx, "read", r.key, err)
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	if err == io.EOF && r.sized && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = r.b.fail(r.ctx, "read", r.key, err)
	}
	return n, err
}

func (r *reader) Close() error {
	r.body.Close() // says nothing about the data, which were read or are not wanted
	return nil
}

// List implements storage.Bucket.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		fail := func(err error) { yield(storage.Object{}, b.fail(ctx, "list", "", err)) }
		in := &s3.ListObjectsV2Input{Bucket: &b.bucket, Prefix: b.key(prefix), Delimiter: aws.String("/")}
		last := ""
		for {
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			out, err := b.client.ListObjectsV2(ctx, in, b.request(ctx, "ListObjectsV2").apply)
			if err != nil {
				fail(err)
				return
			}
			for _, o := range out.Contents {
				key := strings.TrimPrefix(aws.ToString(o.Key), b.prefix)
				if storage.ValidKey(key) != nil {
					continue
				}
				if key <= last {
					fail(errors.New("the service does not list in the order of keys (directory buckets of S3 Express do not), which is needed here"))
					return
				}
				last = key
				if err := ctx.Err(); err != nil {
					fail(err)
					return
				}
				if !yield(storage.Object{Key: key, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextContinuationToken) == "" {
				// Only now would a caller believe that this was all.
				if err := ctx.Err(); err != nil {
					fail(err)
				}
				return
			}
			in.ContinuationToken = out.NextContinuationToken
		}
	}
}

// Delete implements storage.Bucket. In a versioned bucket it leaves the object as an earlier version behind a delete
// marker, as every plain delete does: what a thief of these credentials deletes can be had back.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := storage.ValidKey(key); err != nil {
		return b.fail(ctx, "delete", key, err)
	}
	if err := ctx.Err(); err != nil {
		return b.fail(ctx, "delete", key, err)
	}
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.bucket, Key: b.key(key)}, b.request(ctx, "DeleteObject").apply)
	if err != nil && codeOf(err) != "NoSuchKey" {
		return b.fail(ctx, "delete", key, err)
	}
	return nil
}

// key returns the name in the bucket.
func (b *Bucket) key(key string) *string { return aws.String(b.prefix + key) }
