package file

import (
	"os"

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

// renameNoReplace is a rename that fails with EEXIST where newname is taken.
func renameNoReplace(oldname, newname string) error {
	return unix.Renameat2(unix.AT_FDCWD, oldname, unix.AT_FDCWD, newname, unix.RENAME_NOREPLACE)
}
