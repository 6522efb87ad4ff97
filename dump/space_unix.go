//go:build unix

package dump

import "golang.org/x/sys/unix"

// freeSpace returns how many bytes an ordinary user may still write below a folder of this machine.
func freeSpace(dir string) (int64, bool) {
	var s unix.Statfs_t
	if dir == "" || unix.Statfs(dir, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
