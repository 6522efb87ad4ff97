package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"encdump/storage"
)

// Uploads are made of the SDK's operations and not by one of its upload managers, of which the authors recommend
// feature/s3/transfermanager (https://github.com/aws/aws-sdk-go-v2/discussions/3306). Both managers keep to one size of
// chunk, so that a stream of unknown length ends at 10,000 of them: at 80 GB with chunks of 8 MiB. And neither tells a
// success whose answer was lost from a failure: they abort, and report an error for an object that is there.

// Limits of S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
const (
	minChunk  = 5 << 20
	maxChunk  = 5 << 30
	maxChunks = 10_000
)

const (
	// smallSize is what is allocated for an object as long as it is not known to be larger: many are a line of text.
	smallSize = 64 << 10
	// growEvery is after how many chunks they double.
	growEvery = 900
	// grace is how long a request of an upload may go on after the caller's context is done; see linger.
	grace = 5 * time.Second
	// cleanupTime bounds what is done after a failure, when the caller's context may be done.
	cleanupTime = 20 * time.Second
	// uploadKey is the name of the metadata by which an upload knows its object again; see Bucket.stored.
	uploadKey = "dump-upload"
)

// chunkSize returns the size of the nth chunk, from 0, where the first has size first. The sizes double every growEvery
// chunks, so that 10,000 of them hold more than the 5 TiB that an object may have, and so that chunks are large, and take
// memory, for the largest objects only: at least 1/1,800 of what was sent before.
func chunkSize(first int64, n int) int64 { return min(maxChunk, first<<(n/growEvery)) }

// Put implements storage.Bucket. What fits in one chunk is put by one request; more becomes a multipart upload, which
// is aborted after a failure. It holds concurrency chunks in memory, and two where chunks have grown large.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader, o *storage.PutOptions) error {
	if o == nil {
		o = &storage.PutOptions{}
	}
	if err := storage.ValidKey(key); err != nil {
		return b.fail(ctx, "put", key, err)
	}
	p := &put{b: b, ctx: ctx, key: b.key(key), r: r, token: rand.Text()}
	if o.IfAbsent {
		p.ifNoneMatch = aws.String("*")
	}
	if !b.until.IsZero() && !o.Transient {
		p.until, p.lockMode = &b.until, b.lockMode
	}
	buf := make([]byte, smallSize)
	n, end, err := p.fill(ctx, buf)
	if err == nil && !end {
		buf = append(make([]byte, 0, b.chunk), buf...)[:b.chunk]
		n, end, err = p.fill(ctx, buf[n:])
		n += smallSize
	}
	switch {
	case err != nil:
	case end:
		err = p.single(buf[:n])
	default:
		err = p.multipart(buf)
	}
	var read *readError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &read): // r's own, so not ours to classify
		return &storage.Error{Op: "put", Key: key, Bucket: b.String(), Err: &cause{err.Error(), read.err}}
	}
	return b.fail(ctx, "put", key, err)
}

// put is one call of Put.
type put struct {
	b     *Bucket
	ctx   context.Context
	key   *string
	r     io.Reader
	token string // of this call alone

	ifNoneMatch *string
	until       *time.Time
	lockMode    types.ObjectLockMode
}

// readError is an error of the reader that is put.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// fill reads until buf is full, the reader ends, or ctx is done.
func (p *put) fill(ctx context.Context, buf []byte) (n int, end bool, err error) {
	for empty := 0; n < len(buf); {
		if ctx.Err() != nil {
			return n, false, context.Cause(ctx)
		}
		m, err := p.r.Read(buf[n:])
		n += m
		switch {
		case err == io.EOF:
			return n, true, nil
		case err != nil:
			return n, false, &readError{err}
		case m > 0:
			empty = 0
		default:
			if empty++; empty == 100 {
				return n, false, &readError{io.ErrNoProgress}
			}
		}
	}
	return n, false, nil
}

// contentMD5 is sent where checksums of the newer kind are not: all services know it, and check it.
func (b *Bucket) contentMD5(data []byte) *string {
	if b.checksum != "" {
		return nil
	}
	sum := md5.Sum(data)
	return aws.String(base64.StdEncoding.EncodeToString(sum[:]))
}

