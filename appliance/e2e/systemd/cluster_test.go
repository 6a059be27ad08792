package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

// TestCluster has three machines with one LUN: two of them join by credentials, one is upgraded and one shut down while
// initiators write through the others.
func TestCluster(t *testing.T) {
	needs(t)
	l, err := lab.Open(t.TempDir(), "/nonexistent")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	bridge := fmt.Sprintf("lunar-s%d", os.Getpid()%10000)
	run(t, "ip", "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", bridge) })
	run(t, "ip", "link", "set", bridge, "up")

	var all []*machine
	for i := range 3 {
		loop, err := l.Loop("lun", 1<<30)
		must(t, err)
		name, address := fmt.Sprintf("node%d", i+1), fmt.Sprintf("192.0.2.%d", i+1)
		args := []string{"--network-bridge=" + bridge, "--bind=" + loop.Path}
		if i > 0 {
			token := all[0].sh("lunarctl cluster token")
			args = append(args, "--set-credential=lunar.join-address:192.0.2.1", "--set-credential=lunar.join-token:"+token)
		}
		m := boot(t, name, args...)
		m.sh("ip link set lo up; ip link set host0 up; ip address add " + address + "/24 dev host0")
		m.sh("mkdir -p /etc/lunar && printf '[cluster]\\naddress = \"" + address + "\"\\n[storage]\\nshared_kernel = true\\ndevices = [\"" + loop.Path + "\"]\\n' >/etc/lunar/lunard.toml")
		_, deb := needs(t)
		m.sh("dpkg --force-confold -i /deb/" + filepath.Base(deb))
		m.becomes("lunard.service", "ActiveState", "active")
		all = append(all, m)
		if i == 0 {
			m.sh("lunarctl cluster init && lunarctl volume add " + loop.Path + " --format xfs --allow-unfenced")
			m.sh("lunarctl image create Volume1/vm.img --size 64MiB && lunarctl target create " + iqn + " && lunarctl target map " + iqn + " Volume1/vm.img")
		}
		m.becomes(unit, "ActiveState", "active")
		m.wait("the LUN is served", func() bool { return m.initiator(address, "read 0 4k") == nil })
	}
	all[0].sh("lunarctl volume move Volume1 --to node2")
	all[2].becomes(unit, "StatusText", "coordinated by node2")
	all[2].show("systemctl status --no-pager -n 3 lunard lunar-volume@Volume1; lunarctl cluster status")

	loads := []*load{all[0].load("192.0.2.1", 8), all[2].load("192.0.2.3", 16)}
	began := time.Now()
	all[1].sh("dpkg -i /deb/" + filepath.Base(os.Getenv("LUNAR_DEB_NEXT")))
	took := time.Since(began)
	all[1].becomes(unit, "ActiveState", "active")
	t.Logf("the upgrade of node2, which coordinated the volume, took %v; initiators at node1: %s; at node3: %s", took.Round(10*time.Millisecond), loads[0].stop(), loads[1].stop())
	if text := all[0].unit(unit, "StatusText"); strings.Contains(text, "node2") {
		t.Errorf("the volume was not handed over: %s", text)
	}

	all[0].sh("lunarctl volume move Volume1 --to node2")
	load := all[0].load("192.0.2.1", 8)
	off := all[1].powerOff()
	all[0].becomes(unit, "StatusText", "Direct; coordinated")
	all[0].wait("another coordinator", func() bool { return !strings.Contains(all[0].unit(unit, "StatusText"), "node2") })
	t.Logf("the shutdown of node2, which coordinated the volume, took %v; initiators at node1: %s", off.Round(10*time.Millisecond), load.stop())
	all[0].show("journalctl --no-pager -o short-monotonic VOLUME=Volume1 | tail -8")

	all[0].sh("systemctl stop lunar-volume@Volume1")
	all[2].becomes(unit, "StatusText", "coordinated here, on node3")
	must(t, all[2].initiator("192.0.2.3", "read 0 4k"))
	all[2].sh("lunarctl target unmap " + iqn + " 0 && lunarctl volume eject Volume1")
	all[2].becomes(unit, "ActiveState", "inactive")
}

func run(t *testing.T, command ...string) {
	t.Helper()
	if out, err := execute(command...); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
}
