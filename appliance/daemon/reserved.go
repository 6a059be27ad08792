package daemon

import (
	"fmt"
	"strings"
	"syscall"

	"lunar/appliance/api"
)

// reserved tells whether a path on a volume is Lunar's own: it is in no list, and no image of anybody else can be there.
func reserved(path string) bool { return isTransfer(path + "/") }

// unreserved refuses such a path to who makes or renames an image.
func unreserved(volume, path string) error {
	if !reserved(path) {
		return nil
	}
	top, _, _ := strings.Cut(path, "/")
	return api.Errorf(api.Invalid, "%s/%s is a name that Lunar keeps", volume, path).WithHint("use a folder of another name than %s", top)
}

// The errors of programs that use reserved paths as files.
var (
	errReserved = fmt.Errorf("it is a name that Lunar keeps: %w", syscall.EPERM)
	errUnseen   = fmt.Errorf("it is not shown: %w", syscall.ENOENT)
)
