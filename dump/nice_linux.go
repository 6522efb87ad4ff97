package dump

import (
	"log/slog"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// yieldCPU lowers the priority of every thread of this process but the calling
// one, which goes on to read the dump: reading costs little, and while nobody
// reads the database waits. Linux keeps a nice value per thread, and a new
// thread takes that of its maker (setpriority(2)). done must be called by the
// same goroutine.
func yieldCPU(nice int, log *slog.Logger) (done func()) {
	if nice == 0 {
		return func() {}
	}
	runtime.LockOSThread()
	own := unix.Gettid()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		log.Debug("priority not lowered", "err", err)
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil && tid != own {
			// The call gives 20 minus the nice value (getpriority(2), notes).
			now, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
			if err == nil {
				err = unix.Setpriority(unix.PRIO_PROCESS, tid, min(20-now+nice, 19))
			}
			if err != nil && err != unix.ESRCH {
				log.Debug("priority not lowered", "thread", tid, "err", err)
			}
		}
	}
	return runtime.UnlockOSThread
}
