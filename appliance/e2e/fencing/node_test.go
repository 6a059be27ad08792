package fencing

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"lunar/appliance/fence/guard"
	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/uring"
)

// The environment of a child that is a node's daemon.
const (
	envDevice      = "LUNAR_TEST_DEVICE"
	envFolder      = "LUNAR_TEST_FOLDER" // with its credentials
	envAddress     = "LUNAR_TEST_ADDRESS"
	envIncarnation = "LUNAR_TEST_INCARNATION"
)

func TestMain(m *testing.M) {
	guard.Main()
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	if dev := os.Getenv(envDevice); dev != "" {
		if err := daemon(dev); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// The LUN: a file system, and behind it what is written directly.
const (
	fsBytes    = 320 << 20
	depth      = 128
	block      = 256 << 10
	rawBytes   = depth * block
	diskBytes  = fsBytes + rawBytes
	lease      = time.Hour
	guardLives = 20 * time.Second // after its daemon
)

// daemon is a coordinator with 128 direct writes under way, and others through the file system.
func daemon(path string) error {
	dev, err := device.Open(path)
	if err != nil {
		return err
	}
	g, err := guard.Start(context.Background(), guard.Options{Linger: guardLives})
	if err != nil {
		return err
	}
	incarnation, err := strconv.ParseUint(os.Getenv(envIncarnation), 10, 64)
	if err != nil {
		return err
	}
	c, err := credentials(os.Getenv(envFolder), os.Getenv(envAddress))
	if err != nil {
		return err
	}
	g.Present(incarnation)
	if err := errors.Join(g.Serve(c), g.Watch("Volume1", dev.Path, dev.Fd()), g.Renew(guard.Now()+lease)); err != nil {
		return err
	}
	root, err := loopdev.Mount(path)
	if err != nil {
		return err
	}
	if err := g.Add("Volume1", root); err != nil {
		return err
	}
	if err := hammer(dev.Fd(), incarnation); err != nil {
		return err
	}
	fmt.Printf("ready %d\n", g.PID())
	for i := 0; ; i++ {
		name := fmt.Sprintf("/proc/self/fd/%d/f%d", root.Fd(), i%200)
		_ = os.WriteFile(name, make([]byte, 20000), 0o600)
		if i%20 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// hammer keeps 128 writes under way on the device, each of which changes what is there.
func hammer(fd int, incarnation uint64) error {
	engine, err := uring.Open(uring.Options{PoolBytes: 64 << 20})
	if err != nil {
		return err
	}
	file, err := engine.Register(fd)
	if err != nil {
		return err
	}
	ring := engine.Ring(0)
	return ring.Post(func() {
		stamp := incarnation << 40
		for i := range depth {
			op := &uring.Op{Code: uring.Write, File: file, Buf: engine.Pool().Get(block), Offset: int64(fsBytes + i*block)}
			op.Done = func(op *uring.Op) {
				stamp++
				for at := 0; at < block; at += 4096 {
					binary.LittleEndian.PutUint64(op.Buf[at:], stamp)
				}
				ring.Submit(op)
			}
			op.Done(op)
		}
	})
}

// lab is a LUN with the victim's path to it, and a cluster's certificates.
type lab struct {
	t       *testing.T
	file    *os.File // the LUN behind the path, for direct I/O
	path    string
	address string
	ca      *authority
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	l := &lab{t: t, ca: newAuthority(t)}
	name := filepath.Join(t.TempDir(), "lun")
	san, err := loopdev.NewSAN(name, diskBytes)
	l.must(err)
	t.Cleanup(func() {
		if err := san.Close(); err != nil {
			t.Error(err)
		}
	})
	a, err := san.Connect(loopdev.Options{})
	l.must(err)
	l.path = a.Path
	format(t, a.Path)
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	l.must(err)
	l.file = os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { l.file.Close() })
	l.address = freeAddress(t)
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func format(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("mkfs.xfs", "-q", "-f", "-d", "size="+strconv.Itoa(fsBytes), "-l", "size=64m", path).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// victim is a running daemon and its guard.
type victim struct {
	l     *lab
	cmd   *exec.Cmd
	guard int // process id
	log   *bufio.Reader
	pipe  *os.File
	gone  bool
}

func (l *lab) start(name string, incarnation uint64) *victim {
	l.t.Helper()
	v := &victim{l: l, cmd: exec.Command("/proc/self/exe")}
	v.cmd.Env = append(os.Environ(), envDevice+"="+l.path, envFolder+"="+l.ca.issue(name), envAddress+"="+l.address,
		envIncarnation+"="+strconv.FormatUint(incarnation, 10))
	r, w, err := os.Pipe()
	l.must(err)
	v.cmd.Stderr = w
	out, err := v.cmd.StdoutPipe()
	if err == nil {
		err = v.cmd.Start()
	}
	w.Close()
	l.must(err)
	v.log, v.pipe = bufio.NewReader(r), r
	if _, err := fmt.Fscanf(out, "ready %d\n", &v.guard); err != nil {
		rest, _ := v.log.ReadString(0)
		l.t.Fatal(err, rest)
	}
	return v
}

func (v *victim) signal(s unix.Signal) {
	v.l.t.Helper()
	v.l.must(v.cmd.Process.Signal(s))
}

// end kills what is left, and waits until both processes are gone.
func (v *victim) end() {
	if v.gone {
		return
	}
	v.gone = true
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, v.log) // both have its other end
	}()
	for over := false; !over; {
		_ = unix.Kill(v.guard, unix.SIGTERM) // ignored until it only remains to answer
		select {
		case <-ended:
			over = true
		case <-time.After(5 * time.Millisecond):
		}
	}
	_ = v.pipe.Close()
	unmounted(v.l.t, v.l.path)
}

// unmounted waits until the kernel has let the device go.
func unmounted(t *testing.T, dev string) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
			return
		}
	}
	t.Fatal(dev, "is still mounted")
}

// counter reads a field of the path's counters in sysfs.
func (l *lab) counter(field int) int64 {
	l.t.Helper()
	b, err := os.ReadFile("/sys/block/" + filepath.Base(l.path) + "/stat")
	l.must(err)
	n, err := strconv.ParseInt(strings.Fields(string(b))[field], 10, 64)
	l.must(err)
	return n
}

const (
	sectorsWritten = 6
	inFlight       = 8
)
