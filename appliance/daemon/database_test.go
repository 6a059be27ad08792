package daemon

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/datapath/coordinator"
	"lunar/datapath/device"
)

// TestDatabaseDies has the disk of the state directory fail under the embedded database: I/O goes on,
// changes are refused and not left hanging, and the alarm is raised.
func TestDatabaseDies(t *testing.T) {
	dev, stateDisk := disk(t), disk(t)
	p := newProcess(t)
	kill := mountState(t, stateDisk, filepath.Join(p.dir, "state"))
	metrics := freePort(t)
	p.configure("metrics.listen = \"" + metrics + "\"\n")
	p.start(nil, nil)
	c := p.client()
	defer c.Close()
	(&bench{t: t, client: c}).served(dev)
	must(t, qemuIO(t, p.portal, "", "write -P 7 0 1M", "flush"))
	if up := scrape(t, metrics, "lunar_cluster_database_up"); up != "1" {
		t.Errorf("lunar_cluster_database_up is %q", up)
	}
	kill()
	began := time.Now()
	_, err := c.CreateTarget(t.Context(), iqn+"-late")
	refused(t, err, api.Unavailable, "cluster database")
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the refusal took %v", took)
	}
	eventually(t, 15*time.Second, "the alarm", func() bool { return strings.Contains(p.log.String(), "ALARM: nothing can be changed") })
	if up := scrape(t, metrics, "lunar_cluster_database_up"); up != "0" {
		t.Errorf("lunar_cluster_database_up is %q", up)
	}
	must(t, qemuIO(t, p.portal, "", "read -P 7 0 1M", "write -P 8 40M 1M", "flush", "read -P 8 40M 1M"))
	must(t, p.cmd.Process.Signal(unix.SIGTERM))
	_ = p.end(40 * time.Second)
}

// configure adds lines to the configuration.
func (p *process) configure(lines string) {
	p.t.Helper()
	path := filepath.Join(p.dir, "c.toml")
	text, err := os.ReadFile(path)
	must(p.t, err)
	must(p.t, os.WriteFile(path, []byte(strings.Replace(string(text), "metrics.listen = \"\"\n", lines, 1)), 0o600))
}

// mountState mounts a file system of its own; kill makes each later write to it fail.
func mountState(t *testing.T, disk, dir string) (kill func()) {
	t.Helper()
	d, err := device.Open(disk)
	must(t, err)
	defer d.Close()
	must(t, coordinator.Format(t.Context(), d, coordinator.FormatOptions{FS: coordinator.XFS}))
	must(t, os.MkdirAll(dir, 0o700))
	must(t, unix.Mount(disk, dir, "xfs", 0, ""))
	t.Cleanup(func() {
		eventually(t, 10*time.Second, "unmount "+dir, func() bool { return unix.Unmount(dir, 0) == nil })
	})
	return func() {
		const xfsGoingDown, noLogFlush = 0x8004587d, uint32(2)
		f, err := os.Open(dir)
		must(t, err)
		defer f.Close()
		flags := noLogFlush
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), xfsGoingDown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
			t.Fatal(errno)
		}
	}
}

// scrape is the value of a metric without labels, "" if there is none.
func scrape(t *testing.T, address, name string) string {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
