package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var errDiffers = errors.New("the data differs")

// patience bounds the wait for what comes by itself.
const patience = time.Minute

// machine is a booted Debian.
type machine struct {
	t      *testing.T
	name   string
	log    string
	cmd    *exec.Cmd
	leader string // PID of its systemd
	ended  chan error
	began  time.Time
}

// needs are the files that `make systemd-test` has made.
func needs(t *testing.T) (root, deb string) {
	t.Helper()
	root, deb = os.Getenv("LUNAR_ROOT"), os.Getenv("LUNAR_DEB")
	if root == "" || deb == "" {
		t.Skip("needs LUNAR_ROOT and LUNAR_DEB: make systemd-test")
	}
	return root, deb
}

// boot starts a machine whose changes are gone with it; args are more of systemd-nspawn's.
func boot(t *testing.T, name string, args ...string) *machine {
	t.Helper()
	root, deb := needs(t)
	m := &machine{t: t, name: fmt.Sprintf("%s-%d", name, os.Getpid()), ended: make(chan error, 1), began: time.Now()}
	groups := m.groups()
	m.log = filepath.Join(t.TempDir(), "console")
	console, err := os.Create(m.log)
	must(t, err)
	defer console.Close()
	enter := ""
	for _, g := range groups {
		enter += "echo $$ >" + g + "/cgroup.procs; "
	}
	all := append([]string{"-ec", enter + `exec systemd-nspawn "$@"`, "sh", "--boot", "--quiet", "--directory=" + root, "--machine=" + m.name,
		"--hostname=" + name, "--register=no", "--keep-unit", "--volatile=overlay", "--console=pipe", "--kill-signal=SIGRTMIN+4",
		"--capability=all", "--bind-ro=" + filepath.Dir(deb) + ":/deb", "--bind=/dev/fuse"}, args...)
	m.cmd = exec.Command("/bin/sh", append(all, "systemd.unit=multi-user.target")...)
	m.cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "SYSTEMD_SECCOMP=0")
	m.cmd.Stdout, m.cmd.Stderr = console, console
	must(t, m.cmd.Start())
	go func() { m.ended <- m.cmd.Wait() }()
	t.Cleanup(func() { m.end(groups) })
	m.wait("its systemd", func() bool { m.leader = m.findLeader(); return m.leader != "" })
	m.wait("multi-user.target", func() bool { _, err := m.try("systemctl is-active multi-user.target"); return err == nil })
	return m
}

// groups makes a control group of the machine's own in each hierarchy that systemd uses.
func (m *machine) groups() (made []string) {
	for _, base := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(base + "/cgroup.procs"); err != nil {
			continue
		}
		must(m.t, os.Mkdir(base+"/"+m.name, 0o755))
		made = append(made, base+"/"+m.name)
	}
	return made
}

func (m *machine) findLeader() string {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", m.cmd.Process.Pid))
	for _, pid := range strings.Fields(string(children)) {
		if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); strings.TrimSpace(string(comm)) == "systemd" {
			return pid
		}
	}
	return ""
}

func (m *machine) end(groups []string) {
	if m.t.Failed() {
		text, _ := os.ReadFile(m.log)
		out, _ := m.try("journalctl --no-pager -n 60 -o short-monotonic")
		m.t.Logf("console of %s:\n%s\njournal:\n%s", m.name, text, out)
	}
	m.powerOff()
	for _, g := range groups {
		out, err := exec.Command("find", g, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").CombinedOutput()
		if err != nil {
			m.t.Errorf("control group %s: %v %s", g, err, out)
		}
	}
}

// powerOff shuts the machine down as its power button does, and tells how long that took.
func (m *machine) powerOff() time.Duration {
	if m.cmd == nil {
		return 0
	}
	began := time.Now()
	_ = m.cmd.Process.Signal(os.Signal(sigterm))
	select {
	case <-m.ended:
	case <-time.After(2 * patience):
		m.t.Errorf("%s does not shut down", m.name)
		_ = m.cmd.Process.Kill()
		<-m.ended
	}
	m.cmd = nil
	return time.Since(began)
}

// try runs a shell command in the machine.
func (m *machine) try(command string) (string, error) {
	return m.from([]string{"-a", "--"}, "/bin/sh", "-c", command)
}

// from runs a command in some of the machine's namespaces.
func (m *machine) from(namespaces []string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append(append([]string{"-t", m.leader}, namespaces...), command...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER=", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// sh is try for what must succeed.
func (m *machine) sh(command string) string {
	m.t.Helper()
	out, err := m.try(command)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.name, command, err, out)
	}
	return out
}

// show runs a command and prints it with its output, for the log of the run.
func (m *machine) show(command string) string {
	m.t.Helper()
	out, err := m.try(command)
	m.t.Logf("%6.2fs %s # %s (%v)\n%s", time.Since(m.began).Seconds(), m.name, command, err, out)
	return out
}

func (m *machine) wait(what string, done func() bool) time.Duration {
	m.t.Helper()
	began := time.Now()
	for !done() {
		if time.Since(began) > patience {
			m.t.Fatalf("%s: not within %v: %s", m.name, patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// unit is a property of a unit.
func (m *machine) unit(unit, property string) string {
	m.t.Helper()
	return m.sh("systemctl show --value --property=" + property + " '" + unit + "'")
}

// becomes waits for a unit's property.
func (m *machine) becomes(unit, property, want string) time.Duration {
	m.t.Helper()
	return m.wait(fmt.Sprintf("%s of %s is %q", property, unit, want), func() bool { return strings.Contains(m.unit(unit, property), want) })
}

// initiator does I/O on LUN 0 of the target by QEMU's initiator, in the machine's network.
func (m *machine) initiator(address string, commands ...string) error {
	args := []string{"qemu-io", "-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := m.from([]string{"-n", "--"}, append(args, "iscsi://"+address+":3260/"+iqn+"/0")...)
	if err == nil && strings.Contains(out, "verification failed") {
		err = errDiffers
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// load is an initiator that writes and reads back, again and again.
type load struct {
	m      *machine
	halt   chan struct{}
	ended  chan struct{}
	rounds int
	worst  time.Duration
	err    error
}

// load begins at an offset of its own, in MiB; each round is one session.
func (m *machine) load(address string, at int) *load {
	l := &load{m: m, halt: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		for l.err == nil {
			select {
			case <-l.halt:
				return
			default:
			}
			began, pattern := time.Now(), l.rounds%200+1
			round := fmt.Sprintf("write -P %d %dM 1M,read -P %[1]d %[2]dM 1M,", pattern, at)
			l.err = m.initiator(address, strings.Split(strings.Repeat(round, 20)+"flush", ",")...)
			l.worst = max(l.worst, time.Since(began))
			l.rounds++
		}
	}()
	return l
}

// stop says in words how it went; an error of the initiator fails the test.
func (l *load) stop() string {
	l.m.t.Helper()
	close(l.halt)
	<-l.ended
	if l.err != nil || l.rounds < 2 {
		l.m.t.Errorf("the initiator, after %d rounds: %v", l.rounds, l.err)
	}
	return fmt.Sprintf("%d rounds of I/O, the longest %v", l.rounds, l.worst.Round(time.Millisecond))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func execute(command ...string) (string, error) {
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	return string(out), err
}
