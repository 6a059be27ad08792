package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Argument is how a process list shows the guard; marker, in its environment, makes it one.
const (
	Argument = "guard"
	marker   = "LUNAR_GUARD"
)

// Descriptors that the guard is started with.
const (
	fdSocket = 3 + iota
	fdWord
	fdParent
)

// Bounds of the guard's answers.
const (
	startTimeout  = 10 * time.Second
	answerTimeout = 5 * time.Second
)

// DefaultLinger is longer than any takeover by lease waits with the default time-outs.
const DefaultLinger = 2 * time.Minute

// Errors of a Guard.
var (
	// ErrLost: the guard does not answer or has ended.
	ErrLost = errors.New("the guard process is lost")
	// ErrRefused: the guard does not take the mount, or does not end while it has any.
	ErrRefused = errors.New("the guard refuses")
)

// Options of a guard. The zero value has no watchdog.
type Options struct {
	// Watchdog is a watchdog device, such as /dev/watchdog, which the guard feeds only while the deadline
	// lies ahead; "" for none. Opening one arms it: from then on the machine restarts unless it is fed.
	Watchdog string
	// WatchdogTimeout is the time after which an unfed watchdog restarts the machine; seconds, 2 at least.
	WatchdogTimeout time.Duration
	// Linger is how long the guard answers other nodes after its daemon's end, if it served them: for as long
	// as a takeover may wait. 0 is DefaultLinger.
	Linger time.Duration
	// Stderr gets the guard's log; nil is the daemon's.
	Stderr *os.File
}

// Validate tells what is wrong with o.
func (o Options) Validate() error {
	if o.Watchdog != "" && (o.WatchdogTimeout < 2*time.Second || o.WatchdogTimeout%time.Second != 0) {
		return fmt.Errorf("guard: watchdog time-out is %v: give whole seconds, 2 at least", o.WatchdogTimeout)
	}
	if o.Linger < 0 {
		return fmt.Errorf("guard: Linger is %v: give 0 or more", o.Linger)
	}
	return nil
}

// Report is what the guard could arrange for itself.
type Report struct {
	Locked   bool     // its memory cannot be paged out
	RealTime bool     // scheduled before all ordinary threads
	Watchdog bool     // feeds one
	Notes    []string // why not, in words
}

// Guard is the running guard process.
type Guard struct {
	mu     sync.Mutex // guards the socket: a request and its answer
	socket *os.File
	lock   int64 // the byte that this guard's daemon locks in each device

	shared sync.RWMutex // guards word against its end
	word   *word        // nil after Close
	stop   *backstop
	cmd    *exec.Cmd
	report Report
	ended  chan struct{}
	status error // of cmd; valid when ended is closed
}

// Start starts the guard and returns when it watches this process. ctx bounds only the start.
func Start(ctx context.Context, o Options) (*Guard, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	g, err := start(o)
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = g.cmd.Process.Kill() })
	defer stop()
	answer, err := g.answer(startTimeout)
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the guard: %w", err), g.kill())
	}
	g.report = answer.Report
	return g, nil
}

func start(o Options) (g *Guard, err error) {
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "guard"), os.NewFile(uintptr(pair[1]), "guard's end")
	open = append(open, theirs)
	file, w, err := newWord()
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	open = append(open, file)
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, errors.Join(err, ours.Close(), w.close())
	}
	parent := os.NewFile(uintptr(fd), "daemon")
	open = append(open, parent)
	stop, err := newBackstop()
	if err != nil {
		return nil, errors.Join(err, ours.Close(), w.close())
	}
	g = &Guard{socket: ours, lock: rand.Int64N(maxLock), word: w, stop: stop, cmd: o.command(theirs, file, parent), ended: make(chan struct{})}
	if err := g.cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close(), w.close(), stop.drop())
	}
	go func() {
		defer close(g.ended)
		g.status = g.cmd.Wait()
	}()
	return g, nil
}

func (o Options) command(files ...*os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", Argument)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), marker+"=1", markerWatchdog+"="+o.Watchdog,
		markerTimeout+"="+strconv.Itoa(int(o.WatchdogTimeout/time.Second)), markerLinger+"="+cmp.Or(o.Linger, DefaultLinger).String())
	cmd.ExtraFiles = files
	cmd.Stderr = o.Stderr
	if o.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// Report is what the guard could arrange for itself.
func (g *Guard) Report() Report { return g.report }

// PID is the guard's process id.
func (g *Guard) PID() int { return g.cmd.Process.Pid }

// Done is closed when the guard has ended.
func (g *Guard) Done() <-chan struct{} { return g.ended }

// Add hands a mount over: dir is an open folder of it, of which the guard gets a duplicate. From then on
// it is shut down when the daemon ends or its deadline passes. ErrRefused: dir's file system cannot be.
func (g *Guard) Add(volume string, dir *os.File) error {
	return g.ask(request{Op: opAdd, Volume: volume}, int(dir.Fd()))
}