func (p *put) metadata() map[string]string { return map[string]string{uploadKey: p.token} }

// single puts a small object.
func (p *put) single(data []byte) error {
	b := p.b
	sum := md5.Sum(data)
	return p.publish("PutObject", int64(len(data)), hex.EncodeToString(sum[:]), func(ctx context.Context, apply func(*s3.Options)) error {
		_, err := b.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &b.bucket, Key: p.key, Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))),
			IfNoneMatch: p.ifNoneMatch, Metadata: p.metadata(),
			ChecksumAlgorithm: b.checksum, ContentMD5: b.contentMD5(data),
			ObjectLockMode: p.lockMode, ObjectLockRetainUntilDate: p.until,
			StorageClass: b.storageClass, ServerSideEncryption: b.sse, SSEKMSKeyId: b.kmsKey,
		}, apply)
		return err
	})
}

// linger returns a context for one request whose attempt may end when ctx is done, for grace. What is cut off leaves open
// what the service does with it: the object may be there or not, and a chunk that the service stores after the upload was
// aborted stays for ever (https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html).
func linger(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(grace, cancel)
		context.AfterFunc(longer, func() { t.Stop() })
	})
	return longer, func() { stop(); cancel() }
}

// publish sends the request that makes the object visible, and finds out whether it did where its answer was lost.
func (p *put) publish(name string, size int64, etag string, send func(context.Context, func(*s3.Options)) error) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := linger(p.ctx)
	defer cancel()
	r := p.b.request(p.ctx, name)
	err := send(ctx, r.apply)
	if err == nil || !r.unsure {
		return err
	}
	// What an attempt after the first says, as "exists already" or "no such upload", may be the first one's doing.
	stored, checkErr := p.stored(size, etag)
	switch {
	case stored:
		p.b.options.Logger.Info("the answer was lost, the object is there", "store", p.b.String(), "object", *p.key)
		return nil
	case checkErr != nil:
		return &cause{fmt.Sprintf("%v; whether the object was stored is not known", explain(err)), err}
	}
	return err
}

// stored tells whether the object under the key is this call's. What tells is a random value in the object's metadata:
// ETags are not what they seem with KMS, not all services have checksums, and both are the same for two writers of the
// same content, of whom only one may believe that the name is his. Where reading is not permitted, size and ETag in the
// listing must do.
func (p *put) stored(size int64, etag string) (bool, error) {
	ctx, cancel := p.cleanup()
	defer cancel()
	head, err := p.b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &p.b.bucket, Key: p.key}, p.b.request(ctx, "HeadObject").apply)
	switch {
	case err == nil:
		return head.Metadata[uploadKey] == p.token, nil
	case statusOf(err) == http.StatusNotFound:
		return false, nil
	case statusOf(err) != http.StatusForbidden:
		return false, err
	}
	list, err := p.b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &p.b.bucket, Prefix: p.key, MaxKeys: aws.Int32(1)}, p.b.request(ctx, "ListObjectsV2").apply)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(list.Contents, func(o types.Object) bool {
		return aws.ToString(o.Key) == *p.key && aws.ToInt64(o.Size) == size && strings.Trim(aws.ToString(o.ETag), `"`) == etag
	}), nil
}

// cleanup returns a context for what must be done even though the caller's is done.
func (p *put) cleanup() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(p.ctx), min(cleanupTime, p.b.options.Patience))
}

