// Package file keeps objects as files of one directory. It registers the URL scheme "file".
//
// What a person or another program copies into the directory is an object, too: every regular file, or symbolic link
// to one, whose name storage.ValidKey takes. Names with a leading dot are not, and the package's own temporary files
// are named so.
package file

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"encdump/storage"
)

func init() {
	storage.Register("file", func(_ context.Context, u *url.URL, _ storage.Options) (storage.Bucket, error) {
		switch {
		case u.Host != "" && u.Host != "localhost":
			return nil, errors.New("store file://" + u.Host + "…: a directory on this host has three slashes, as in file:///var/backups; a relative one is written without file://")
		case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
			return nil, errors.New("store " + u.Path + ": a file URL takes no options; write ? and # in a path as %3F and %23")
		case u.Path == "":
			return nil, errors.New("store: file URL without a path")
		case strings.ContainsRune(u.Path, 0):
			return nil, errors.New("store: path contains a NUL character")
		}
		return New(u.Path), nil
	})
}

const (
	bufferSize     = 1 << 20  // of one Put; larger brought nothing
	writebackEvery = 16 << 20 // bytes, see startWriteback
	staleAfter     = 24 * time.Hour
)

// Bucket is a directory. It implements storage.Bucket.
type Bucket struct {
	dir   string
	sweep sync.Once

	// The calls that file systems differ in or that hardly ever fail; tests put others in their place.
	link            func(oldname, newname string) error
	renameNoReplace func(oldname, newname string) error
	syncFile        func(f *os.File) error
	syncDir         func(dir string) error
}

// New returns the directory dir as a bucket. It touches nothing: the directory, where it does not exist, is made by
// the first Put, with mode 0700. The mode of an existing one is left alone.
func New(dir string) *Bucket {
	return &Bucket{
		dir:             dir,
		link:            os.Link,
		renameNoReplace: renameNoReplace,
		syncFile:        (*os.File).Sync,
		syncDir:         syncDir,
	}
}

// String returns the directory as it was given to New.
func (b *Bucket) String() string { return b.dir }

func (b *Bucket) path(key string) string { return filepath.Join(b.dir, key) }

// Put implements storage.Bucket. The data go to a temporary file of mode 0600 in the same directory, which is renamed
// when it is complete and on the disk; the folder is synced too before Put returns nil. Where r has a WriteTo it is
// used. A symbolic link under key is replaced, not followed.
//
// If nothing but the very last step, syncing the folder, fails on an overwrite, then the new object is there, whole,
// and the old one is not: it had been replaced before.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader, o *storage.PutOptions) error {
	fail := func(err error) error { return b.fail("put", key, err) }
	ifAbsent := o != nil && o.IfAbsent
	if err := storage.ValidKey(key); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if ifAbsent {
		// Only spares the reader: what decides is publish.
		if _, err := os.Lstat(b.path(key)); err == nil {
			return fail(storage.ErrExists)
		}
	}
	f, err := b.createTemp()
	if err != nil {
		return fail(err)
	}
	// These do nothing after a success, and run when r panics, too.
	defer os.Remove(f.Name())
	defer f.Close()
	b.sweep.Do(func() { b.removeStale(ctx, f) })

	if readErr, err := fill(ctx, f, r); readErr != nil {
		return &storage.Error{Op: "put", Key: key, Bucket: b.dir, Err: readErr} // r's own, so not b.fail's to classify
	} else if err != nil {
		return fail(err)
	}
	if err := b.syncFile(f); err != nil {
		return fail(err)
	}
	if err := f.Close(); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil { // writing to the disk may have taken long
		return fail(err)
	}
	return b.publish(ctx, f.Name(), key, ifAbsent)
}

// createTemp makes an empty file of a temporary name, and the directory if need be.
func (b *Bucket) createTemp() (*os.File, error) {
	var random [16]byte
	rand.Read(random[:])
	name := b.path(tempPrefix + hex.EncodeToString(random[:]) + tempSuffix)
	create := func() (*os.File, error) { return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) }
	f, err := create()
	if errors.Is(err, fs.ErrNotExist) {
		if err := b.makeDir(b.dir); err != nil {
			return nil, err
		}
		f, err = create()
	}
	return f, err
}

