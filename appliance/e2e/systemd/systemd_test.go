package systemd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/e2e/lab"
)

const (
	iqn     = "iqn.2026-01.io.lunar:systemd"
	sigterm = unix.SIGTERM
	unit    = "lunar-volume@Volume1.service"
)

// disk is a loop device of the host.
func disk(t *testing.T) string {
	t.Helper()
	l, err := lab.Open(t.TempDir(), "/nonexistent")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	loop, err := l.Loop("lun", 1<<30)
	must(t, err)
	return loop.Path
}

// served installs the package and makes a volume with an image, exported as LUN 0.
func served(m *machine, dev string) {
	m.t.Helper()
	_, deb := needs(m.t)
	began := time.Now()
	m.sh("dpkg -i /deb/" + filepath.Base(deb))
	m.becomes("lunard.service", "ActiveState", "active")
	m.t.Logf("installed and READY after %v", time.Since(began).Round(10*time.Millisecond))
	m.sh("lunarctl volume add " + dev + " --format xfs")
	m.sh("lunarctl image create Volume1/vm.img --size 64MiB && lunarctl target create " + iqn + " && lunarctl target map " + iqn + " Volume1/vm.img")
	must(m.t, m.initiator("127.0.0.1", "write -P 7 0 4M", "flush"))
}

func (m *machine) reads() {
	m.t.Helper()
	var err error
	m.wait("the data is there", func() bool { err = m.initiator("127.0.0.1", "read -P 7 0 4M"); return err == nil })
}

func TestManaged(t *testing.T) {
	needs(t)
	dev := disk(t)
	m := boot(t, "node1", "--private-network", "--bind="+dev)
	t.Logf("booted after %v", time.Since(m.began).Round(10*time.Millisecond))
	served(m, dev)

	m.becomes(unit, "ActiveState", "active")
	m.becomes(unit, "StatusText", "Direct; coordinated here, on node1")
	m.becomes("lunard.service", "StatusText", "coordinates Volume1")
	m.show("systemctl status --no-pager lunard")
	m.show("systemctl status --no-pager lunar-volume@Volume1")
	m.show("systemctl list-units --no-pager --no-legend 'lunar*'; systemctl --failed --no-legend")
	m.show("ps -o rss,args -C lunard,lunarctl")
	m.show("systemd-analyze security --no-pager lunard lunar-volume@Volume1 | grep Overall")
	m.show("systemd-analyze verify --man=no /lib/systemd/system/lunar*")

	m.step("files", func() { files(m) })
	m.step("verbs", func() { verbs(m) })
	m.step("journal", func() { journal(m) })
	m.step("restart", func() { restart(m) })
	m.step("kill", func() { kill(m) })
	m.step("watchdog", func() { watchdog(m) })
	m.step("configuration", func() { configuration(m) })
	m.step("upgrade", func() { upgrade(m) })
	m.step("purge", func() { purge(m, dev) })
}

// step is a part of the test.
func (m *machine) step(name string, do func()) {
	whole := m.t
	defer func() { m.t = whole }()
	whole.Run(name, func(t *testing.T) {
		m.t = t
		do()
	})
}

