package firstboot

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS admin@example"

// room is a machine in a folder.
func room(t *testing.T) (m *Machine, host *string) {
	dir := t.TempDir()
	host = new(string)
	return &Machine{
		State: dir + "/state", Run: dir + "/run", Systemd: dir + "/systemd", MachineID: "0123", EtcHostname: dir + "/hostname",
		Links: func() []string { return []string{"eth0"} }, HostName: func(s string) error { *host = s; return nil },
	}, host
}

func has(t *testing.T, path string, words ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	for _, w := range words {
		if !strings.Contains(string(text), w) {
			t.Errorf("%s has no %q:\n%s", path, w, text)
		}
	}
}

func absent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there (%v)", path, err)
	}
}

func TestDefaults(t *testing.T) {
	m, host := room(t)
	r, err := m.Configure()
	must(t, err)
	if !strings.HasPrefix(*host, "lunar-") || r.Name != *host || len(r.Problems)+len(r.Notes) > 0 {
		t.Errorf("%q %+v", *host, r)
	}
	has(t, m.Systemd+"/network/50-lunar-00.network", "Type=ether", "DHCP=yes")
	has(t, m.Run+"/join-token", "")
	absent(t, m.Run+"/authorized_keys")
	absent(t, m.Systemd+"/timesyncd.conf.d/lunar.conf")
	must(t, os.WriteFile(m.EtcHostname, []byte("mine\n"), 0o600))
	if _, err := m.Configure(); err != nil || *host != "mine" {
		t.Errorf("%q %v", *host, err)
	}
}

// TestOnce has the sources applied once, the console's word hold until they change, and later sources count more.
func TestOnce(t *testing.T) {
	m, host := room(t)
	m.Credentials = t.TempDir()
	put := func(name, text string) {
		must(t, os.WriteFile(filepath.Join(m.Credentials, "lunar."+name), []byte(text), 0o600))
	}
	m.Disk = func() (Settings, error) {
		return parseFile([]byte("node-name = \"disk\"\nntp = \"192.0.2.7, time.example\"\n"))
	}
	put(NodeName, "credential\n")
	put(SSHKey, key+"\n")
	m.Cmdline = `ro lunar.slot=a lunar.network="interface=eth0,192.0.2.10/24,gateway=192.0.2.1;interface=eth1 dhcp mtu=9000" lunar.join-address=192.0.2.2`
	put(JoinToken, "T")
	r, err := m.Configure()
	must(t, err)
	if *host != "credential" || len(r.Problems)+len(r.Notes) > 0 || r.Settings[JoinToken] != "(set)" {
		t.Errorf("%q %+v", *host, r)
	}
	has(t, m.Systemd+"/network/50-lunar-00.network", "Name=eth0", "Address=192.0.2.10/24", "Gateway=192.0.2.1", "DHCP=no")
	has(t, m.Systemd+"/network/50-lunar-01.network", "Name=eth1", "MTUBytes=9000", "DHCP=yes")
	has(t, m.Systemd+"/timesyncd.conf.d/lunar.conf", "NTP=192.0.2.7\nNTP=time.example\n")
	has(t, m.Run+"/authorized_keys", key)
	has(t, m.Run+"/join-token", "T")
	has(t, m.Run+"/join-address", "192.0.2.2")
	for path, mode := range map[string]os.FileMode{m.Run + "/join-token": 0o600, m.State + "/settings.json": 0o600, m.Run + "/settings.json": 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
	_, err = m.Set(NodeName, "console")
	must(t, err)
	_, err = m.Set(Network, "dhcp")
	must(t, err)
	absent(t, m.Systemd+"/network/50-lunar-01.network")
	must(t, os.RemoveAll(m.Run))
	if _, err = m.Configure(); err != nil || *host != "console" {
		t.Errorf("the console's word does not hold: %q %v", *host, err)
	}
	must(t, os.Remove(m.Credentials+"/lunar.ssh-key"))
	if _, err = m.Configure(); err != nil || *host != "credential" {
		t.Errorf("what changed is not applied: %q %v", *host, err)
	}
	absent(t, m.Run+"/authorized_keys")
	m.Credentials, m.Disk, m.Cmdline = "", nil, ""
	if _, err = m.Configure(); err != nil || *host != "credential" {
		t.Errorf("sources that are gone took the settings along: %q %v", *host, err)
	}
}

// TestWrong has wrong values told, the right ones taken, and each mended by Set.
func TestWrong(t *testing.T) {
	m, host := room(t)
	m.Cmdline = `lunar.node-name=n1 lunar.netwrok=dhcp lunar.network=192.0.2.10 lunar.ssh-key=hello`
	m.Disk = func() (Settings, error) { return parseFile([]byte("ntp = [\n")) }
	r, err := m.Configure()
	must(t, err)
	if *host != "n1" || len(r.Problems) != 3 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "line 1") {
		t.Errorf("%q %+v", *host, r)
	}
	has(t, m.Systemd+"/network/50-lunar-00.network", "DHCP=yes")
	absent(t, m.Run+"/authorized_keys")
	if _, err := m.Set(Network, "192.0.2.10"); err == nil {
		t.Error("a wrong value was taken")
	}
	_, err = m.Set(Network, "192.0.2.10/24")
	must(t, err)
	has(t, m.Systemd+"/network/50-lunar-00.network", "Name=eth0", "Address=192.0.2.10/24")
	last, err := LastReport(m.Run)
	must(t, err)
	if len(last.Problems) != 2 || last.Problems["netwrok"] == "" {
		t.Errorf("%+v", last)
	}
	m.Links = func() []string { return []string{"eth0", "eth1"} }
	m.Disk = nil
	if r, err = m.Configure(); err != nil || !strings.Contains(r.Problems[Network], "eth0, eth1") {
		t.Errorf("%+v %v", r, err)
	}
	has(t, m.Systemd+"/network/50-lunar-00.network", "DHCP=yes")
}