const tempPrefix, tempSuffix = ".dump-", ".tmp"

func isTemp(name string) bool {
	random, ok := strings.CutPrefix(name, tempPrefix)
	random, ok2 := strings.CutSuffix(random, tempSuffix)
	raw, err := hex.DecodeString(random)
	return ok && ok2 && err == nil && len(raw) == 16
}

// makeDir is os.MkdirAll that also syncs the folders it wrote to: a backup is lost with its directory.
func (b *Bucket) makeDir(dir string) error {
	parent := filepath.Dir(filepath.Clean(dir))
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := b.makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return b.syncDir(parent)
}

// removeStale removes temporary files that a killed process left. Their age is counted from own, which was made just
// now, so that it is the file system's clock on both sides. It is a courtesy: errors are ignored.
func (b *Bucket) removeStale(ctx context.Context, own *os.File) {
	now, err := own.Stat()
	if err != nil {
		return
	}
	d, err := os.Open(b.dir)
	if err != nil {
		return
	}
	defer d.Close()
	for ctx.Err() == nil {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if !isTemp(name) {
				continue
			}
			// Writing sets the time: a Put that is at work, however slow, is not stale.
			info, err := os.Lstat(b.path(name))
			if err == nil && info.Mode().IsRegular() && now.ModTime().Sub(info.ModTime()) > staleAfter {
				os.Remove(b.path(name))
			}
		}
		if err != nil {
			return
		}
	}
}

// fill copies all of r to f. It tells r's errors from those of f and ctx.
func fill(ctx context.Context, f *os.File, r io.Reader) (readErr, err error) {
	w := &fileWriter{ctx: ctx, f: f}
	buf := bufio.NewWriterSize(w, bufferSize) // gathers small reads and writes
	if wt, ok := r.(io.WriterTo); ok {
		_, err = wt.WriteTo(ctxWriter{w, buf})
	} else {
		_, err = buf.ReadFrom(ctxReader{w, r})
	}
	if err == nil || w.err != nil {
		buf.Flush() // fails as w.err says
		return nil, w.err
	}
	return err, nil
}

// fileWriter writes in pieces of bounded size, so that it can look at the context in between and start writeback early.
type fileWriter struct {
	ctx              context.Context
	f                *os.File
	err              error // first failure of the file or the context; sticks
	direct           bool  // writes go past the page cache now
	cached           bool  // they never do
	written, started int64 // bytes in the file, and how many of them writeback was started for
}

func (w *fileWriter) cancelled() error {
	if w.err == nil {
		w.err = w.ctx.Err()
	}
	return w.err
}

func (w *fileWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if w.cancelled() != nil {
			return n, w.err
		}
		m, err := w.writePiece(p[:min(len(p), bufferSize)])
		n += m
		w.written += int64(m)
		if err != nil {
			w.err = err
			return n, err
		}
		p = p[m:]
		if w.written-w.started >= writebackEvery {
			startWriteback(w.f, w.started, w.written-w.started)
			w.started = w.written
		}
	}
	return n, nil
}

// writePiece writes p past the page cache where that is possible: copying a backup through it costs the processor a
// good part of what compressing it does, and drives out of memory what the database keeps there. Where the file system
// does not have it, or has other ideas of what is aligned, everything goes through the cache.
func (w *fileWriter) writePiece(p []byte) (int, error) {
	direct := !w.cached && w.written%directAlign == 0 && aligned(p)
	if direct != w.direct {
		if err := setDirect(w.f, direct); err == nil {
			w.direct = direct
		} else if direct {
			w.cached = true
		} else {
			return 0, err
		}
	}
	n, err := w.f.Write(p)
	if w.direct && n == 0 && errors.Is(err, syscall.EINVAL) {
		w.cached = true
		return w.writePiece(p)
	}
	return n, err
}

