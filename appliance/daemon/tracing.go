package daemon

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/config"
	"lunar/bpf/iotrace"
	"lunar/datapath/trace"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
	"lunar/iscsi"
)

// tracing is what times this node's I/O. Nil times none.
type tracing struct {
	commands *trace.Tracer
	kernel   *iotrace.Trace // nil until the node serves
}

// newTracing times the commands of so many lanes.
func (n *Node) newTracing(c config.Trace, lanes int) *tracing {
	t := &tracing{commands: trace.New(lanes, func(lane int, fn func()) error { return n.engine.Ring(lane).Post(fn) })}
	t.commands.Switch(c.Commands)
	return t
}

func (t *tracing) ringClock(i int) uring.Clock { return t.commands.Lane(i) }

func (t *tracing) frontClock(i int) iscsi.Clock { return t.commands.Lane(i) }

// volumeClock is nil where nothing is timed.
func (t *tracing) volumeClock() func(int) volume.Clock {
	if t == nil {
		return nil
	}
	return func(i int) volume.Clock { return t.commands.Lane(i) }
}

// openKernel has the kernel time devices, and connections to the portals.
func (t *tracing) openKernel(c config.Trace, portals []net.Listener) {
	o := iotrace.Options{}
	if c.BPF == config.BPFOff {
		o.Off = `trace.bpf is "off"`
	}
	for _, l := range portals {
		if a, ok := l.Addr().(*net.TCPAddr); ok && len(o.Ports) < iotrace.MaxPorts {
			o.Ports = append(o.Ports, uint16(a.Port))
		}
	}
	t.kernel = iotrace.Load(o)
}

func (t *tracing) close() error {
	if t == nil || t.kernel == nil {
		return nil
	}
	return t.kernel.Close()
}

// about says how commands are timed.
func (t *tracing) about() string {
	if !t.commands.On() {
		return "off: trace.commands is false"
	}
	return "on"
}

// notes say what is not known.
func (n *Node) traceNotes() (out []string) {
	if !n.tracing.commands.On() {
		out = append(out, fmt.Sprintf("node %s does not time commands: trace.commands is false in its configuration", n.name))
	}
	for _, m := range n.tracing.kernel.Missing() {
		out = append(out, fmt.Sprintf("node %s does not know %s", n.name, m))
	}
	return out
}

// watchDevices has the kernel time the devices of the volumes that are here; the names, by st_rdev, are of one volume, or
// of all for "".
func (n *Node) watchDevices(volume string) (names map[uint64]string, err error) {
	names = map[uint64]string{}
	var all []uint64
	for _, v := range n.sortedVolumes() {
		p, release := v.tryBorrow()
		if p == nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(p.dev.Fd(), &st) == nil {
			for dev, name := range paths(st.Rdev, p.dev.Path) {
				all = append(all, dev)
				if volume == "" || volume == n.record(v).Name {
					names[dev] = name
				}
			}
		}
		release()
	}
	return names, n.tracing.kernel.SetDevices(all)
}

// paths are a device and those below one that device mapper makes, such as a multipath device's paths: requests are theirs.
func paths(dev uint64, name string) map[uint64]string {
	names := map[uint64]string{dev: name}
	below, _ := filepath.Glob(fmt.Sprintf("/sys/dev/block/%d:%d/slaves/*/dev", unix.Major(dev), unix.Minor(dev)))
	for _, file := range below {
		text, err := os.ReadFile(file)
		var major, minor uint32
		if err != nil {
			continue
		}
		if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err == nil {
			names[unix.Mkdev(major, minor)] = "/dev/" + filepath.Base(filepath.Dir(file)) + " of " + name
		}
	}
	return names
}

// initiators are the names of those that are connected, by host:port.
func (n *Node) initiators() map[string]string {
	out := map[string]string{}
	for _, s := range n.front.Sessions() {
		out[s.Remote] = s.Initiator
	}
	return out
}

// exports tells the image, VOLUME/PATH, and the volume of each LUN.
type exports map[exportKey]exportOf

type exportKey struct {
	target string
	lun    uint16
}

type exportOf struct{ image, volume string }

func (n *Node) exports() exports {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := exports{}
	for _, t := range n.targets {
		for number, l := range t.luns {
			e := exportOf{}
			if v := n.volumes[l.record.VolumeID]; v != nil {
				e.volume = v.record.Name
			}
			e.image, _ = exported(cmp.Or(e.volume, "?"), l.record.Path)
			out[exportKey{t.name, number}] = e
		}
	}
	return out
}

func (e exports) of(k trace.Key) exportOf { return e[exportKey{strings.ToLower(k.Target), k.LUN}] }

// histogram is the API's form of what was counted.
func histogram(h *trace.Histogram) (out api.Histogram) {
	out.Count, out.Sum, out.Buckets = h.Count(), time.Duration(h.Sum), h.Buckets
	return out
}

func kernelHistogram(h, before *iotrace.Histogram) (out api.Histogram) {
	out.Sum = time.Duration(h.Sum - before.Sum)
	for i := range h.Buckets {
		out.Buckets[i] = h.Buckets[i] - before.Buckets[i]
		out.Count += out.Buckets[i]
	}
	return out
}
