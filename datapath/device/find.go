package device

import (
	"os"
	"path/filepath"
	"strings"
)

// blockDevices is where the kernel lists them.
const blockDevices = "/sys/class/block"

// Find lists the paths of the devices that have an identity, by sysfs alone: nothing is opened, so
// it disturbs no device and may be called often.
func Find(wwid string) (paths []string, err error) {
	entries, err := os.ReadDir(blockDevices)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if found, _ := identify(filepath.Join(blockDevices, e.Name())); found == wwid {
			paths = append(paths, "/dev/"+strings.ReplaceAll(e.Name(), "!", "/")) // as the kernel writes a slash there
		}
	}
	return paths, nil
}
