package firstboot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the settings are kept, and where what follows from them is.
const (
	DefaultState = "/var/lib/lunar-appliance"
	DefaultRun   = "/run/lunar-appliance"
)

// Files below the run directory.
const (
	reportFile = "settings.json"
	keysFile   = "authorized_keys" // there while ssh is allowed
)

// Machine is what is set up, by paths, so that a test has one of its own.
type Machine struct {
	State, Run  string
	Systemd     string                   // /run/systemd
	Credentials string                   // folder; "" for none
	Cmdline     string                   // of the kernel
	Disk        func() (Settings, error) // reads lunar.toml; nil for none
	Links       func() []string          // the Ethernet interfaces
	HostName    func(string) error       // gives the machine a name
	MachineID   string                   // of it a name is made where none is set
	EtcHostname string                   // file; a name that somebody wrote there holds
}

// Here is the machine that this process runs on.
func Here() *Machine {
	cmdline, _ := os.ReadFile("/proc/cmdline")
	id, _ := os.ReadFile("/etc/machine-id")
	return &Machine{
		State: DefaultState, Run: DefaultRun, Systemd: "/run/systemd", Credentials: os.Getenv("CREDENTIALS_DIRECTORY"),
		Cmdline: string(cmdline), Links: ethernets, MachineID: strings.TrimSpace(string(id)), EtcHostname: "/etc/hostname",
		Disk:     func() (Settings, error) { return ConfigDisk("/dev/disk/by-label", DefaultRun) },
		HostName: func(name string) error { return unix.Sethostname([]byte(name)) },
	}
}

// ethernets are the interfaces that are devices.
func ethernets() (names []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		if _, err := os.Stat("/sys/class/net/" + i.Name + "/device"); err == nil && len(i.HardwareAddr) == 6 {
			names = append(names, i.Name)
		}
	}
	return names
}

// kept is the file in the state directory.
type kept struct {
	Source   string            `json:"source"` // digest of what the sources said when it was taken
	Settings Settings          `json:"settings"`
	Problems map[string]string `json:"problems,omitempty"` // values that were refused, by their names
}

// Report is how the machine was set up, for its console.
type Report struct {
	Name     string            `json:"name"`
	Settings Settings          `json:"settings"` // the token is left out
	Problems map[string]string `json:"problems,omitempty"`
	Notes    []string          `json:"notes,omitempty"` // what else was wrong, in sentences
}

// Configure reads the sources, takes them if they have changed, and makes everything in /run. Wrong values are in the report;
// the error is of what could not be made.
func (m *Machine) Configure() (Report, error) {
	t := m.read()
	k, err := m.load()
	notes := t.problems
	if err != nil {
		notes = append(notes, err.Error())
	}
	if digest := t.digest(); digest != "" && digest != k.Source {
		k = k.take(t.values, digest)
		if err := m.keep(k); err != nil {
			notes = append(notes, fmt.Sprintf("the settings hold until the next boot only: %v", err))
		}
	}
	return m.apply(k, notes)
}

// take puts new values in the place of all before; one that is wrong leaves that before.
func (k kept) take(values Settings, digest string) kept {
	next := kept{Source: digest, Settings: Settings{}, Problems: map[string]string{}}
	for name, value := range values {
		err := Check(name, value)
		if err == nil {
			next.Settings[name] = value
			continue
		}
		next.Problems[name] = err.Error()
		if before, ok := k.Settings[name]; ok {
			next.Settings[name] = before
		}
	}
	return next
}

// Set changes one setting on the console's order; the empty value is the default. It holds until the sources change.
func (m *Machine) Set(name, value string) (Report, error) {
	if err := Check(name, value); err != nil {
		return Report{}, fmt.Errorf("%s: %w", name, err)
	}
	k, err := m.load()
	var notes []string
	if err != nil {
		notes = append(notes, err.Error())
	}
	k.Settings[name] = value
	if value == "" {
		delete(k.Settings, name)
	}
	delete(k.Problems, name)
	if err := m.keep(k); err != nil {
		notes = append(notes, fmt.Sprintf("the settings hold until the next boot only: %v", err))
	}
	return m.apply(k, notes)
}

const keptFile = "settings.json"

// load reads what is kept. When it is damaged it starts from nothing, with the error.
func (m *Machine) load() (kept, error) {
	none := kept{Settings: Settings{}, Problems: map[string]string{}}
	file := filepath.Join(m.State, keptFile)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	k := kept{}
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if err != nil {
		return none, fmt.Errorf("the settings of before are lost: %s: %w", file, err)
	}
	if k.Settings == nil {
		k.Settings = Settings{}
	}
	if k.Problems == nil {
		k.Problems = map[string]string{}
	}
	return k, nil
}

func (m *Machine) keep(k kept) error {
	text, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.State, 0o700); err != nil {
		return err
	}
	return replace(filepath.Join(m.State, keptFile), append(text, '\n'), 0o600)
}

// replace writes a file so that it is the old or the new one, whenever the power is cut.
func replace(path string, text []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// LastReport is what Configure or Set said last.
func LastReport(run string) (r Report, err error) {
	text, err := os.ReadFile(filepath.Join(run, reportFile))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	return r, err
}

// name is the machine's: set, or written into /etc/hostname, or made of its id.
func (m *Machine) name(s Settings) string {
	if s[NodeName] != "" {
		return s[NodeName]
	}
	written, _ := os.ReadFile(m.EtcHostname)
	if name := strings.TrimSpace(string(written)); name != "" && name != "localhost" && name != "lunar" && checkName(name) == nil {
		return name
	}
	sum := sha256.Sum256([]byte("lunar " + m.MachineID))
	return "lunar-" + hex.EncodeToString(sum[:3])
}
