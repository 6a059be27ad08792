package guard

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// More of the guard's environment.
const (
	markerWatchdog = "LUNAR_GUARD_WATCHDOG"
	markerTimeout  = "LUNAR_GUARD_WATCHDOG_SECONDS"
	markerLinger   = "LUNAR_GUARD_LINGER"
)

// Main returns at once unless [Start] made this process: then it is the guard, and never returns. It is
// the first call in a daemon's main function.
func Main() {
	if len(os.Args) != 2 || os.Args[1] != Argument || os.Getenv(marker) == "" {
		return
	}
	os.Exit(run())
}

func run() int {
	runtime.LockOSThread()
	// Terminals and service managers speak to the daemon. A broken standard error must not end us.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTOU)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", "guard")
	s, err := newServer(log)
	if err != nil {
		log.Error("the guard cannot start", "error", err)
		_ = send(fdSocket, reply{Error: err.Error()}, -1)
		return 1
	}
	if err := s.serve(); err != nil {
		log.Error("the guard ended with something undone", "error", err)
		return 1
	}
	return 0
}

// server is the guard's own side. One thread runs it; shutdowns and the network have others.
type server struct {
	log      *slog.Logger
	word     *word
	timer    int // timerfd on CLOCK_BOOTTIME
	watchdog *watchdog
	mounts   map[string]*os.File
	devices  map[string]*watched
	disarmed bool
	linger   time.Duration
	report   Report
	polls    [4]unix.PollFd

	net    *network // nil until credentials came
	demand demand   // of other nodes, to end the daemon
	verdict
}

func newServer(log *slog.Logger) (*server, error) {
	w, err := mapWord(os.NewFile(fdWord, "deadline"))
	if err != nil {
		return nil, err
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("timer: %w", err)
	}
	for fd := fdSocket; fd <= fdParent; fd++ {
		unix.CloseOnExec(fd)
	}
	s := &server{log: log, word: w, timer: timer, mounts: map[string]*os.File{}, devices: map[string]*watched{}, verdict: newVerdict()}
	if s.demand, err = newDemand(); err != nil {
		return nil, err
	}
	if s.linger, err = time.ParseDuration(os.Getenv(markerLinger)); err != nil {
		return nil, err // Start wrote it
	}
	if name := os.Getenv(markerWatchdog); name != "" {
		seconds, _ := strconv.Atoi(os.Getenv(markerTimeout)) // Start wrote it
		if s.watchdog, err = openWatchdog(name, seconds); err != nil {
			return nil, err
		}
		s.report.Watchdog = true
	}
	for i, fd := range []int{fdSocket, fdParent, timer, s.demand.event} {
		s.polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	s.arrange()
	return s, send(fdSocket, reply{Report: s.report}, -1)
}

// reason is why the volumes are shut down.
type reason string

const (
	reasonDied     reason = "the daemon died"
	reasonDeadline reason = "the deadline passed"
	reasonBroken   reason = "the daemon broke the connection"
	reasonAsked    reason = "another node asked for it"
)

var errClosed = errors.New("closed in order")

func (s *server) serve() error {
	why, err := s.watch()
	if errors.Is(err, errClosed) {
		return s.watchdog.disarm()
	}
	err = errors.Join(err, s.end(why))
	s.ended(err)
	s.remain()
	return err
}

// watch returns when something has to be done, and why.
func (s *server) watch() (reason, error) {
	for {
		now := Now()
		if d := s.word.load(); d != 0 && now >= d {
			return reasonDeadline, nil
		}
		s.watchdog.feed(now)
		if err := s.sleep(now); err != nil {
			return reasonBroken, err
		}
		switch {
		case s.polls[1].Revents != 0:
			return reasonDied, nil
		case s.polls[3].Revents != 0:
			return reasonAsked, nil
		case s.polls[0].Revents&unix.POLLIN != 0:
			if err := s.request(); err != nil {
				return reasonOf(err)
			}
		case s.polls[0].Revents != 0:
			return reasonDied, nil
		}
	}
}

// reasonOf tells a daemon that is gone, whose descriptors are closed before it counts as ended.
func reasonOf(err error) (reason, error) {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return reasonDied, nil
	}
	return reasonBroken, err
}

// sleep waits for the deadline, for the next feeding, or for the daemon.
func (s *server) sleep(now time.Duration) error {
	wake := s.word.load()
	if next := s.watchdog.next(now); next != 0 && (wake == 0 || next < wake) {
		wake = next
	}
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(wake))} // zero disarms
	if err := unix.TimerfdSettime(s.timer, unix.TFD_TIMER_ABSTIME, &at, nil); err != nil {
		return fmt.Errorf("timer: %w", err)
	}
	for i := range s.polls {
		s.polls[i].Revents = 0
	}
	if _, err := unix.Poll(s.polls[:], -1); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	return nil
}

func (s *server) request() error {
	var r request
	f, err := receive(fdSocket, &r)
	if err != nil {
		return err
	}
	answer := reply{}
	if err := s.do(r, f); err != nil {
		answer.Error = err.Error()
	} else if r.Op == opClose {
		return errors.Join(send(fdSocket, answer, -1), errClosed)
	}
	return send(fdSocket, answer, -1)
}

// do carries a request out; it owns f.
func (s *server) do(r request, f *os.File) error {
	if r.Op == opAdd {
		return s.add(r.Volume, f)
	}
	if err := closeFile(f); err != nil {
		return err
	}
	switch r.Op {
	case opRemove:
		return s.remove(r.Volume)
	case opNudge:
		s.disarmed = false
		return nil
	case opDisarm:
		return s.disarm(r.Seen)
	case opWatch:
		return s.observe(r)
	case opForget:
		return s.forget(r.Volume)
	case opServe:
		return s.answerOthers(r.Credentials)
	case opClose:
		if n := len(s.mounts); n > 0 {
			return fmt.Errorf("%d volumes are still guarded: remove them first", n)
		}
		return nil
	}
	return fmt.Errorf("unknown request %q", r.Op)
}

func (s *server) add(volume string, f *os.File) error {
	if f == nil {
		return errors.New("no mount came with the request")
	}
	if err := canShutDown(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if s.disarmed && s.word.load() == 0 {
		return errors.Join(errors.New("there is no deadline: renew it first"), f.Close())
	}
	if s.mounts[volume] != nil {
		return errors.Join(fmt.Errorf("volume %s is guarded already", volume), f.Close())
	}
	s.mounts[volume] = f
	return nil
}

func (s *server) remove(volume string) error {
	f := s.mounts[volume]
	if f == nil {
		return fmt.Errorf("volume %s is not guarded", volume)
	}
	delete(s.mounts, volume)
	return f.Close()
}

// disarm is for a daemon that has nothing left to guard; seen is the deadline that it knows.
func (s *server) disarm(seen time.Duration) error {
	if n := len(s.mounts); n > 0 {
		return fmt.Errorf("%d volumes are still guarded: remove them first", n)
	}
	if !s.word.disarm(seen) {
		return errors.New("the deadline was renewed meanwhile")
	}
	s.disarmed = true
	return nil
}
