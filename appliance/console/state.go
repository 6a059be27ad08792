package console

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/firstboot"
	"lunar/appliance/slot"
)

// state is the machine at a moment, in words.
type state struct {
	name    string
	version string
	clock   string
	links   []string
	lunard  string
	cluster string
	volumes []string
	image   string
	ssh     string
	alarms  []string // what is wrong, each with what to do
	hints   []string // what may come next

	damaged bool // the state partition is not in use
	locked  bool // nothing may be changed here
	other   string
}

func (s *state) alarm(format string, args ...any) {
	s.alarms = append(s.alarms, fmt.Sprintf(format, args...))
}

// Machine is where the state comes from, by paths and functions, so that a test has one of its own.
type Machine struct {
	Client  *api.Client
	First   *firstboot.Machine
	Slots   *slot.System
	Release string // os-release(5)
	Synced  string // a file that is there once the clock follows a server
	Var     string // a folder on the state partition

	Show    func(ctx context.Context, unit string) (map[string]string, error) // systemctl show
	Journal func(ctx context.Context, unit string) string                     // its last words
	Links   func() ([]Link, error)
	Now     func() time.Time
}

// Link is an interface of the machine.
type Link struct {
	Name      string
	Device    bool // not made of others
	Carrier   bool
	Addresses []string // of more than the link alone
}

// Here is this machine; client asks its lunard.
func Here(client *api.Client) (*Machine, error) {
	slots, err := slot.Here()
	if err != nil {
		return nil, err
	}
	return &Machine{
		Client: client, First: firstboot.Here(), Slots: slots, Release: "/usr/lib/os-release", Synced: "/run/systemd/timesync/synchronized",
		Var: "/var/lib", Show: show, Journal: lastWords, Links: links, Now: time.Now,
	}, nil
}

// askFor bounds each question, so that what hangs is told and not waited for.
const askFor = 3 * time.Second

// look asks for everything.
func (m *Machine) look(ctx context.Context) *state {
	s := &state{}
	m.lookSettings(s)
	m.lookImage(s)
	m.lookLinks(s)
	m.lookClock(s)
	m.lookDisk(s)
	if m.lookDaemon(ctx, s) {
		m.lookCluster(ctx, s)
	}
	slices.Sort(s.alarms)
	s.alarms = slices.Compact(s.alarms)
	return s
}

func (m *Machine) lookSettings(s *state) {
	s.name, _ = os.Hostname()
	r, err := firstboot.LastReport(m.First.Run)
	if err != nil {
		s.alarm("the settings of this machine were not applied (lunar-configure.service): %v", err)
		return
	}
	s.name = r.Name
	s.locked = r.Settings[firstboot.Console] == firstboot.ConsoleStatus && !m.recovery()
	for name, why := range r.Problems {
		s.alarm("the setting %s is wrong: %s", name, why)
	}
	for _, note := range r.Notes {
		s.alarm("%s", note)
	}
	s.ssh = "off; a key lets root in"
	if r.Settings[firstboot.SSHKey] != "" {
		s.ssh = "on, for root, by key"
	}
}

// recovery tells that the loader's recovery entry was chosen.
func (m *Machine) recovery() bool {
	return slices.Contains(strings.Fields(m.First.Cmdline), "lunar.recovery=1")
}

func (m *Machine) lookImage(s *state) {
	st, err := m.Slots.Status()
	switch {
	case errors.Is(err, slot.ErrNoAppliance):
		s.version = "installed as a package"
	case err != nil:
		s.alarm("updates: %v: restart the machine", err)
	}
	for i := range st.Slots {
		one := &st.Slots[i]
		if one.Booted {
			s.version = fmt.Sprintf("%s, slot %s", one.Version, one.Name)
		} else {
			s.other = one.Version
		}
		if one.Failed && !one.Booted {
			s.alarm("%s", st.Text)
		}
	}
	if st.Trial || s.other != "" {
		s.image = st.Text
	}
}

func (m *Machine) lookLinks(s *state) {
	all, err := m.Links()
	if err != nil {
		s.alarm("the network cannot be read: %v", err)
		return
	}
	cables, addresses := 0, 0
	var names []string
	for i := range all {
		l := &all[i]
		if !l.Device && len(l.Addresses) == 0 {
			continue
		}
		words := strings.Join(l.Addresses, ", ")
		switch {
		case !l.Carrier:
			words = "no cable"
		case words == "":
			words = "no address"
		}
		if l.Device {
			names = append(names, l.Name)
		}
		if l.Carrier {
			cables++
			addresses += len(l.Addresses)
		}
		s.links = append(s.links, l.Name+"  "+words)
	}
	switch {
	case len(s.links) == 0:
		s.alarm("no network: this machine has no interface that the system knows")
	case cables == 0:
		s.alarm("no network: no cable or no partner at %s", strings.Join(names, ", "))
	case addresses == 0:
		s.alarm("no network: no address; no DHCP server answers, or the address that is set fits no interface")
	}
}

// clockOff is how far a clock may be from the image's date, in years after it.
const clockOff = 10

