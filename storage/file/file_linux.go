package file

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// startWriteback asks the kernel to begin writing a range of f to the disk, without waiting for it. Otherwise the kernel
// gathers pages for half a minute, and the fsync at the end of a part of 1 GB stands still until all have been
// written, while whoever feeds the Put waits. It is a hint: errors are ignored, fsync reports those that count.
func startWriteback(f *os.File, offset, length int64) {
	c, err := f.SyscallConn()
	if err != nil {
		return
	}
	c.Control(func(fd uintptr) {
		unix.SyncFileRange(int(fd), offset, length, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// directAlign is what O_DIRECT asks of offset, length and memory (open(2)): no device in use wants more than a page.
const directAlign = 4096

// aligned tells whether p can be written with O_DIRECT.
func aligned(p []byte) bool {
	return len(p) > 0 && len(p)%directAlign == 0 && uintptr(unsafe.Pointer(&p[0]))%directAlign == 0
}

// setDirect switches O_DIRECT on or off for what follows.
func setDirect(f *os.File, on bool) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		var flags int
		if flags, failed = unix.FcntlInt(fd, unix.F_GETFL, 0); failed != nil {
			return
		}
		if flags &^= unix.O_DIRECT; on {
			flags |= unix.O_DIRECT
		}
		_, failed = unix.FcntlInt(fd, unix.F_SETFL, flags)
	})
	return errors.Join(err, failed)
}

// renameNoReplace is a rename that fails with EEXIST where newname is taken.
func renameNoReplace(oldname, newname string) error {
	return unix.Renameat2(unix.AT_FDCWD, oldname, unix.AT_FDCWD, newname, unix.RENAME_NOREPLACE)
}
