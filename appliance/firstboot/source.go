package firstboot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// prefix is before a setting's name in credentials and on the kernel command line.
const prefix = "lunar."

// others on the kernel command line begin with the prefix and are no settings.
func others() []string { return []string{"slot", "try", "recovery", "confirm-timeout", "debug-shell"} }

// told is what the sources say, as they say it.
type told struct {
	values   Settings
	problems []string // of the sources themselves
}

// digest tells whether the sources say the same as before; "" while they say nothing.
func (t *told) digest() string {
	if len(t.values) == 0 {
		return ""
	}
	sum := sha256.New()
	for _, name := range slices.Sorted(mapsKeys(t.values)) {
		_, _ = fmt.Fprintf(sum, "%q=%q\n", name, t.values[name])
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func mapsKeys(s Settings) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range s {
			if !yield(name) {
				return
			}
		}
	}
}

// read asks all sources.
func (m *Machine) read() told {
	t := told{values: Settings{}}
	if m.Disk != nil {
		t.take(m.Disk())
	}
	t.take(credentials(m.Credentials))
	t.take(commandLine(m.Cmdline))
	return t
}

func (t *told) take(values Settings, err error) {
	for name, value := range values {
		t.values[name] = strings.TrimSpace(value)
	}
	if err != nil {
		t.problems = append(t.problems, err.Error())
	}
}

// credentials reads what systemd has put below dir.
func credentials(dir string) (values Settings, err error) {
	if dir == "" {
		return nil, nil
	}
	values = Settings{}
	for _, name := range Names() {
		text, failed := os.ReadFile(filepath.Join(dir, prefix+name))
		switch {
		case failed == nil:
			values[name] = string(text)
		case !errors.Is(failed, fs.ErrNotExist):
			err = errors.Join(err, fmt.Errorf("credential %s%s: %w", prefix, name, failed))
		}
	}
	return values, err
}

// commandLine reads lunar.KEY=VALUE; quotes hold spaces together.
func commandLine(line string) (values Settings, err error) {
	values = Settings{}
	for _, word := range splitQuoted(line) {
		name, value, _ := strings.Cut(word, "=")
		name, ours := strings.CutPrefix(name, prefix)
		if ours && !slices.Contains(others(), name) {
			values[name] = value
		}
	}
	return values, nil
}

// splitQuoted splits as the kernel does: at spaces that are not between double quotes, which go.
func splitQuoted(line string) (words []string) {
	var word strings.Builder
	quoted := false
	for _, r := range strings.TrimSpace(line) + " " {
		switch {
		case r == '"':
			quoted = !quoted
		case !quoted && (r == ' ' || r == '\n' || r == '\t'):
			if word.Len() > 0 {
				words = append(words, word.String())
			}
			word.Reset()
		default:
			word.WriteRune(r)
		}
	}
	return words
}

// maxFile bounds lunar.toml.
const maxFile = 64 << 10

// parseFile reads lunar.toml: names and strings.
func parseFile(text []byte) (Settings, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("lunar.toml has more than %d bytes", maxFile)
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // of Windows' editor
	var raw map[string]any
	if err := toml.Unmarshal(text, &raw); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return nil, fmt.Errorf("lunar.toml, line %d: %s", line, strings.TrimPrefix(at.Error(), "toml: "))
		}
		return nil, fmt.Errorf("lunar.toml: %w", err)
	}
	values := Settings{}
	var err error
	for name, value := range raw {
		text, ok := value.(string)
		if !ok {
			err = errors.Join(err, fmt.Errorf("lunar.toml: %s is no string: write %s = \"…\"", name, name))
			continue
		}
		values[name] = text
	}
	return values, err
}

// labels of the configuration disk's file system, and what it may be.
func labels() []string    { return []string{"LUNAR-CONFIG", "LUNARCONFIG"} }
func diskTypes() []string { return []string{"vfat", "iso9660", "ext4"} }

// ConfigDisk reads lunar.toml from the disk with the label; none is no error. It mounts the disk below dir, read-only, for
// the length of the call.
func ConfigDisk(byLabel, dir string) (Settings, error) {
	for _, label := range labels() {
		path := filepath.Join(byLabel, label)
		if _, err := os.Stat(path); err == nil {
			values, err := readDisk(path, dir)
			if err != nil {
				err = fmt.Errorf("disk %s: %w", label, err)
			}
			return values, err
		}
	}
	return nil, nil
}

func readDisk(device, dir string) (values Settings, err error) {
	at := filepath.Join(dir, "config-disk")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err
	}
	for _, kind := range diskTypes() {
		err = unix.Mount(device, at, kind, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("it is not of %s, or damaged: %w", strings.Join(diskTypes(), ", "), err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH), os.Remove(at)) }()
	fd, err := unix.Open(filepath.Join(at, "lunar.toml"), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lunar.toml: %w", err)
	}
	file := os.NewFile(uintptr(fd), "lunar.toml")
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, err
	}
	return parseFile(text)
}
