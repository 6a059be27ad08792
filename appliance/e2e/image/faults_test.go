package image

import (
	"bytes"
	"testing"
)

// stateOffset is where the state partition begins on the disk.
const stateOffset = (35 + 2*1024) << 20

// TestDamagedState boots with a state partition that is no file system, mends it on the console, and fills the new one up.
func TestDamagedState(t *testing.T) {
	m := newMachine(t, "damaged", options{args: user(), settings: []string{"node-name=damaged", "network=dhcp"}})
	m.poke(stateOffset, bytes.Repeat([]byte("?"), 1<<20))
	m.boot()
	m.says("the state partition is damaged, and lunard does not run without it")
	t.Logf("the console:\n%s", m.lastWords(1200))
	if state, _ := m.try("systemctl is-active lunard"); state == "active" {
		t.Error("lunard runs under an identity that the next boot forgets")
	}
	m.types("m", "Which?")
	m.types("x", "Type yes")
	m.types("yes\r", "")
	m.ends()
	m.boot()
	t.Logf("erased on the console: READY after %v", m.ready())

	m.sh("fallocate -l $(($(stat -f -c '%a * %S' /var) - 65536)) /var/fill; dd if=/dev/zero of=/var/rest bs=4k status=none || true; sync")
	m.show("df -h /var")
	m.again()
	m.says("state partition is full")
	t.Logf("the console:\n%s", m.lastWords(1200))
	m.sh("rm -f /var/fill /var/rest; sync")
	m.becomes("lunard.service", "ActiveState", "active")
	m.sh("lunarctl volume list")
}

// TestNoNetwork boots without any network, and with a clock that is years behind.
func TestNoNetwork(t *testing.T) {
	m := newMachine(t, "alone", options{clock: "2001-02-03T04:05:06", settings: []string{"node-name=alone"}})
	m.boot()
	t.Logf("READY after %v, at %s", m.ready(), m.sh("date -uR"))
	m.says("Address")
	t.Logf("the console:\n%s", m.lastWords(1200))
	if year := m.sh("date +%Y"); year < "2026" {
		t.Errorf("the machine lives in %s, before its image was built", year)
	}
}
