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

// Nothing is written past the page cache here.
const directAlign = 1

func aligned([]byte) bool { return false }

func setDirect(*os.File, bool) error { return nil }
