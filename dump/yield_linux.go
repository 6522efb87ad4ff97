package dump

import (
	"log/slog"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// yieldCPU makes every thread of this process a batch thread (SCHED_BATCH, see
// sched(7)), which does not take the processor from others whenever it wakes, and
// adds to the nice value of all but the calling one. That one goes on to read the
// dump: reading costs little, and while nobody reads the database waits. Linux
// keeps both per thread, and a new thread takes those of its maker. done must be
// called by the same goroutine.
func yieldCPU(nice int, log *slog.Logger) (done func()) {
	runtime.LockOSThread()
	own := unix.Gettid()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		log.Debug("priority not lowered", "err", err)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		// The call gives 20 minus the nice value (getpriority(2), notes).
		value, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
		if err == nil {
			value = 20 - value
			if tid != own {
				value = min(value+nice, 19)
			}
			err = unix.SchedSetAttr(tid, &unix.SchedAttr{
				Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: int32(value),
			}, 0)
		}
		if err != nil && err != unix.ESRCH {
			log.Debug("priority not lowered", "thread", tid, "err", err)
		}
	}
	return runtime.UnlockOSThread
}
