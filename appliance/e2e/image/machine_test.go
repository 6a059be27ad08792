package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/guest"
	"lunar/appliance/e2e/lab"
)

// Where the loader's variables are on the disk (images/build), and the size of the disk that the image is written to.
const (
	envOffset = 34 << 20
	envSize   = 1024
	diskSize  = "4G"
)

// patience bounds the wait for what comes by itself in an emulated machine, among four others.
const patience = 6 * time.Minute

// emulated has the kernel ask less of an emulated machine: a timer that beats on time, and processors' crypto instructions.
const emulated = "lunar.debug-shell no_timer_check modprobe.blacklist=aesni_intel,ghash_clmulni_intel,sha512_ssse3,crct10dif_pclmul,i2c_i801,lpc_ich,iTCO_wdt,pcspkr "

// needs is the image that `make image-test` has built.
func needs(t *testing.T) string {
	t.Helper()
	image := os.Getenv("LUNAR_IMAGE")
	if image == "" {
		t.Skip("needs LUNAR_IMAGE: make image-test")
	}
	return image
}

// options say what a machine is made of.
type options struct {
	uefi     bool
	mib      int      // memory; 0: 768, of which lunard locks 256
	append   string   // kernel arguments
	settings []string // credentials of the machine, NAME=VALUE without "lunar."
	clock    string   // where its clock begins; "": now
	args     []string // QEMU's, for more devices
}

// machine is a virtual machine and the root shell in it.
type machine struct {
	t     *testing.T
	name  string
	dir   string
	opts  options
	lab   *lab.Lab
	qemu  *lab.Process
	conn  net.Conn
	shell *guest.Shell
	began time.Time
}

// newMachine makes a machine with a disk of its own on which the image is.
func newMachine(t *testing.T, name string, o options) *machine {
	t.Helper()
	image := needs(t)
	dir, err := os.MkdirTemp("", "vm") // a unix socket's path is short
	must(t, err)
	l, err := lab.Open(dir, "/nonexistent")
	must(t, err)
	m := &machine{t: t, name: name, dir: dir, opts: o, lab: l}
	t.Cleanup(func() {
		if t.Failed() && m.conn != nil {
			_, out, err := m.shell.Run(context.Background(), 20*time.Second, "systemctl --no-pager --failed; journalctl -b --no-pager -n 60")
			t.Logf("journal of %s: %v\n%s", name, err, out)
		}
		m.unplug()
		if t.Failed() {
			t.Logf("console of %s:\n%s", name, m.lastWords(4000))
		}
		must(t, l.Close())
		must(t, os.RemoveAll(dir))
	})
	m.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, m.disk(), diskSize)
	m.setAppend(image, o.append)
	if o.uefi {
		m.run("cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", l.Path("vars"))
	}
	return m
}

// setAppend gives the loader kernel arguments, and the shell's among them.
func (m *machine) setAppend(image, arguments string) {
	m.t.Helper()
	f, err := os.Open(image)
	must(m.t, err)
	defer f.Close()
	block := make([]byte, envSize)
	_, err = f.ReadAt(block, envOffset)
	must(m.t, err)
	text := strings.TrimRight(string(block), "#")
	whole := strings.Replace(text, "lunar_append=\n", "lunar_append="+emulated+arguments+"\n", 1)
	if whole == text || len(whole) > envSize/2 {
		m.t.Fatalf("the image's environment block is %q, with %q %d bytes", text, arguments, len(whole))
	}
	m.poke(envOffset, []byte(whole+strings.Repeat("#", envSize-len(whole))))
}

// poke writes bytes to the disk of a machine that does not run.
func (m *machine) poke(offset int64, data []byte) {
	m.t.Helper()
	part := m.lab.Path("part")
	must(m.t, os.WriteFile(part, data, 0o600))
	m.run("qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -s %s %d %d", part, offset, len(data)), m.disk())
}

func (m *machine) disk() string { return m.lab.Path("disk.qcow2") }

func (m *machine) command() []string {
	o := m.opts
	if o.mib == 0 {
		o.mib = 768
	}
	args := []string{
		"nice", "-n", "10", "qemu-system-x86_64", "-name", m.name, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1",
		"-m", strconv.Itoa(o.mib), "-nodefaults", "-display", "none", "-no-reboot",
		"-chardev", "socket,id=serial,path=" + m.lab.Path("serial") + ",server=on,wait=off,logfile=" + m.lab.Path("serial.out") + ",logappend=on",
		"-serial", "chardev:serial", "-qmp", "unix:" + m.lab.Path("qmp") + ",server=on,wait=off",
		"-device", "virtio-serial-pci", "-device", "virtconsole,chardev=shell",
		"-chardev", "socket,id=shell,path=" + m.lab.Path("shell") + ",server=on,wait=off",
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
		"-drive", "file=" + m.disk() + ",if=none,id=disk,format=qcow2,cache=unsafe", "-device", "virtio-blk-pci,drive=disk,bootindex=1",
	}
	if o.uefi {
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
			"-drive", "if=pflash,format=raw,file="+m.lab.Path("vars"))
	}
	for _, s := range o.settings {
		args = append(args, "-smbios", "type=11,value=io.systemd.credential:lunar."+strings.ReplaceAll(s, ",", ",,"))
	}
	if o.clock != "" {
		args = append(args, "-rtc", "base="+o.clock)
	}
	return append(args, o.args...)
}