// ctxReader and ctxWriter look at the context at every call, also while the buffer takes all.
type ctxReader struct {
	w *fileWriter
	r io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.w.cancelled(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

type ctxWriter struct {
	w   *fileWriter
	buf io.Writer
}

func (c ctxWriter) Write(p []byte) (int, error) {
	if err := c.w.cancelled(); err != nil {
		return 0, err
	}
	return c.buf.Write(p)
}

// publish gives the complete file tmp its name.
func (b *Bucket) publish(ctx context.Context, tmp, key string, ifAbsent bool) error {
	path, replaces := b.path(key), false
	var err error
	if ifAbsent {
		err = b.moveNew(ctx, tmp, path)
	} else {
		_, statErr := os.Lstat(path)
		replaces = statErr == nil
		err = os.Rename(tmp, path)
	}
	if err == nil {
		if err = b.syncDir(b.dir); err != nil && !replaces {
			os.Remove(path) // Put is about to fail, so nothing may be there
		}
	}
	if err != nil {
		return b.fail("put", key, err)
	}
	return nil
}

// moveNew renames tmp to path if nothing is there. It fails with storage.ErrExists otherwise.
//
// A plain rename replaces, and a look before it leaves a gap for another process. Creating path with O_EXCL would
// reserve the name, but show an empty object until the data are there, and for ever if the process dies in between.
// So, from what nearly every file system has to what is left:
//
//   - link(2) never replaces. FAT and many network and FUSE file systems have no hard links.
//   - renameat2(2) with RENAME_NOREPLACE, which most of those know on Linux.
//   - a look and a rename under an exclusive lock on a file of its own. The kernel drops the lock of a process that dies,
//     so it needs no cleaning; the file stays, because removing a lock file lets two processes lock two files of one
//     name. The directory itself is not locked: people run cron jobs under flock(1) on it, which would never end. It
//     decides between Puts with IfAbsent that go through one kernel, and that is the claim made where neither of
//     the above exists: against an unconditional Put of the same key at the same moment it does not protect.
func (b *Bucket) moveNew(ctx context.Context, tmp, path string) error {
	err := b.link(tmp, path)
	if err == nil {
		os.Remove(tmp) // if this fails, a second name of the object stays behind a dot until it is swept
		return nil
	}
	if errors.Is(err, fs.ErrExist) {
		// Over NFS a link that was made is reported as existing when the first answer was lost.
		a, errA := os.Lstat(tmp)
		c, errC := os.Lstat(path)
		if errA == nil && errC == nil && os.SameFile(a, c) {
			os.Remove(tmp)
			return nil
		}
		return storage.ErrExists
	}
	if !unsupported(err) {
		return err
	}
	err = b.renameNoReplace(tmp, path)
	if errors.Is(err, fs.ErrExist) {
		return storage.ErrExists
	}
	if err == nil || !unsupported(err) {
		return err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(path); err == nil {
		return storage.ErrExists
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(tmp, path)
}

// unsupported tells whether err may mean that the file system does not know the operation. EPERM is what link(2)
// returns then, EINVAL what renameat2(2) does; EMLINK is a file system that allows one name per file.
func unsupported(err error) bool {
	return slices.ContainsFunc([]error{syscall.EPERM, syscall.EINVAL, syscall.ENOSYS, syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.EMLINK, syscall.EXDEV},
		func(e error) bool { return errors.Is(err, e) })
}

const lockName = ".dump-lock"

// lock takes the exclusive lock of the directory, waiting for whoever holds it. Holders keep it for a rename only.
func (b *Bucket) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(b.path(lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing drops the lock
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			f.Close()
			return nil, fmt.Errorf("file system can neither link, nor rename without replacing, nor lock: %w", err)
		}
		// Asked again and again, because a blocking flock could not be cancelled.
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// syncDir makes changes of names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			// A drop box: may be written to, but not read, and so not synced. The names reach the disk with the next
			// commit of the file system, the data are there already.
			return nil
		}
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) {
		return nil // some network and FUSE file systems have no fsync for folders
	}
	return err
}

// Open implements storage.Bucket. What is not a regular file after following links is ErrNotFound, as in List. The
// reader keeps to the file that it opened when another Put replaces it; if that file is cut meanwhile, reading
// ends in io.ErrUnexpectedEOF.
func (b *Bucket) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fail := func(err error) error { return b.fail("open", key, err) }
	if err := storage.ValidKey(key); err != nil {
		return nil, fail(err)
	}
	if offset < 0 {
		return nil, fail(fmt.Errorf("negative offset %d", offset))
	}
	if err := ctx.Err(); err != nil {
		return nil, fail(err)
	}
	// O_NONBLOCK, which regular files ignore: opening a named pipe would wait for a writer.
	f, err := os.OpenFile(b.path(key), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fail(b.notFound(err))
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &missing{"not a regular file"}
	}
	if err == nil && offset > info.Size() {
		err = storage.ErrRange
	}
	if err == nil && offset > 0 {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fail(err)
	}
	left := info.Size() - offset
	if length >= 0 && length < left {
		left = length
	}
	return &reader{ctx: ctx, b: b, key: key, f: f, left: left}, nil
}

type reader struct {
	ctx  context.Context
	b    *Bucket
	key  string
	f    *os.File
	left int64 // bytes that the range still has
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.b.fail("read", r.key, err)
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.f.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the size was known
	}
	if err != nil {
		err = r.b.fail("read", r.key, err)
	}
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }

