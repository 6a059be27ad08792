package firstboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
)

// apply makes what follows from the settings. What cannot be made is in the error, and the rest is made all the same.
func (m *Machine) apply(k kept, notes []string) (Report, error) {
	r := Report{Name: m.name(k.Settings), Settings: maps.Clone(k.Settings), Problems: k.Problems, Notes: notes}
	if r.Settings[JoinToken] != "" {
		r.Settings[JoinToken] = "(set)"
	}
	err := errors.Join(
		os.MkdirAll(m.Run, 0o755),
		m.applyNetwork(k.Settings[Network], &r),
		m.applyTime(k.Settings[NTP]),
		m.file(filepath.Join(m.Run, JoinAddress), k.Settings[JoinAddress], 0o600),
		m.file(filepath.Join(m.Run, JoinToken), k.Settings[JoinToken], 0o600),
		m.applyKeys(k.Settings[SSHKey]),
	)
	if failed := m.HostName(r.Name); failed != nil {
		err = errors.Join(err, fmt.Errorf("host name %s: %w", r.Name, failed))
	}
	if err != nil {
		r.Notes = append(r.Notes, err.Error())
	}
	text, failed := json.MarshalIndent(r, "", "  ")
	if failed == nil {
		failed = replace(filepath.Join(m.Run, reportFile), append(text, '\n'), 0o600)
	}
	return r, errors.Join(err, failed)
}

func (m *Machine) file(path, text string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replace(path, []byte(text), mode)
}

// applyNetwork writes a file for networkd per link, and takes those of before away. What does not fit the machine's interfaces
// leaves DHCP.
func (m *Machine) applyNetwork(text string, r *Report) error {
	if text == "" {
		text = "dhcp"
	}
	links, err := parseNetwork(text)
	var files []string
	for i := range links {
		file, failed := links[i].file(m.Links())
		files, err = append(files, file), errors.Join(err, failed)
	}
	if err != nil {
		r.Problems = maps.Clone(r.Problems)
		if r.Problems == nil {
			r.Problems = map[string]string{}
		}
		r.Problems[Network] = err.Error() + "; DHCP until then"
		fallback, _ := (&link{dhcp: true}).file(nil)
		files = []string{fallback}
	}
	dir := filepath.Join(m.Systemd, "network")
	old, err := filepath.Glob(filepath.Join(dir, "50-lunar-*.network"))
	for i, text := range files {
		err = errors.Join(err, m.file(filepath.Join(dir, fmt.Sprintf("50-lunar-%02d.network", i)), text, 0o644))
	}
	for i, path := range old {
		if i >= len(files) {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

func (m *Machine) applyTime(servers string) error {
	path := filepath.Join(m.Systemd, "timesyncd.conf.d", "lunar.conf")
	if servers == "" {
		return removed(path)
	}
	text := "[Time]\n"
	for _, s := range fields(servers) {
		text += "NTP=" + s + "\n"
	}
	return m.file(path, text, 0o644)
}

// applyKeys makes the file by which sshd runs at all; without keys there is none.
func (m *Machine) applyKeys(keys string) error {
	path := filepath.Join(m.Run, keysFile)
	if keys == "" {
		return removed(path)
	}
	return m.file(path, keys+"\n", 0o600)
}

func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Reload is the commands that bring a changed setting into force on a machine that runs.
func Reload(name string) [][]string {
	restart := []string{"systemctl", "--no-block", "restart"}
	return map[string][][]string{
		NodeName:    {append(restart, "lunard.service")},
		Network:     {{"networkctl", "reload"}},
		JoinAddress: {append(restart, "lunard.service")},
		JoinToken:   {append(restart, "lunard.service")},
		SSHKey:      {append(restart, "ssh.service")},
		NTP:         {append(restart, "systemd-timesyncd.service")},
	}[name]
}
