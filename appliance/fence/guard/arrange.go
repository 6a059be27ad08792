package guard

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// heapLimit bounds the guard's heap, of which it uses next to nothing.
const heapLimit = 16 << 20

// priority is in the middle of SCHED_FIFO's range: before ordinary threads, after the kernel's own.
const priority = 50

// mlockOnFault is MCL_ONFAULT of sys/mman.h: lock pages when they are first used.
const mlockOnFault = 4

// arrange makes the guard hard to delay, as far as the kernel lets it.
func (s *server) arrange() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapLimit)
	s.report.Locked = s.note("memory is not locked", lockMemory())
	s.report.RealTime = s.note("not scheduled in real time", realTime())
	// A daemon's own score already keeps it from being chosen; refused without CAP_SYS_RESOURCE.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // no core file has its key
	// Once through what the end will need, so that its pages are here; no socket can be shut down so.
	_ = goDown(fdSocket)
	_ = unix.PidfdSendSignal(fdParent, 0, nil, 0)
}

func (s *server) note(words string, err error) bool {
	if err != nil {
		s.report.Notes = append(s.report.Notes, fmt.Sprintf("%s: %v", words, err))
	}
	return err == nil
}

// lockMemory locks what is mapped as it is used, and reads the program's own pages in: locking the Go
// heap's whole reservation would take 64 MiB for nothing.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | mlockOnFault); err != nil {
		return err
	}
	return populateText()
}

// realTime moves every thread to SCHED_FIFO; later ones inherit it.
func realTime() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil {
			return err
		}
	}
	return nil
}
