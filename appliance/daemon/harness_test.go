package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/appliance/api"
	"lunar/appliance/config"
	"lunar/appliance/fence/guard"
	"lunar/appliance/hook"
	"lunar/datapath/device/loopdev"
)

// asLunard, set in the environment, makes the test binary a lunard.
const asLunard = "LUNAR_TEST_LUNARD"

func TestMain(m *testing.M) {
	guard.Main()
	hook.Main()
	if os.Getenv(asLunard) != "" {
		os.Exit(Command(os.Args[1:], os.Stdout, os.Stderr))
	}
	if os.Getenv(apartFor) != "" {
		os.Exit(m.Run())
	}
	goleak.VerifyTestMain(m)
}

// apartFor, set in the environment, names the one test that this process is for.
const apartFor = "LUNAR_TEST_APART"

// apartLimit bounds such a test.
const apartLimit = 5 * time.Minute

// apart runs the test in a process of its own, and tells whether this is it. Several members of etcd in one
// process leave goroutines of its peer connections behind, and a guard ends the whole process.
func apart(t *testing.T) bool {
	t.Helper()
	if os.Getenv(apartFor) == t.Name() {
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), apartLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", apartLimit.String())
	cmd.Env = append(os.Environ(), apartFor+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skip("skipped in its own process")
	}
	return false
}

const iqn = "iqn.2026-01.io.lunar:test"

// bench is a node's surroundings, which outlive its daemon.
type bench struct {
	t      *testing.T
	config config.Config
	log    bytes.Buffer
	daemon *Daemon // nil: stopped
	client *api.Client
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices, mounts, io_uring's locked memory")
	}
	// t.TempDir's path would be too long for a socket.
	dir, err := os.MkdirTemp("", "lunard")
	must(t, err)
	b := &bench{t: t, config: config.Default()}
	b.config.StateDir = filepath.Join(dir, "state")
	b.config.Socket = filepath.Join(dir, "sock")
	b.config.Node.Name = "n1"
	b.config.Metrics.Listen = "127.0.0.1:0"
	b.config.ISCSI.Portals = []string{"127.0.0.1:0"}
	b.config.Engine.Rings = 2
	b.config.Engine.BufferPoolMiB = 32
	t.Cleanup(func() {
		b.stop()
		must(t, os.RemoveAll(dir))
		if t.Failed() {
			t.Log(b.log.String())
		}
	})
	return b
}

// start opens the daemon in this process.
func (b *bench) start() *api.Client {
	b.t.Helper()
	var err error
	b.daemon, err = Open(b.t.Context(), b.config, b.daemonLog())
	must(b.t, err)
	b.client = api.NewClient(b.config.Socket)
	return b.client
}

func (b *bench) stop() {
	b.t.Helper()
	if b.daemon == nil {
		return
	}
	b.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := b.daemon.Close(ctx); err != nil {
		b.t.Errorf("stop: %v", err)
	}
	b.daemon = nil
}

func (b *bench) restart() *api.Client {
	b.t.Helper()
	b.stop()
	return b.start()
}

// portal is where the daemon listens.
func (b *bench) portal() string { return b.daemon.Portals()[0].String() }

// disk makes a block device with a WWID that lasts as long as its file. The daemon stops before it
// goes.
func (b *bench) disk() string {
	b.t.Helper()
	path := disk(b.t)
	b.t.Cleanup(b.stop)
	return path
}

func disk(t *testing.T) string {
	t.Helper()
	return loopdev.Scratch(t, 512<<20, loopdev.Options{}).Path
}

// served makes a volume with an image, exported as LUN 0.
func (b *bench) served(device string) {
	b.t.Helper()
	ctx := b.t.Context()
	_, err := b.client.AddVolume(ctx, api.AddVolume{Device: device, Format: "xfs"})
	must(b.t, err)
	_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 64 << 20})
	must(b.t, err)
	_, err = b.client.CreateTarget(ctx, iqn)
	must(b.t, err)
	_, err = b.client.Map(ctx, iqn, api.Map{Image: "Volume1/disk.img"})
	must(b.t, err)
}

// qemuIO runs commands on LUN 0 through QEMU's initiator. user is empty or "USER%SECRET@".
func qemuIO(t *testing.T, portal, user string, commands ...string) error {
	t.Helper()
	path, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("needs qemu-io (package qemu-utils) and QEMU's iSCSI driver (qemu-block-extra)")
	}
	args := []string{"-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	args = append(args, fmt.Sprintf("iscsi://%s%s/%s/0", user, portal, iqn))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err == nil && bytes.Contains(out, []byte("verification failed")) {
		err = errors.New("the data differs")
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused wants an API error with a code whose text has all of words.
func refused(t *testing.T, err error, code api.Code, words ...string) {
	t.Helper()
	if err == nil || api.CodeOf(err) != code {
		t.Fatalf("error %v, want one of code %s", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Fatalf("error %q does not say %q", err, w)
		}
	}
}

// patience is the least that a test waits for what ends by itself: the machine may be busy with other things.
const patience = time.Minute

func eventually(t *testing.T, within time.Duration, what string, done func() bool) {
	t.Helper()
	within = max(within, patience)
	for end := time.Now().Add(within); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func (b *bench) daemonLog() *slog.Logger { return slog.New(slog.NewTextHandler(&b.log, nil)) }
