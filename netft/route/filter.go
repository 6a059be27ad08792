package route

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// The values of rp_filter, see the kernel's ip-sysctl.
const (
	filterStrict = "1"
	filterLoose  = "2"
)

const filterFile = "/proc/sys/net/ipv4/conf/%s/rp_filter"

// filters are the values that interfaces had before theirs was changed, by name.
type filters map[string]string

// loosen takes the strict reverse path filter off the interfaces. The kernel takes the higher one of
// an interface's value and that of "all", so 2 on the interface is enough.
func (k *Keeper) loosen(interfaces []string) error {
	if !k.cluster.Is4() {
		return nil
	}
	return k.ns.Do(func() error {
		all := readFilter("all")
		var failed []error
		for _, name := range interfaces {
			old := readFilter(name)
			if max(all, old) != filterStrict {
				continue
			}
			err := os.WriteFile(fmt.Sprintf(filterFile, name), []byte(filterLoose), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				failed = append(failed, fmt.Errorf("route: %s drops what peers send to the cluster address: %w", name, err))
			}
			if err == nil {
				k.filters[name] = old
				k.log.Info("reverse path filter loosened for cluster traffic", "interface", name, "from", old, "to", filterLoose)
			}
		}
		return errors.Join(failed...)
	})
}

// restore puts the filters back that nobody changed since.
func (k *Keeper) restore() error {
	if len(k.filters) == 0 {
		return nil
	}
	return k.ns.Do(func() error {
		var failed []error
		for name, old := range k.filters {
			if readFilter(name) != filterLoose {
				continue
			}
			err := os.WriteFile(fmt.Sprintf(filterFile, name), []byte(old), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				failed = append(failed, fmt.Errorf("route: restore rp_filter of %s: %w", name, err))
			}
		}
		return errors.Join(failed...)
	})
}

// readFilter is an interface's value, "" when there is none.
func readFilter(name string) string {
	value, err := os.ReadFile(fmt.Sprintf(filterFile, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(value))
}