// plug starts the machine and does not wait for it.
func (m *machine) plug() {
	m.t.Helper()
	var err error
	m.began = time.Now()
	m.qemu, err = m.lab.Start(m.command()...)
	must(m.t, err)
}

// boot starts the machine and returns when its root shell answers.
func (m *machine) boot() {
	m.t.Helper()
	m.plug()
	m.greet()
}

func (m *machine) greet() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	var dialer net.Dialer
	must(m.t, lab.Poll(patience, func() (err error) {
		m.conn, err = dialer.DialContext(ctx, "unix", m.lab.Path("shell"))
		return err
	}))
	m.shell = guest.NewShell(m.conn)
	if err := m.shell.Greet(ctx); err != nil {
		m.t.Fatalf("%s: %v", m.name, err)
	}
}

// ready waits until lunard is READY, and returns how long after the start of the machine that was.
func (m *machine) ready() time.Duration {
	m.t.Helper()
	m.becomes("lunard.service", "ActiveState", "active")
	return time.Since(m.began).Round(100 * time.Millisecond)
}

// unplug is a power cut.
func (m *machine) unplug() {
	if m.conn != nil {
		_ = m.conn.Close()
		m.conn = nil
	}
	if m.qemu != nil {
		m.qemu.Kill()
		m.qemu = nil
	}
}

// ends waits until the machine has shut down or restarted, which ends QEMU.
func (m *machine) ends() {
	m.t.Helper()
	select {
	case <-m.qemu.Exited():
	case <-time.After(patience):
		m.t.Fatalf("%s does not shut down", m.name)
	}
	m.unplug()
}

// off shuts the machine down in order.
func (m *machine) off() time.Duration {
	m.t.Helper()
	began := time.Now()
	_, _ = m.try("systemctl poweroff --no-block")
	m.ends()
	return time.Since(began).Round(100 * time.Millisecond)
}

// again restarts the machine in order, and returns when its shell answers.
func (m *machine) again() {
	m.t.Helper()
	_, _ = m.try("systemctl reboot --no-block")
	m.ends()
	m.boot()
}

// try runs a script in the machine.
func (m *machine) try(script string) (string, error) {
	status, out, err := m.shell.Run(m.t.Context(), patience, script)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	return strings.TrimSpace(out), err
}

// sh is try for what must succeed.
func (m *machine) sh(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.name, script, err, out)
	}
	return out
}

// show is sh with the output in the test's log.
func (m *machine) show(script string) string {
	m.t.Helper()
	out := m.sh(script)
	m.t.Logf("%s# %s\n%s", m.name, script, out)
	return out
}

// wait polls the machine until what is described is true.
func (m *machine) wait(what string, is func() bool) time.Duration {
	m.t.Helper()
	began := time.Now()
	for !is() {
		if time.Since(began) > patience {
			m.t.Fatalf("%s: not after %v: %s", m.name, patience, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(began).Round(10 * time.Millisecond)
}

// becomes waits until a unit's property has the text in it.
func (m *machine) becomes(unit, property, text string) {
	m.t.Helper()
	var now string
	began := time.Now()
	for {
		now, _ = m.try("systemctl show -P " + property + " " + unit)
		if strings.HasPrefix(now, text) || property != "ActiveState" && strings.Contains(now, text) {
			return
		}
		if time.Since(began) > patience {
			out, _ := m.try("systemctl status --no-pager " + unit + "; systemctl --failed --no-pager; journalctl -b --no-pager -n 40")
			m.t.Fatalf("%s: %s of %s is %q, and not %q\n%s", m.name, property, unit, now, text, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// lastWords is the end of what the machine said on its serial console.
func (m *machine) lastWords(most int) string {
	text, err := os.ReadFile(filepath.Join(m.dir, "serial.out"))
	if err != nil {
		return err.Error()
	}
	return plain(string(text[max(0, len(text)-most):]))
}

var control = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|\r`)

// plain takes a terminal's control sequences out.
func plain(s string) string { return control.ReplaceAllString(s, "") }

// says waits until the serial console has shown the text.
func (m *machine) says(text string) {
	m.t.Helper()
	must(m.t, lab.Poll(patience, func() error {
		if !strings.Contains(m.lastWords(1<<20), text) {
			return fmt.Errorf("the console of %s does not say %q:\n%s", m.name, text, m.lastWords(3000))
		}
		return nil
	}))
}

// types sends keys to the serial console and waits for the answer.
func (m *machine) types(keys, answer string) {
	m.t.Helper()
	before := len(m.lastWords(1 << 20))
	conn, err := net.Dial("unix", m.lab.Path("serial"))
	must(m.t, err)
	drained := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, conn); close(drained) }() // else the serial line stops
	defer func() { _ = conn.Close(); <-drained }()
	_, err = conn.Write([]byte(keys))
	must(m.t, err)
	if answer == "" {
		return
	}
	must(m.t, lab.Poll(patience, func() error {
		if now := m.lastWords(1 << 20); !strings.Contains(now[min(before, len(now)):], answer) {
			return fmt.Errorf("%q on the console of %s is not answered by %q:\n%s", keys, m.name, answer, m.lastWords(2000))
		}
		return nil
	}))
}

// run is a program on the host.
func (m *machine) run(argv ...string) {
	m.t.Helper()
	_, err := lab.Run(m.t.Context(), argv...)
	must(m.t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}
