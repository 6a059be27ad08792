package systemd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAppliance has the second package: what the machine is told by credentials, its console, and an upgrade of both.
func TestAppliance(t *testing.T) {
	_, deb := needs(t)
	second, err := filepath.Glob(filepath.Join(filepath.Dir(deb), "lunar-appliance_*.deb"))
	must(t, err)
	if len(second) != 1 {
		t.Fatal(second)
	}
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS admin"
	m := boot(t, "lunar", "--private-network", "--set-credential=lunar.node-name:n7", "--set-credential=lunar.ssh-key:"+key,
		"--set-credential=lunar.network:192.0.2.7", "--set-credential=lunar.join-address:192.0.2.1", "--set-credential=lunar.join-token:none")
	m.sh("dpkg -i /deb/" + filepath.Base(deb) + " && dpkg --force-depends -i /deb/" + filepath.Base(second[0]))
	m.sh("systemctl start lunar-configure && systemctl restart lunard")
	m.show("systemctl status --no-pager lunar-configure; ls -l /run/lunar-appliance /run/systemd/network; systemctl list-unit-files 'lunar*' --no-pager")
	for command, want := range map[string]string{
		"hostname": "n7", "cat /run/lunar-appliance/authorized_keys": key, "cat /run/systemd/network/50-lunar-00.network": "DHCP=yes",
		"systemctl is-enabled lunar-configure lunar-slot-good": "enabled\nenabled", "journalctl -o cat -u lunar-configure": "the setting network is wrong",
		"systemctl show -p ActiveState,ConditionResult lunar-slot-good; systemctl start lunar-slot-good; systemctl show -p ConditionResult lunar-slot-good": "ConditionResult=no",
	} {
		if out := m.sh(command); !strings.Contains(out, want) {
			t.Errorf("%s: %q, and not %q", command, out, want)
		}
	}
	m.becomes("lunard.service", "StatusText", "192.0.2.1")
	on := m.console("")
	for _, want := range []string{"Node      n7", "Serving 0 volumes", "WRONG   the setting network is wrong", "ssh       on, for root, by key"} {
		if !strings.Contains(on, want) {
			t.Errorf("the console has no %q", want)
		}
	}
	m.console(`m; sleep 1; printf 2; sleep 1; printf 'n8\r'; sleep 3; printf '\r'`)
	if out := m.sh("hostname"); out != "n8" {
		t.Errorf("the console did not rename the machine: %q", out)
	}
	m.sh("systemctl restart lunar-configure")
	if out := m.sh("hostname"); out != "n8" {
		t.Errorf("what was set at the console does not hold: %q", out)
	}
	if out, err := m.try("lunarctl system status"); err == nil || !strings.Contains(out, "not booted from an appliance image") {
		t.Errorf("%v %s", err, out)
	}
	m.sh("echo 'colour = 1' >>/etc/lunar/lunard.toml; systemctl restart lunard || true")
	m.becomes("lunard.service", "ActiveState", "failed")
	if off := m.console(""); !strings.Contains(off, "WRONG   lunard does not run") || !strings.Contains(off, "colour") {
		t.Error("the console does not say why lunard is gone")
	}
	m.sh("sed -i '/colour/d' /etc/lunar/lunard.toml && systemctl restart lunard")
	m.sh("dpkg -i /deb/" + filepath.Base(os.Getenv("LUNAR_DEB_NEXT")) + " && dpkg --force-depends -i /deb/" + filepath.Base(second[0]))
	m.becomes("lunard.service", "ActiveState", "active")
	m.sh("dpkg -P lunar-appliance && test ! -e /etc/ssh/sshd_config.d/lunar-appliance.conf && systemctl restart lunard")
}

// console runs the console's program on a terminal of its own for some seconds, with keys typed by a shell's commands.
func (m *machine) console(keys string) string {
	m.t.Helper()
	if keys != "" {
		keys = "printf " + keys + ";"
	}
	return m.show("(sleep 2; " + keys + " : ; sleep 2) | TERM=linux timeout 12 script -qec 'lunarctl system console' /dev/null | head -c 20000 || true")
}
