package postgres

import (
	"strings"
	"sync"

	"encdump/dump/script"
)

// schedule runs jobs on a fixed number of workers. Of jobs that need the same thing, one of them exclusively, the one
// that was given later waits for the earlier one; all others run side by side.
type schedule struct {
	mu      sync.Mutex
	changed sync.Cond
	jobs    []*job // given and not ended, in the order of the script
	idle    int    // workers that wait
	closed  bool
	wg      sync.WaitGroup
}

// job is a piece of work for one worker, or for several where more is set.
type job struct {
	needs []script.Need
	// weight is how much work it is thought to be, such as the bytes of a table. Of jobs that may run, those go first
	// whose tables have most work left, so that no long chain of jobs is left to the end.
	weight int64
	run    func(worker int, alone bool)
	// more tells that a further worker may help; it is asked with the schedule's lock held.
	more    func() bool
	running int
	started bool
}

func newSchedule(workers int) *schedule {
	s := &schedule{}
	s.changed.L = &s.mu
	for i := range workers {
		s.wg.Go(func() { s.work(i) })
	}
	return s
}

// maxWaiting bounds how far the schedule looks ahead, and with it the memory for statements that wait.
const maxWaiting = 300

// give adds a job. It waits while too many have not ended.
func (s *schedule) give(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.jobs) >= maxWaiting {
		s.changed.Wait()
	}
	s.jobs = append(s.jobs, j)
	s.changed.Broadcast()
}

// wait returns when all jobs have ended.
func (s *schedule) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.jobs) > 0 {
		s.changed.Wait()
	}
}

// poke has idle workers look again for work, as more of a job may have changed.
func (s *schedule) poke() {
	s.mu.Lock()
	if s.idle > 0 {
		s.changed.Broadcast()
	}
	s.mu.Unlock()
}

// close ends the workers when all jobs have ended, and waits for that.
func (s *schedule) close() {
	s.mu.Lock()
	s.closed = true
	s.changed.Broadcast()
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *schedule) work(worker int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		j, alone := s.next()
		if j == nil {
			if s.closed && len(s.jobs) == 0 {
				return
			}
			s.idle++
			s.changed.Wait()
			s.idle--
			continue
		}
		j.started = true
		j.running++
		s.mu.Unlock()
		j.run(worker, alone)
		s.mu.Lock()
		if j.running--; j.running == 0 && (j.more == nil || !j.more()) {
			for i := range s.jobs {
				if s.jobs[i] == j {
					s.jobs = append(s.jobs[:i], s.jobs[i+1:]...)
					break
				}
			}
		}
		s.changed.Broadcast()
	}
}

// next returns the job that a worker should take now, or nil. alone tells that nothing else runs or could.
func (s *schedule) next() (best *job, alone bool) {
	work := map[string]int64{} // that is left, by table
	for _, j := range s.jobs {
		for _, n := range j.needs {
			work[n.Key] += j.weight
		}
	}
	held := map[string]bool{} // by earlier jobs; true: exclusively
	ready, running := 0, 0
	var most int64
	for _, j := range s.jobs {
		free := true
		for _, n := range j.needs {
			if exclusive, ok := held[n.Key]; ok && (exclusive || n.Exclusive) {
				free = false
			}
		}
		left := j.weight
		for _, n := range j.needs {
			held[n.Key] = held[n.Key] || n.Exclusive
			if !strings.HasPrefix(n.Key, "tree ") {
				left = max(left, work[n.Key])
			}
		}
		if j.running > 0 {
			running++
		}
		if !free || j.started && (j.more == nil || !j.more()) {
			continue
		}
		ready++
		if best == nil || left > most {
			best, most = j, left
		}
	}
	return best, ready == 1 && running == 0
}