// files shows that the machine sees the volumes as files, while lunard runs, and that the unit's sandbox leaves lunard what
// it needs.
func files(m *machine) {
	const whole = `test "$(head -c 4194304 /ClusterStorage/Volume1/vm.img | tr -d '\007' | wc -c)" = 0 && mountpoint -q /ClusterStorage`
	seen := func() {
		m.t.Helper()
		m.wait("the image is a file", func() bool { _, err := m.try(whole); return err == nil })
	}
	seen()
	m.sh("systemctl restart lunard")
	seen()
	m.sh("kill -9 " + m.unit("lunard.service", "MainPID"))
	m.wait("another lunard", func() bool {
		return m.unit("lunard.service", "NRestarts") != "0" && m.unit("lunard.service", "ActiveState") == "active"
	})
	seen()
	m.show("grep ClusterStorage /proc/mounts; ls -l /ClusterStorage/Volume1; journalctl --no-pager -o cat -u lunard -g 'files below|registered|priority'")
	m.sh("systemctl stop lunard")
	m.sh("! mountpoint -q /ClusterStorage && test -z \"$(ls /ClusterStorage)\"")
	m.sh("systemctl start lunard")
	seen()
	m.becomes(unit, "ActiveState", "active")
	lacks := []string{"not scheduled in real time"}
	if strings.Contains(m.sh("grep 'locked memory' /proc/1/limits; grep 'locked memory' /proc/$(systemctl show --value -p MainPID lunard)/limits"), "unlimited") {
		lacks = append(lacks, "buffer pool not registered", "memory is not locked") // where this host lets a limit be raised
	}
	for _, words := range lacks {
		if out, err := m.try("journalctl --no-pager -o cat -u lunard | grep -F '" + words + "'"); err == nil {
			m.t.Errorf("lunard lacks something under the unit: %s", out)
		}
	}
	// The guard's way to a real-time priority is sched_setattr(2), as is chrt's to a deadline; its way to the others is closed.
	const confined = "systemd-run --quiet --wait -p RestrictRealtime=yes -p SystemCallFilter=@system-service -p SystemCallFilter=~@resources "
	m.sh(confined + "-p SystemCallFilter=sched_setattr chrt -d --sched-runtime 1000000 --sched-deadline 10000000 --sched-period 10000000 0 true")
	if _, err := m.try(confined + "-p SystemCallFilter=@resources chrt -f 10 true"); err == nil {
		m.t.Error("sched_setscheduler(2) is open")
	}
}

// verbs takes the volume off line and on line by systemctl, and by other ways.
func verbs(m *machine) {
	began := time.Now()
	m.sh("systemctl stop lunar-volume@Volume1")
	m.t.Logf("systemctl stop took %v", time.Since(began).Round(time.Millisecond))
	m.show("systemctl status --no-pager -n 5 lunar-volume@Volume1; lunarctl volume list")
	if err := m.initiator("127.0.0.1", "read 0 4k"); err == nil {
		m.t.Error("the LUN is served while its volume is off line")
	}
	began = time.Now()
	m.sh("systemctl start lunar-volume@Volume1")
	m.t.Logf("systemctl start took %v", time.Since(began).Round(time.Millisecond))
	m.reads()
	m.sh("lunarctl volume offline Volume1")
	m.becomes(unit, "ActiveState", "inactive")
	m.sh("lunarctl volume online Volume1")
	m.becomes(unit, "ActiveState", "active")
	if out, err := m.try("systemctl start lunar-volume@None"); err == nil {
		m.t.Errorf("a volume that is none was started: %s", out)
	}
	m.show("systemctl status --no-pager lunar-volume@None")
	m.sh("systemctl reset-failed")
	m.sh("lunarctl volume rename Volume1 a-b.c")
	m.becomes(unit, "ActiveState", "inactive")
	m.becomes("lunar-volume@a-b.c.service", "ActiveState", "active")
	m.sh(`systemctl stop "$(systemd-escape --template=lunar-volume@.service a-b.c)"; systemctl stop lunar-volume@a-b.c`)
	m.sh(`systemctl start "$(systemd-escape --template=lunar-volume@.service a-b.c)"`)
	m.sh("lunarctl volume rename a-b.c Volume1")
	m.becomes(unit, "ActiveState", "active")
}

func journal(m *machine) {
	for _, filter := range []string{"VOLUME=Volume1", "VOLUME=Volume1 EPOCH=1", "NODE=node1 _SYSTEMD_UNIT=lunard.service", "-u lunar-volume@Volume1 _COMM=lunard"} {
		out := m.sh("journalctl --no-pager -o cat " + filter)
		if !strings.Contains(out, "Volume1") {
			m.t.Errorf("journalctl %s: %q", filter, out)
		}
	}
	m.show("journalctl --no-pager -o short-monotonic VOLUME=Volume1 | tail -5; journalctl --no-pager -n 1 -o verbose VOLUME=Volume1 | grep -E ' (VOLUME|NODE|EPOCH|EVENT|OBJECT_SYSTEMD_UNIT|_SYSTEMD_UNIT)='")
}

