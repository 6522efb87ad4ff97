package postgres

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pipeSize is what a pipe is enlarged to: at 64 KiB the writer and we would wake each other all the time.
const pipeSize = 1 << 20

// newPipe makes a pipe whose ends block, so that a read of it is one read(2).
func newPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	return os.NewFile(uintptr(fds[0]), "|0"), os.NewFile(uintptr(fds[1]), "|1"), nil
}

// enlargePipe makes a pipe as large as the system lets us, pipe-max-size and the user's total being limits, and returns
// its size in bytes.
func enlargePipe(fd int) int {
	for size := pipeSize; size > 64<<10; size /= 2 {
		if n, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size); err == nil {
			return n
		}
	}
	return 64 << 10
}

// pending returns the number of bytes that wait in a pipe, -1 where that is not known.
func pending(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // the same as FIONREAD, pipe(7)
	if err != nil {
		return -1
	}
	return n
}

// batch puts a process that has just been started, and its children to come, under SCHED_BATCH (sched(7)). pg_dump wakes
// for each 8 kB that the server sends; a usual process that wakes takes the processor from whoever has it, tens of
// thousands of times a second, and that costs more than the work it then does. A batch process waits for its turn.
func batch(pid int) {
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, pid)
	if err == nil {
		unix.SchedSetAttr(pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: int32(20 - nice)}, 0)
	}
}

// dieWithParent asks for a signal to the child when the thread that starts it ends.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

var subreapers struct {
	sync.Mutex
	n   int
	was int32 // what it was before us; a global, so that its address can be given to the kernel
}

// adoptOrphans makes this process the parent of all orphans among its descendants, so that they can be waited for: when
// pg_dumpall dies, its pg_dump lives on. The returned function ends that.
func adoptOrphans() (end func()) {
	subreapers.Lock()
	defer subreapers.Unlock()
	if subreapers.n == 0 {
		unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&subreapers.was)), 0, 0, 0)
		if subreapers.was == 0 {
			unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
		}
	}
	subreapers.n++
	return func() {
		subreapers.Lock()
		defer subreapers.Unlock()
		subreapers.n--
		if subreapers.n == 0 && subreapers.was == 0 {
			unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		}
	}
}

// reapGroup waits for everything in a group whose leader has been waited for. A bad end of one of them is passed to
// bad. It returns early when stop is closed.
func reapGroup(pgid int, stop <-chan struct{}, bad func(syscall.WaitStatus)) {
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(-pgid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			break
		}
		if status.Exited() && status.ExitStatus() != 0 || status.Signaled() {
			bad(status)
		}
	}
	// What is left are children of processes that left the group.
	waitGroupGone(pgid, stop)
}
