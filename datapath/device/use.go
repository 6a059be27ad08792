package device

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// InUse is nil when nobody on this node has the device or a part of it mounted or claimed, else
// ErrInUse with who it is, as far as this mount namespace shows.
func (d *Device) InUse() error {
	var users []string
	for _, sys := range d.parts() {
		users = append(users, usersOf(sys)...)
	}
	err := claim(d.Path)
	if err == nil && len(users) == 0 {
		return nil
	}
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	if len(users) == 0 {
		users = []string{"claimed by a mount in another namespace or by the kernel"}
	}
	return fmt.Errorf("device %s: %w: %s", d.Path, ErrInUse, strings.Join(users, ", "))
}

// parts is the sysfs folders of the device and its partitions.
func (d *Device) parts() []string {
	all := []string{resolve(d.sys)}
	found, _ := filepath.Glob(filepath.Join(all[0], "*", "partition"))
	for _, p := range found {
		all = append(all, filepath.Dir(p))
	}
	return all
}

// usersOf says, in words, who uses the device whose sysfs folder is sys.
func usersOf(sys string) (users []string) {
	number := strings.TrimSpace(read(sys, "dev"))
	for _, at := range mountPoints(number) {
		users = append(users, "mounted on "+at)
	}
	holders, _ := os.ReadDir(filepath.Join(sys, "holders"))
	for _, h := range holders {
		users = append(users, "held by "+h.Name())
	}
	swaps, _ := os.ReadFile("/proc/swaps")
	if bytes.Contains(swaps, []byte("/dev/"+filepath.Base(sys)+" ")) {
		users = append(users, "used as swap space")
	}
	return users
}

// mountPoints is where the device with this "major:minor" is mounted in this mount namespace.
func mountPoints(number string) (at []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// proc_pid_mountinfo(5): the third field is major:minor, the fifth the mount point.
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && number != "" && fields[2] == number {
			at = append(at, fields[4])
		}
	}
	return at
}