func (m *Machine) lookClock(s *state) {
	now := m.Now().UTC()
	_, err := os.Stat(m.Synced)
	synced := err == nil
	s.clock = now.Format("2006-01-02 15:04") + " UTC, "
	if synced {
		s.clock += "follows a time server"
	} else {
		s.clock += "follows no time server"
	}
	made, err := os.Stat(m.Release)
	if err != nil || synced {
		return
	}
	date := made.ModTime().UTC()
	if now.Before(date.Add(-24*time.Hour)) || now.After(date.AddDate(clockOff, 0, 0)) {
		s.alarm("the clock is wrong: it says %s, and this image is of %s: set the clock, or a time server", now.Format("2 January 2006"), date.Format("2 January 2006"))
	}
}

// Below these the state partition counts as full.
const (
	lowBytes = 16 << 20
	lowParts = 50 // of the whole
)

func (m *Machine) lookDisk(s *state) {
	if why, err := os.ReadFile(filepath.Join(m.First.Run, "state-damaged")); err == nil {
		s.damaged = true
		s.alarm("the state partition is damaged, and lunard does not run without it: %s", strings.TrimSpace(string(why)))
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.Var, &st); err != nil {
		s.alarm("the state partition cannot be read: %v", err)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		s.alarm("the state partition is read-only: the kernel found it damaged, or its disk fails: restart the machine, which checks it")
	case free < lowBytes || st.Bavail < st.Blocks/lowParts:
		s.alarm("the state partition is full: %s left on %s: free space by the menu, or enlarge the disk", api.FormatSize(free), m.Var)
	}
}

// lookDaemon tells whether lunard can be asked.
func (m *Machine) lookDaemon(ctx context.Context, s *state) bool {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	p, err := m.Show(ctx, "lunard.service")
	if err != nil {
		s.lunard = "not known"
		s.alarm("systemd does not answer: %v", err)
		return false
	}
	s.lunard = p["ActiveState"]
	for part := range strings.SplitSeq(p["StatusText"], "; ") {
		if why, ok := strings.CutPrefix(part, "ALARM: "); ok {
			s.alarm("%s", why)
		}
	}
	switch p["ActiveState"] {
	case "active":
		s.lunard = p["StatusText"]
		return true
	case "activating", "reloading", "deactivating":
		s.lunard += ": " + p["StatusText"]
	default:
		if p["ConditionResult"] == "no" && s.damaged {
			return false
		}
		s.alarm("lunard does not run (%s): %s", p["Result"], m.Journal(ctx, "lunard.service"))
	}
	return false
}

func (m *Machine) lookCluster(ctx context.Context, s *state) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	c, err := m.Client.Cluster(ctx)
	if err != nil {
		s.alarm("lunard does not answer: %v", err)
		return
	}
	if c.ID == "" {
		s.cluster = "none"
		s.hints = append(s.hints, "to join a cluster: `lunarctl cluster token` on a node of it, then the menu here; to begin one: `lunarctl cluster init`")
	} else {
		s.cluster = fmt.Sprintf("%s, %d nodes, %d of %d voters live", c.ID, len(c.Nodes), c.Living, c.Voters)
		s.hints = append(s.hints, fmt.Sprintf("to join another node: `lunarctl cluster token` here, and %s as its join address", c.Address))
	}
	if c.Reason != "" {
		s.alarm("cluster: %s", c.Reason)
	}
	for i := range c.Nodes {
		if n := &c.Nodes[i]; n.State == api.NodeDown || n.State == api.NodeSilent {
			s.alarm("node %s is %s", n.Name, n.State)
		}
	}
	volumes, err := m.Client.Volumes(ctx)
	if err != nil {
		s.alarm("the volumes are not known: %v", err)
	}
	for i := range volumes {
		v := &volumes[i]
		line := fmt.Sprintf("%s  %s", v.Name, v.State)
		if v.Reason != "" {
			line += " (" + v.Reason + ")"
		}
		if v.Size > 0 {
			line += fmt.Sprintf(", %s free of %s", api.FormatSize(v.Free), api.FormatSize(v.Size))
		}
		s.volumes = append(s.volumes, line+", coordinator "+orNone(v.Coordinator))
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// show reads what systemd tells of a unit.
func show(ctx context.Context, unit string) (map[string]string, error) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState,StatusText,Result,ConditionResult", unit).Output()
	if err != nil {
		return nil, err
	}
	p := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		p[name] = value
	}
	return p, nil
}

func lastWords(ctx context.Context, unit string) string {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--output=cat", "--lines=1", "--boot", "_SYSTEMD_UNIT="+unit).Output()
	if err != nil || len(out) == 0 {
		return "journalctl -u lunard tells why"
	}
	return strings.TrimSpace(string(out))
}

func links() ([]Link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		_, device := os.Stat("/sys/class/net/" + i.Name + "/device")
		l := Link{Name: i.Name, Device: device == nil, Carrier: i.Flags&net.FlagRunning != 0}
		addresses, _ := i.Addrs()
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				l.Addresses = append(l.Addresses, n.String())
			}
		}
		out = append(out, l)
	}
	return out, nil
}