// List implements storage.Bucket. Skipped are names that ValidKey refuses, and all that is not a regular file after
// following links: people link backups. It holds the names with this prefix in memory, and asks for size and
// time when it comes to them.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		names, err := b.names(ctx, prefix)
		if err != nil {
			yield(storage.Object{}, b.fail("list", "", b.notFound(err)))
			return
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				yield(storage.Object{}, b.fail("list", "", err))
				return
			}
			info, err := os.Stat(b.path(name))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) {
				continue // deleted meanwhile, or a link to nothing
			}
			if err != nil {
				// Not skipped: a listing that silently lacks something is worse than none.
				yield(storage.Object{}, b.fail("list", name, err))
				return
			}
			if !info.Mode().IsRegular() {
				continue
			}
			if !yield(storage.Object{Key: name, Size: info.Size(), Modified: info.ModTime()}, nil) {
				return
			}
		}
	}
}

func (b *Bucket) names(ctx context.Context, prefix string) ([]string, error) {
	d, err := os.Open(b.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var names []string
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		some, err := d.Readdirnames(1024)
		for _, name := range some {
			if strings.HasPrefix(name, prefix) && storage.ValidKey(name) == nil {
				names = append(names, name)
			}
		}
		if err == io.EOF {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// Delete implements storage.Bucket. Of a symbolic link it removes the link, not what it leads to. A directory is
// no object and stays.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	fail := func(err error) error { return b.fail("delete", key, err) }
	if err := storage.ValidKey(key); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	info, err := os.Lstat(b.path(key))
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil {
		err = os.Remove(b.path(key))
	}
	if errors.Is(err, fs.ErrNotExist) {
		// Synced all the same: an earlier Delete may have removed the name and failed to sync.
		if err = b.syncDir(b.dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	} else if err == nil {
		err = b.syncDir(b.dir)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// missing is an ErrNotFound with a text of its own.
type missing struct{ text string }

func (m *missing) Error() string   { return m.text }
func (m *missing) Is(t error) bool { return t == storage.ErrNotFound }

// notFound tells a missing directory from a missing object, for which the system has one and the same error.
func (b *Bucket) notFound(err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ELOOP) {
		return err
	}
	if _, err := os.Stat(b.dir); errors.Is(err, fs.ErrNotExist) {
		return &missing{"no such directory"}
	}
	return &missing{"no such object"}
}

// fail makes a storage.Error of err.
func (b *Bucket) fail(op, key string, err error) error {
	// The system's errors carry path and call, which are told already, and the path may be that of a temporary file.
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	var callErr *os.SyscallError
	for {
		switch {
		case errors.As(err, &pathErr):
			err = pathErr.Err
			continue
		case errors.As(err, &linkErr):
			err = linkErr.Err
			continue
		case errors.As(err, &callErr):
			err = callErr.Err
			continue
		}
		break
	}
	e := &storage.Error{Op: op, Key: key, Bucket: b.dir, Err: err}
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	switch {
	case is(storage.ErrNotFound, storage.ErrExists, storage.ErrRange, context.Canceled, context.DeadlineExceeded):
	case is(fs.ErrPermission, syscall.EROFS):
		e.Kind = storage.ErrPermission
	case is(syscall.EAGAIN, syscall.EINTR, syscall.ETIMEDOUT, syscall.ESTALE, syscall.EMFILE, syscall.ENFILE):
		e.Kind = storage.ErrTemporary
	}
	return e
}
