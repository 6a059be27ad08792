package image

import (
	"strings"
	"testing"
	"time"
)

const (
	target = "iqn.2026-01.io.lunar:image"
	unit   = "lunar-volume@Volume1.service"
)

// user is a network of QEMU's own, on which the machine is 10.0.2.15.
func user() []string {
	return []string{"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="}
}

// TestOne manages one appliance as any service.
func TestOne(t *testing.T) {
	m := newMachine(t, "one", options{args: user(), settings: []string{"node-name=one", "network=dhcp"}})
	m.boot()
	t.Logf("BIOS: READY after %v", m.ready())
	m.says("Node      one")
	m.says("10.0.2.15/24")
	m.show("cat /proc/cmdline; uname -r; systemd-analyze; findmnt -lo TARGET,SOURCE,FSTYPE,OPTIONS -t squashfs,ext4,overlay; df -h / /var; free -m")
	m.sh("truncate -s 1G /var/lun && losetup /dev/loop0 /var/lun")
	// A machine that gets little of the processor may say that its database does not answer in time.
	for _, setup := range []struct{ there, make string }{
		{"volume show Volume1", "volume add /dev/loop0 --format xfs --force"},
		{"image list Volume1 | grep vm.img", "image create Volume1/vm.img --size 64MiB"},
		{"target list | grep " + target, "target create " + target},
		{"target show " + target + " | grep vm.img", "target map " + target + " Volume1/vm.img"},
	} {
		m.wait(setup.make, func() bool {
			_, err := m.try("lunarctl " + setup.there + " >/dev/null || lunarctl " + setup.make)
			return err == nil
		})
	}
	m.becomes(unit, "ActiveState", "active")
	m.becomes("lunard.service", "StatusText", "coordinates Volume1")
	m.show("systemctl status --no-pager lunard")
	m.show("systemctl status --no-pager lunar-volume@Volume1")
	if failed := m.show("systemctl --failed --no-legend"); failed != "" {
		t.Errorf("units failed: %s", failed)
	}
	verbs(m)
	dies(m)
	journal(m)
	t.Logf("powered off in %v", m.off())

	m.boot()
	t.Logf("the second time: READY after %v", m.ready())
	m.show("systemctl status --no-pager lunard | head -8")
	if name := m.sh("hostname"); name != "one" {
		t.Errorf("after a restart the machine is called %s", name)
	}
}

// TestFirmware boots by UEFI what TestOne boots by BIOS.
func TestFirmware(t *testing.T) {
	m := newMachine(t, "uefi", options{uefi: true, args: user(), settings: []string{"network=dhcp"}})
	m.boot()
	t.Logf("UEFI: READY after %v", m.ready())
	m.sh("test -d /sys/firmware/efi")
}

func verbs(m *machine) {
	m.t.Helper()
	for _, step := range []struct{ do, unit, state string }{
		{"systemctl stop " + unit, unit, "inactive"},
		{"systemctl start " + unit, unit, "active"},
		{"systemctl restart lunard", unit, "active"},
		{"systemctl stop lunard", unit, "inactive"},
		{"systemctl start lunard", unit, "active"},
	} {
		began := time.Now()
		// What takes too long fails, and lunard goes on with it: that it ends as it should is what counts.
		if out, err := m.try(step.do); err != nil {
			m.t.Logf("%s: %v: %s", step.do, err, out)
		}
		took := time.Since(began).Round(10 * time.Millisecond)
		m.becomes(step.unit, "ActiveState", step.state)
		m.t.Logf("%s: %v, %s is %s after %v", step.do, took, step.unit, step.state, time.Since(began).Round(10*time.Millisecond))
	}
}

// dies ends the daemon in ways that systemd has to mend.
func dies(m *machine) {
	m.t.Helper()
	for _, how := range []struct{ prepare, signal string }{
		{"", "KILL"},
		{"mkdir -p /run/systemd/system/lunard.service.d && printf '[Service]\\nWatchdogSec=10\\n' >/run/systemd/system/lunard.service.d/fast.conf && systemctl daemon-reload && systemctl restart lunard", "STOP"},
	} {
		if how.prepare != "" {
			m.sh(how.prepare)
		}
		m.becomes(unit, "ActiveState", "active")
		restarts := m.sh("systemctl show -P NRestarts lunard")
		pid := m.sh("systemctl show -P MainPID lunard")
		began := time.Now()
		m.sh("kill -" + how.signal + " " + pid)
		m.wait("another lunard is READY", func() bool {
			now := strings.Fields(m.sh("for p in MainPID ActiveState NRestarts; do systemctl show -P $p lunard; done"))
			return len(now) == 3 && now[0] != pid && now[1] == "active" && now[2] != restarts
		})
		m.t.Logf("SIG%s: READY again after %v", how.signal, time.Since(began).Round(10*time.Millisecond))
	}
	m.becomes(unit, "ActiveState", "active")
}

func journal(m *machine) {
	m.t.Helper()
	m.sh("journalctl --sync")
	for _, query := range []string{"VOLUME=Volume1", "NODE=one", "VOLUME=Volume1 EPOCH=1", "-u lunar-volume@Volume1", "-u lunard -g [Ww]atchdog"} {
		out := m.show("journalctl -b --no-pager -o cat -n 2 " + query)
		if out == "" || strings.Contains(out, "No entries") {
			m.t.Errorf("the journal has nothing by %s", query)
		}
	}
}
