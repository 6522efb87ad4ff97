//go:build unix && !linux

package postgres

import (
	"os"
	"syscall"
)

// newPipe makes a pipe whose ends block, so that a read of it is one read(2).
func newPipe() (r, w *os.File, err error) {
	var fds [2]int
	syscall.ForkLock.RLock()
	err = syscall.Pipe(fds[:])
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	return os.NewFile(uintptr(fds[0]), "|0"), os.NewFile(uintptr(fds[1]), "|1"), nil
}

func enlargePipe(fd int) int { return 64 << 10 }

func pending(fd int) int { return -1 }

func batch(pid int) {}

func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) {}

// adoptOrphans does nothing here: init reaps orphans.
func adoptOrphans() (end func()) { return func() {} }

// reapGroup waits until nothing is left in a group whose leader has been waited for, or stop is closed.
func reapGroup(pgid int, stop <-chan struct{}, bad func(syscall.WaitStatus)) {
	waitGroupGone(pgid, stop)
}
