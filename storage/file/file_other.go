//go:build !linux

package file

import (
	"os"
	"syscall"
)

// startWriteback has no counterpart here; the fsync at the end writes all.
func startWriteback(*os.File, int64, int64) {}

// renameNoReplace has no portable counterpart; see moveNew for what is done then.
func renameNoReplace(_, _ string) error { return syscall.ENOTSUP }