// TestDamagedState goes on without what was kept, and says so.
func TestDamagedState(t *testing.T) {
	m, host := room(t)
	m.Cmdline = "lunar.node-name=n1"
	_, err := m.Configure()
	must(t, err)
	must(t, os.WriteFile(m.State+"/settings.json", []byte("{\"sou"), 0o600))
	r, err := m.Configure()
	if err != nil || *host != "n1" || len(r.Notes) != 1 {
		t.Errorf("%q %+v %v", *host, r, err)
	}
	must(t, os.RemoveAll(m.State))
	must(t, os.WriteFile(m.State, nil, 0o600)) // no folder can be made
	r, err = m.Configure()
	if err != nil || *host != "n1" || len(r.Notes) == 0 {
		t.Errorf("%q %+v %v", *host, r, err)
	}
}

func TestCheck(t *testing.T) {
	for _, good := range []struct{ name, value string }{
		{Network, "dhcp"}, {Network, "dhcp,interface=en*"}, {Network, "mac=52:54:00:12:34:56 fd00::2/64 gateway=fd00::1"}, {Network, ""},
		{JoinAddress, "192.0.2.1"}, {JoinAddress, "[fd00::1]:3261"}, {JoinAddress, "fd00::1"}, {JoinAddress, "n1.example:3261"},
		{SSHKey, "# mine\n" + key + "\n"}, {NTP, "a.example b.example"}, {NodeName, "n1"},
	} {
		if err := Check(good.name, good.value); err != nil {
			t.Errorf("%s=%q: %v", good.name, good.value, err)
		}
	}
	for _, bad := range []struct{ name, value string }{
		{Network, "192.0.2.1"}, {Network, ";"}, {Network, "dhcp;dhcp"}, {Network, "dhcp,mtu=9"}, {Network, "interface=../x,dhcp"}, {Network, "gateway=192.0.2.1"},
		{Network, "127.0.0.1/8"}, {Network, "224.0.0.1/24"}, {Network, "mac=1 dhcp"}, {Network, "colour=red"}, {Network, "dhcp,dns=x"},
		{JoinAddress, "a b"}, {JoinAddress, "[x"}, {JoinToken, "a b"}, {JoinToken, strings.Repeat("x", maxValue+1)}, {SSHKey, key[:40]}, {SSHKey, "x"},
		{SSHKey, "command=\"x\" " + key}, {NTP, "a/b"}, {NodeName, "-x"}, {NodeName, "a\x1b[2J"}, {"colour", "red"},
	} {
		if err := Check(bad.name, bad.value); err == nil {
			t.Errorf("%s=%q was taken", bad.name, bad.value)
		}
	}
}

// TestConfigDisk reads real file systems by their labels.
func TestConfigDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount")
	}
	dir := t.TempDir()
	content := filepath.Join(dir, "content")
	must(t, os.Mkdir(content, 0o700))
	must(t, os.WriteFile(content+"/lunar.toml", []byte("\xef\xbb\xbfnode-name = \"d1\"\r\n"), 0o600))
	image := filepath.Join(dir, "image")
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", content, "-L", "LUNAR-CONFIG", image, "2M")
	loop := run(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { run(t, "losetup", "--detach", loop) })
	labels := filepath.Join(dir, "labels")
	must(t, os.Mkdir(labels, 0o700))
	if values, err := ConfigDisk(labels, dir); err != nil || len(values) > 0 {
		t.Errorf("no disk: %v %v", values, err)
	}
	must(t, os.Symlink(loop, labels+"/LUNAR-CONFIG"))
	if values, err := ConfigDisk(labels, dir); err != nil || values[NodeName] != "d1" {
		t.Errorf("%v %v", values, err)
	}
	must(t, os.WriteFile(image, make([]byte, 2<<20), 0o600))
	if _, err := ConfigDisk(labels, dir); err == nil {
		t.Error("zeros were mounted")
	}
	if text, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(text), dir) {
		t.Error("it is mounted still")
	}
}

func run(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v %s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

func FuzzParse(f *testing.F) {
	f.Add("node-name = \"x\"\nnetwork = \"dhcp\"")
	f.Add("interface=eth0,192.0.2.10/24;dhcp")
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = parseFile([]byte(s))
		_, _ = commandLine(s)
		links, err := parseNetwork(s)
		if err != nil {
			return
		}
		for i := range links {
			if text, err := links[i].file([]string{"eth0"}); err == nil && strings.Count(text, "[Match]") != 1 {
				t.Errorf("%q gives\n%s", s, text)
			}
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