// multipart uploads what is more than one chunk; first is full. After an error the upload is aborted.
func (p *put) multipart(first []byte) error {
	id, err := p.begin()
	if err != nil {
		return err
	}
	defer p.b.forget(id)
	parts, size, err := p.send(id, first)
	if err == nil {
		err = p.complete(id, parts, size)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := p.cleanup()
	defer cancel()
	if abortErr := p.b.abort(ctx, *p.key, id); abortErr != nil {
		// The way out is in the text: the service goes on asking money for what nobody sees.
		text := fmt.Sprintf("%v; what was uploaded could not be removed (%v) and stays as upload %s", explain(err), explain(abortErr), id)
		return &cause{text, err}
	}
	return err
}

// begin starts a multipart upload and notes that it is under way.
func (p *put) begin() (id string, err error) {
	b := p.b
	r := b.request(p.ctx, "CreateMultipartUpload")
	out, err := b.client.CreateMultipartUpload(p.ctx, &s3.CreateMultipartUploadInput{
		Bucket: &b.bucket, Key: p.key, Metadata: p.metadata(), ChecksumAlgorithm: b.checksum,
		ObjectLockMode: p.lockMode, ObjectLockRetainUntilDate: p.until,
		StorageClass: b.storageClass, ServerSideEncryption: b.sse, SSEKMSKeyId: b.kmsKey,
	}, r.apply)
	if err == nil {
		id = aws.ToString(out.UploadId)
		b.mu.Lock()
		b.active[id] = true
		b.mu.Unlock()
	}
	if r.unsure {
		p.abortStrays(r.start)
	}
	return id, err
}

func (b *Bucket) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.active, id)
}

// abortStrays removes uploads that were begun for this key since start without our learning their IDs, because the
// answer was lost. A listing says nothing of who began an upload but the time and the key; that somebody else began
// one for the same key within these seconds is taken to be impossible, as no two backups have the same ID. Where listing
// is not permitted the stray stays, for Uploads to find.
func (p *put) abortStrays(start time.Time) {
	ctx, cancel := p.cleanup()
	defer cancel()
	b := p.b
	err := b.uploads(ctx, *p.key, func(u types.MultipartUpload, now time.Time) error {
		age, tried := now.Sub(aws.ToTime(u.Initiated)), time.Since(start)+2*time.Second // the service's times are whole seconds
		b.mu.Lock()
		ours := b.active[aws.ToString(u.UploadId)]
		b.mu.Unlock()
		if aws.ToString(u.Key) != *p.key || ours || age > tried {
			return nil
		}
		return b.abort(ctx, *p.key, aws.ToString(u.UploadId))
	})
	if err != nil {
		b.options.Logger.Info("cannot look for uploads whose begin was not answered", "store", b.String(), "err", explain(err))
	}
}

// send uploads the chunks, as many at a time as the memory for chunks allows.
func (p *put) send(id string, first []byte) ([]types.CompletedPart, int64, error) {
	b := p.b
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	var (
		mu       sync.Mutex
		parts    []types.CompletedPart // guarded by mu until all are sent
		size     int64
		wg       sync.WaitGroup
		finished = make(chan []byte, b.concurrency)
		underway = 0
		spare    [][]byte
	)
	defer wg.Wait() // before the caller aborts
	buf, n, end := first, len(first), false
	for i := 0; ; i++ {
		if n > 0 {
			if i == maxChunks {
				cancel(nil)
				return nil, 0, fmt.Errorf("the object is larger than %d chunks", maxChunks)
			}
			number, full, data := int32(i+1), buf, buf[:n]
			size += int64(n)
			underway++
			wg.Go(func() {
				part, err := p.sendPart(ctx, id, number, data)
				if err != nil {
					cancel(err)
				} else {
					mu.Lock()
					parts = append(parts, part)
					mu.Unlock()
				}
				finished <- full
			})
		}
		if end {
			break
		}
		next := chunkSize(b.chunk, i+1)
		limit := min(int64(b.concurrency), max(2, b.chunk*int64(b.concurrency)/next))
		for buf = nil; int64(underway) >= limit || buf == nil; {
			if int64(underway) < limit {
				spare = slices.DeleteFunc(spare, func(s []byte) bool { return int64(len(s)) < next })
				if len(spare) == 0 {
					spare = append(spare, make([]byte, next))
				}
				buf, spare = spare[len(spare)-1][:next], spare[:len(spare)-1]
				break
			}
			select {
			case done := <-finished:
				underway--
				spare = append(spare, done)
			case <-ctx.Done():
				return nil, 0, context.Cause(ctx)
			}
		}
		var err error
		if n, end, err = p.fill(ctx, buf); err != nil {
			cancel(err)
			return nil, 0, err
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	slices.SortFunc(parts, func(x, y types.CompletedPart) int { return int(*x.PartNumber - *y.PartNumber) })
	return parts, size, nil
}

func (p *put) sendPart(ctx context.Context, id string, number int32, data []byte) (types.CompletedPart, error) {
	b := p.b
	longer, cancel := linger(ctx)
	defer cancel()
	out, err := b.client.UploadPart(longer, &s3.UploadPartInput{
		Bucket: &b.bucket, Key: p.key, UploadId: &id, PartNumber: &number,
		Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))),
		ChecksumAlgorithm: b.checksum, ContentMD5: b.contentMD5(data),
	}, b.request(ctx, "UploadPart").apply)
	if err != nil {
		return types.CompletedPart{}, err
	}
	return types.CompletedPart{
		PartNumber: &number, ETag: out.ETag,
		ChecksumCRC32: out.ChecksumCRC32, ChecksumCRC32C: out.ChecksumCRC32C, ChecksumCRC64NVME: out.ChecksumCRC64NVME,
		ChecksumSHA1: out.ChecksumSHA1, ChecksumSHA256: out.ChecksumSHA256,
	}, nil
}

