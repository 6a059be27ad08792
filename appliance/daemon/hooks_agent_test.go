package daemon

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/datapath/device/loopdev"
)

// guestScript makes the process a guest's, as far as its agent sees: its only file systems are in memory, but for the
// device's at /disk. Arguments: a folder, the device, the agent.
const guestScript = `
root=$1 device=$2 agent=$3
mount --make-rprivate /
mount -t tmpfs guest $root
cd $root
mkdir disk proc run dev old tmp
for file in $agent $(command -v umount) $(command -v sh) $(ldd $agent $(command -v umount) $(command -v sh) | grep -o '/[^ :]*' | sort -u); do
	mkdir -p .${file%/*}
	cp -L $file .$file
done
mount -t proc proc proc
mount $device disk
sh=$(command -v sh)
pivot_root . old
exec $sh -ec "umount -l /old; exec $agent -m unix-listen -p /run/qga.sock -t /run -f /run/qga.pid"
`

// guest is what a QEMU guest agent, the real one, takes for a guest: a mount namespace of its own.
type guest struct {
	t    *testing.T
	root string // as this process sees it
}

// newGuest starts one with a file system on a loop device.
func newGuest(t *testing.T) *guest {
	t.Helper()
	agent, err := exec.LookPath("qemu-ga")
	if err != nil {
		t.Skipf("%v: run appliance/e2e/packages.sh client", err)
	}
	device := loopdev.Scratch(t, 64<<20, loopdev.Options{}).Path
	_, err = tool(t, "mkfs.ext4", "-q", "-F", device)
	must(t, err)
	var said strings.Builder
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", guestScript, "guest", t.TempDir(), device, agent)
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	g := &guest{t, "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/root"}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	eventually(t, 20*time.Second, "the agent listens", func() bool { _, err := os.Stat(g.socket()); return err == nil })
	g.alone()
	disk, err := os.Open(g.path(""))
	must(t, err)
	t.Cleanup(func() { // also when nobody has thawed it: else the file system never goes
		_ = unix.IoctlSetInt(int(disk.Fd()), fiThaw, 0)
		_ = disk.Close()
	})
	return g
}

// fiThaw is FITHAW of linux/fs.h.
const fiThaw = 0xc0045878

func (g *guest) socket() string { return g.root + "/run/qga.sock" }

func (g *guest) path(name string) string { return filepath.Join(g.root, "disk", name) }

// alone sees to it that the agent can freeze nothing of this machine.
func (g *guest) alone() {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(g.root), "mountinfo"))
	must(g.t, err)
	var devices []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); !strings.HasPrefix(f[2], "0:") {
			devices = append(devices, f[4])
		}
	}
	if len(devices) != 1 || devices[0] != "/disk" {
		g.t.Fatalf("the agent would freeze %v", devices)
	}
}

// status asks the agent for the state of the guest's file systems.
func (g *guest) status() (state string, err error) {
	conn, err := net.DialTimeout("unix", g.socket(), time.Second)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	must(g.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	if _, err := fmt.Fprintln(conn, `{"execute":"guest-fsfreeze-status"}`); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return "", err
	}
	var answer struct{ Return string }
	err = json.Unmarshal(line, &answer)
	return answer.Return, err
}

func (g *guest) awaits(state string) {
	g.t.Helper()
	eventually(g.t, 20*time.Second, "the guest is "+state, func() bool { got, err := g.status(); return err == nil && got == state })
}

// TestHookOfARealGuestAgent takes a snapshot with QEMU's own guest agent: the guest's file system takes no write while the
// snapshot is taken, and does again afterwards. Another image's hook keeps the snapshot waiting meanwhile.
func TestHookOfARealGuestAgent(t *testing.T) {
	g := newGuest(t)
	b := newBench(t)
	b.start()
	b.served(b.disk())
	ctx, dir := t.Context(), t.TempDir()
	_, err := b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/other.img", Size: 1 << 20})
	must(t, err)
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	for _, h := range []api.Hook{
		{Image: "Volume1/disk.img", Agent: g.socket(), LimitNS: int64(time.Minute)},
		{Image: "Volume1/other.img", Before: "while [ ! -e " + dir + "/go ]; do sleep 0.02; done", LimitNS: int64(time.Minute)},
	} {
		_, err := b.client.SetHook(ctx, h)
		must(t, err)
	}
	must(t, os.WriteFile(g.path("before"), []byte("x"), 0o600))
	var set api.SnapshotSet
	taken, wrote := make(chan error, 1), make(chan error, 1)
	go func() {
		var err error
		set, err = b.client.CreateSnapshot(ctx, api.CreateSnapshot{Images: []string{"Volume1/disk.img", "Volume1/other.img"}, Name: "s"})
		taken <- err
	}()
	g.awaits("frozen")
	go func() { wrote <- os.WriteFile(g.path("meanwhile"), []byte("x"), 0o600) }()
	select {
	case err := <-wrote:
		t.Errorf("the guest's file system was written to while it was frozen: %v", err)
	case err := <-taken:
		t.Errorf("the snapshot did not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	if err := <-taken; err != nil || set.Hooks != 2 || len(set.Warnings) != 0 {
		t.Errorf("%+v, %v", set, err)
	}
	g.awaits("thawed")
	must(t, <-wrote)

	must(t, os.Remove(filepath.Join(dir, "go")))
	_, err = b.client.SetHook(ctx, api.Hook{Image: "Volume1/other.img", Before: "false"})
	must(t, err)
	_, err = b.snapshot("s2", false)
	must(t, err)
	_, err = b.client.CreateSnapshot(ctx, api.CreateSnapshot{Images: []string{"Volume1/disk.img", "Volume1/other.img"}, Name: "s3"})
	refused(t, err, api.Refused)
	g.awaits("thawed")
	must(t, os.WriteFile(g.path("after"), []byte("x"), 0o600))
}