// restart shows that an initiator which connects meanwhile waits and is not refused.
func restart(m *machine) {
	began := time.Now()
	m.sh("systemctl restart --no-block lunard")
	refused := 0
	for m.unit("lunard.service", "ActiveState") != "active" || time.Since(began) < 300*time.Millisecond {
		if out, err := m.from([]string{"-n", "--"}, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/3260"); err != nil {
			refused++
			m.t.Log(out)
		}
		if time.Since(began) > patience {
			m.t.Fatal("it did not come back")
		}
	}
	m.t.Logf("restart took %v, %d connections refused", time.Since(began).Round(10*time.Millisecond), refused)
	if refused > 0 {
		m.t.Error("port 3260 was closed")
	}
	m.reads()
	m.becomes(unit, "ActiveState", "active")
}

// comesBack does something to lunard's process and waits for another one that serves.
func (m *machine) comesBack(what string) time.Duration {
	m.t.Helper()
	pid, began := m.unit("lunard.service", "MainPID"), time.Now()
	m.sh(what + " " + pid)
	m.wait("another lunard is READY", func() bool {
		now := m.unit("lunard.service", "MainPID")
		return now != pid && now != "0" && m.unit("lunard.service", "ActiveState") == "active"
	})
	took := time.Since(began)
	m.reads()
	return took
}

func kill(m *machine) {
	m.t.Logf("kill -9: READY again after %v", m.comesBack("kill -9").Round(10*time.Millisecond))
	m.becomes(unit, "ActiveState", "active")
}

func watchdog(m *machine) {
	m.sh("mkdir -p /run/systemd/system/lunard.service.d && printf '[Service]\nWatchdogSec=6s\n' >/run/systemd/system/lunard.service.d/test.conf && systemctl daemon-reload && systemctl restart lunard")
	m.t.Logf("SIGSTOP, WatchdogSec=6: READY again after %v", m.comesBack("kill -STOP").Round(10*time.Millisecond))
	if out := m.sh("journalctl --no-pager -u lunard _PID=1"); !strings.Contains(out, "Watchdog timeout") {
		m.t.Errorf("it was not the watchdog: %s", out)
	}
	m.sh("rm /run/systemd/system/lunard.service.d/test.conf; systemctl daemon-reload; systemctl restart lunard")
}

// configuration shows that a wrong one is told and not tried again.
func configuration(m *machine) {
	m.sh("cp /etc/lunar/lunard.toml /tmp/ && echo 'colour = 1' >>/etc/lunar/lunard.toml")
	if out, err := m.try("systemctl restart lunard"); err == nil {
		m.t.Errorf("it was started: %s", out)
	}
	m.becomes("lunard.service", "ActiveState", "failed")
	if code := m.unit("lunard.service", "ExecMainStatus"); code != "78" {
		m.t.Errorf("exit status %s", code)
	}
	m.show("systemctl status --no-pager -n 3 lunard")
	m.sh("cp /tmp/lunard.toml /etc/lunar/ && systemctl restart lunard")
	m.reads()
}

// upgrade installs a second version while an initiator writes.
func upgrade(m *machine) {
	next := os.Getenv("LUNAR_DEB_NEXT")
	before := m.unit("lunard.service", "MainPID")
	load := m.load("127.0.0.1", 8)
	began := time.Now()
	m.sh("dpkg -i /deb/" + filepath.Base(next))
	m.t.Logf("the upgrade took %v, %s", time.Since(began).Round(10*time.Millisecond), load.stop())
	if m.unit("lunard.service", "MainPID") == before {
		m.t.Error("the old lunard still runs")
	}
	m.reads()
	m.becomes(unit, "ActiveState", "active")
	m.show("dpkg-query -W lunar")
}

// purge removes the state, and nothing of the LUN.
func purge(m *machine, dev string) {
	m.show("find /var/lib/lunar | head -20")
	m.sh("dpkg -r lunar")
	m.sh("test -e /var/lib/lunar && test -e /etc/lunar/lunard.toml && ! test -e /usr/sbin/lunard")
	m.sh("cp --sparse=always " + dev + " /var/lib/lunar/copy-of-a-lun")
	m.show("dpkg -P lunar")
	m.show("find /etc/lunar /var/lib/lunar /ClusterStorage /etc/systemd/system -iname '*lun*'")
	m.sh("test -e /var/lib/lunar/copy-of-a-lun && ! test -e /etc/lunar && test $(find /var/lib/lunar | wc -l) = 2")
	m.sh("mkdir -p /mnt/lun && mount -o ro " + dev + " /mnt/lun && test -s /mnt/lun/vm.img && umount /mnt/lun")
}
