package route

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lunar/netft/internal/netnstest"
)

// readOnly names the test that a copy of this program runs with /proc/sys read-only.
const readOnly = "LUNAR_ROUTE_READ_ONLY"

// withReadOnlyTunables runs the calling test again in a mount namespace whose /proc/sys is read-only, as under systemd's
// ProtectKernelTunables. It returns false in the process that only waits for that.
func withReadOnlyTunables(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mount namespaces need root")
	}
	if os.Getenv(readOnly) == t.Name() {
		for _, m := range []struct {
			from, at string
			flags    uintptr
		}{
			{"", "/", unix.MS_PRIVATE | unix.MS_REC},
			{"/proc/sys", "/proc/sys", unix.MS_BIND},
			{"", "/proc/sys", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY},
		} {
			if err := unix.Mount(m.from, m.at, "", m.flags, ""); err != nil {
				t.Fatal(m, err)
			}
		}
		return true
	}
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), readOnly+"="+t.Name())
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

// TestAddressWithReadOnlyTunables needs no change of a setting where IPv6 is on for new interfaces.
func TestAddressWithReadOnlyTunables(t *testing.T) {
	if !withReadOnlyTunables(t) {
		return
	}
	for _, k := range kinds[:2] {
		m := newMachineAsIs(t, k)
		m.start(k)
		if got := m.addresses(); len(got) != 1 || got[0] != m.cluster {
			t.Fatalf("%s: %v", k.name, got)
		}
	}
}

func newMachineAsIs(t *testing.T, k kind) *machine {
	return &machine{Namespace: netnstest.New(t), t: t, number: 1, cluster: k.cluster("test", 1)}
}

// TestStrictFilterWithReadOnlyTunables loosens the filter all the same, and puts it back.
func TestStrictFilterWithReadOnlyTunables(t *testing.T) {
	if !withReadOnlyTunables(t) {
		return
	}
	k := kinds[1]
	a := newMachineAsIs(t, k)
	a.Must(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}})
	})
	a.Up("eth0")
	a.Must(func() error { return setFilter("eth0", filterStrict) })
	a.start(k)
	a.expectFilter("eth0", filterStrict)
	if err := a.keeper.Set(nil, []string{"eth0"}); err != nil {
		t.Fatal(err)
	}
	a.expectFilter("eth0", filterLoose)
	if err := a.keeper.Close(); err != nil {
		t.Fatal(err)
	}
	a.expectFilter("eth0", filterStrict)
}

func (m *machine) expectFilter(name, want string) {
	m.t.Helper()
	m.Must(func() error {
		if got := readFilter(name); got != want {
			m.t.Errorf("rp_filter of %s is %q, want %s", name, got, want)
		}
		return nil
	})
}