// Remove takes the mount back; when it returns, the guard holds no descriptor of it, also because it has ended.
func (g *Guard) Remove(volume string) error {
	err := g.ask(request{Op: opRemove, Volume: volume}, -1)
	if g.over(err) {
		return nil
	}
	return err
}

// over tells whether a request failed since the guard has ended.
func (g *Guard) over(err error) bool {
	if !errors.Is(err, ErrLost) {
		return false
	}
	select {
	case <-g.ended:
		return true
	case <-time.After(answerTimeout):
		return false
	}
}

// Renew moves the deadline to an instant of [Now]. An earlier one than was given before changes nothing.
// Without any call there is no deadline. The kernel's timer follows, also when the guard is lost: it binds the daemon until
// another one is there.
func (g *Guard) Renew(deadline time.Duration) error {
	was, err := time.Duration(1), error(nil)
	g.withWord(func(w *word) {
		was = w.renew(deadline)
		err = g.stop.follow(w)
	})
	if was != 0 {
		return err
	}
	return errors.Join(err, g.ask(request{Op: opNudge}, -1))
}

// withWord does nothing after Close: the word is not there any more.
func (g *Guard) withWord(do func(*word)) {
	g.shared.RLock()
	defer g.shared.RUnlock()
	if g.word != nil {
		do(g.word)
	}
}

// Disarm takes the deadline away until the next Renew: for a daemon that has stopped all its I/O and unmounted all
// its volumes because it cannot renew. ErrRefused while mounts are guarded, or when the deadline was moved on
// meanwhile; without a deadline, Add is refused.
func (g *Guard) Disarm() (err error) {
	if err := g.ask(request{Op: opDisarm, Seen: g.Deadline()}, -1); err != nil {
		return err
	}
	g.withWord(func(w *word) { err = g.stop.follow(w) })
	return err
}

// Deadline is the latest that Renew moved to; 0: there is none.
func (g *Guard) Deadline() (at time.Duration) {
	g.withWord(func(w *word) { at = w.load() })
	return at
}

// Present tells the incarnation of the daemon's session, before anything is done under it. It costs no system call.
func (g *Guard) Present(incarnation uint64) {
	g.withWord(func(w *word) { w.present(incarnation) })
}

// Watch tells of a device before the first write to it through fd, which is open on path and is the only
// description that the daemon writes through. The guard proves that all such writes have ended. A lock on a byte far
// beyond the device's end is left on fd; it goes with the last use of fd.
func (g *Guard) Watch(volume, path string, fd int) error {
	mark := unix.Flock_t{Type: unix.F_RDLCK, Start: g.lock, Len: 1}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &mark); err != nil {
		return fmt.Errorf("guard: mark %s: %w", path, err)
	}
	return g.ask(request{Op: opWatch, Volume: volume, Path: path, Lock: g.lock}, -1)
}

// Forget is the end of Watch: all I/O to the device has ended, and it is about to be closed.
func (g *Guard) Forget(volume string) error { return g.ask(request{Op: opForget, Volume: volume}, -1) }

// Serve lets the guard answer [Ask] of other nodes, or changes by what it knows them. It keeps the key in its
// locked memory alone. A port that the guard of an earlier daemon of this node still has is taken over from it.
func (g *Guard) Serve(c Credentials) error {
	if err := c.Validate(); err != nil {
		return err
	}
	return g.ask(request{Op: opServe, Credentials: &c}, -1)
}

// Close lets the guard go in order, with no mount left; ErrRefused while there are. Of one that has ended by itself
// it returns how. Repeating it does no harm.
func (g *Guard) Close() error {
	if err := g.ask(request{Op: opClose}, -1); err != nil && !g.over(err) {
		return err
	}
	<-g.ended
	return errors.Join(g.status, g.release())
}

// kill ends a guard that has nothing to guard yet.
func (g *Guard) kill() error {
	_ = g.cmd.Process.Kill()
	<-g.ended
	return g.release()
}

func (g *Guard) release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shared.Lock()
	defer g.shared.Unlock()
	w := g.word
	if g.word = nil; w == nil {
		return nil
	}
	return errors.Join(g.stop.drop(), g.socket.Close(), w.close())
}

func (g *Guard) ask(r request, fd int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := send(int(g.socket.Fd()), r, fd); err != nil {
		return fmt.Errorf("guard: %s %s: %w: %w", r.Op, r.Volume, ErrLost, err)
	}
	answer, err := g.answer(answerTimeout)
	if err != nil {
		return fmt.Errorf("guard: %s %s: %w", r.Op, r.Volume, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("guard: %s %s: %w: %s", r.Op, r.Volume, ErrRefused, answer.Error)
	}
	return nil
}

// answer waits for one; a late one would be taken for the next request's, so the guard is lost then.
func (g *Guard) answer(limit time.Duration) (a reply, err error) {
	limited := unix.NsecToTimeval(limit.Nanoseconds())
	fd := int(g.socket.Fd())
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limited); err != nil {
		return a, err
	}
	f, err := receive(fd, &a)
	if err != nil {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		return a, fmt.Errorf("%w: %w", ErrLost, err)
	}
	return a, closeFile(f)
}