// complete makes an object of the chunks.
func (p *put) complete(id string, parts []types.CompletedPart, size int64) error {
	b := p.b
	// The ETag that most services give: the MD5 of the chunks' MD5s, and their number.
	var sums []byte
	for _, part := range parts {
		sum, _ := hex.DecodeString(strings.Trim(aws.ToString(part.ETag), `"`))
		sums = append(sums, sum...)
	}
	etag := fmt.Sprintf("%x-%d", md5.Sum(sums), len(parts))
	return p.publish("CompleteMultipartUpload", size, etag, func(ctx context.Context, apply func(*s3.Options)) error {
		_, err := b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &b.bucket, Key: p.key, UploadId: &id, IfNoneMatch: p.ifNoneMatch,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		}, apply)
		return err
	})
}

// abort removes an upload; one that is gone is no error.
func (b *Bucket) abort(ctx context.Context, key, id string) error {
	_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.bucket, Key: &key, UploadId: &id},
		b.request(ctx, "AbortMultipartUpload").apply)
	if codeOf(err) == "NoSuchUpload" {
		return nil
	}
	return err
}

// uploads calls f with each upload whose full key begins with prefix, and the service's time, until it fails.
func (b *Bucket) uploads(ctx context.Context, prefix string, f func(u types.MultipartUpload, now time.Time) error) error {
	in := &s3.ListMultipartUploadsInput{Bucket: &b.bucket, Prefix: &prefix}
	for {
		out, err := b.client.ListMultipartUploads(ctx, in, b.request(ctx, "ListMultipartUploads").apply)
		if err != nil {
			return err
		}
		now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
		if !ok {
			now = time.Now()
		}
		for _, u := range out.Uploads {
			if err := f(u, now); err != nil {
				return err
			}
		}
		next := aws.ToString(out.NextKeyMarker) + "\n" + aws.ToString(out.NextUploadIdMarker)
		if !aws.ToBool(out.IsTruncated) || next == "\n" || next == aws.ToString(in.KeyMarker)+"\n"+aws.ToString(in.UploadIdMarker) {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}

// Uploads implements storage.Uploader.
func (b *Bucket) Uploads(ctx context.Context, prefix string) iter.Seq2[storage.Upload, error] {
	return func(yield func(storage.Upload, error) bool) {
		errStop := errors.New("stop")
		err := b.uploads(ctx, *b.key(prefix), func(u types.MultipartUpload, _ time.Time) error {
			key := strings.TrimPrefix(aws.ToString(u.Key), b.prefix)
			if storage.ValidKey(key) == nil && !yield(storage.Upload{Key: key, ID: aws.ToString(u.UploadId), Started: aws.ToTime(u.Initiated)}, nil) {
				return errStop
			}
			return ctx.Err()
		})
		if err != nil && err != errStop {
			yield(storage.Upload{}, b.fail(ctx, "list", "", err))
		}
	}
}

// AbortUpload implements storage.Uploader.
func (b *Bucket) AbortUpload(ctx context.Context, u storage.Upload) error {
	if err := storage.ValidKey(u.Key); err != nil {
		return b.fail(ctx, "delete", u.Key, err)
	}
	if err := b.abort(ctx, *b.key(u.Key), u.ID); err != nil {
		return b.fail(ctx, "delete", u.Key, err)
	}
	return nil
}
