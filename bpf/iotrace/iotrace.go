package iotrace

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Bounds.
const (
	// MaxDevices is how many block devices are watched at a time.
	MaxDevices = 256
	// MaxPorts is how many ports connections are told by.
	MaxPorts = 16
	// Buckets is how many classes of durations are counted: class 0 has those below 1,024 ns, class i those of 2^(i+9)
	// up to 2^(i+10) ns, the last one also all above.
	Buckets = 28
)

// ErrClosed says that the Trace or the Ring was closed.
var ErrClosed = errors.New("iotrace: closed")

// Histogram counts durations by powers of two.
type Histogram struct {
	Sum     uint64 // ns
	Buckets [Buckets]uint64
}

// Operation is a kind of I/O.
type Operation int

// The kinds of I/O. Other is flushes, discards and the like.
const (
	Read Operation = iota
	Write
	Other
	operations
)

// String is the kind's name.
func (o Operation) String() string { return [...]string{"read", "write", "other"}[o] }

// Options is what Load needs to know.
type Options struct {
	// Ports are those that initiators connect to, in the network namespace of the calling thread: MaxPorts at most.
	Ports []uint16
	// BTF is the file with the kernel's type information; "" means /sys/kernel/btf/vmlinux.
	BTF string
	// Off names nothing to load, with the reason; "" loads.
	Off string
}

// Trace is the programs in the kernel. Its methods may be called at the same time.
type Trace struct {
	why     string // nothing can be loaded
	missing []string

	mu     sync.Mutex // guards what follows
	closed bool
	block  *blockPart // nil: missing
	tcp    *tcpPart
	places map[uint64]uint32 // in the block part's times, by device
}

type blockPart struct {
	objects blockObjects
	link    link.Link
}

type tcpPart struct {
	objects tcpObjects
	link    link.Link
}

// Load puts into the kernel what it takes; Missing says what it does not.
func Load(o Options) *Trace {
	t := &Trace{places: map[uint64]uint32{}}
	if t.why = unusable(&o); t.why != "" {
		t.missing = []string{"times of devices, of connections and of io_uring, by the kernel: " + t.why}
		return t
	}
	t.try("times of block devices", t.loadBlock)
	t.try("round trips of connections", func() error { return t.loadTCP(o.Ports) })
	return t
}

func (t *Trace) try(what string, load func() error) {
	if err := load(); err != nil {
		t.missing = append(t.missing, what+": "+reason(err))
	}
}

// Missing says in sentences what the kernel does not tell, and why; nil when it tells all.
func (t *Trace) Missing() []string { return t.missing }

func (t *Trace) loadBlock() (err error) {
	p := &blockPart{}
	if err := loadBlockObjects(&p.objects, nil); err != nil {
		return err
	}
	if p.link, err = link.AttachTracing(link.TracingOptions{Program: p.objects.BtCompleted}); err != nil {
		return errors.Join(err, p.objects.Close())
	}
	t.block = p
	return nil
}

func (t *Trace) loadTCP(ports []uint16) (err error) {
	if len(ports) > MaxPorts {
		return fmt.Errorf("%d ports, %d at most", len(ports), MaxPorts)
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return err
	}
	s := tcpTcpSettings{Netns: uint32(ns.Ino), Ports: uint32(len(ports))}
	copy(s.Port[:], ports)
	p := &tcpPart{}
	if err := loadTcpObjects(&p.objects, nil); err != nil {
		return err
	}
	if err = p.objects.TtSettings.Put(uint32(0), &s); err == nil {
		p.link, err = link.AttachTracing(link.TracingOptions{Program: p.objects.TtReceived})
	}
	if err != nil {
		return errors.Join(err, p.objects.Close())
	}
	t.tcp = p
	return nil
}

// kernelDevice is what the kernel calls a device that stat(2) names so in st_rdev.
func kernelDevice(rdev uint64) uint32 { return unix.Major(rdev)<<20 | unix.Minor(rdev) }

// SetDevices has just these block devices watched, MaxDevices at most. Each is named as stat(2) does, in st_rdev.
func (t *Trace) SetDevices(devices []uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.block == nil {
		return nil
	}
	var errs []error
	for dev := range t.places {
		if !slices.Contains(devices, dev) {
			errs = append(errs, t.block.objects.BtDevices.Delete(kernelDevice(dev)))
			delete(t.places, dev)
		}
	}
	for _, dev := range devices {
		if _, known := t.places[dev]; !known {
			errs = append(errs, t.watch(dev))
		}
	}
	return errors.Join(errs...)
}

// watch gives a device a place whose counters are zero.
func (t *Trace) watch(dev uint64) error {
	place := uint32(0)
	for taken := true; taken; {
		taken = false
		for _, p := range t.places {
			if p == place {
				taken = true
				place++
				break
			}
		}
	}
	if place >= MaxDevices {
		return fmt.Errorf("iotrace: device %d:%d is not watched: %d are", unix.Major(dev), unix.Minor(dev), MaxDevices)
	}
	zero := make([]blockHistogram, ebpf.MustPossibleCPU())
	for op := range operations {
		if err := t.block.objects.BtTimes.Put(place*uint32(operations)+uint32(op), zero); err != nil {
			return fmt.Errorf("iotrace: clear the times of a device: %w", err)
		}
	}
	if err := t.block.objects.BtDevices.Put(kernelDevice(dev), place); err != nil {
		return fmt.Errorf("iotrace: watch a device: %w", err)
	}
	t.places[dev] = place
	return nil
}

// DeviceTimes are how long a device took, since it is watched.
type DeviceTimes struct {
	Device uint64 // st_rdev
	Times  [operations]Histogram
}

// Devices reads the times of the devices that are watched, in no order.
func (t *Trace) Devices() ([]DeviceTimes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	var out []DeviceTimes
	for dev, place := range t.places {
		d := DeviceTimes{Device: dev}
		for op := range operations {
			var each []blockHistogram
			if err := t.block.objects.BtTimes.Lookup(place*uint32(operations)+uint32(op), &each); err != nil {
				return nil, fmt.Errorf("iotrace: read the times of a device: %w", err)
			}
			for _, h := range each {
				d.Times[op].add(h.Sum, &h.Buckets)
			}
		}
		out = append(out, d)
	}
	return out, nil
}

func (h *Histogram) add(sum uint64, buckets *[Buckets]uint64) {
	h.Sum += sum
	for i, n := range buckets {
		h.Buckets[i] += n
	}
}

// PeerTimes are the round trips of a connection, smoothed by TCP, as of each segment that came in.
type PeerTimes struct {
	Peer  netip.AddrPort // the initiator's end
	Times Histogram
}

// Peers reads the round trips of the connections, those that have ended lately too, in no order.
func (t *Trace) Peers() ([]PeerTimes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, ErrClosed
	case t.tcp == nil:
		return nil, nil
	}
	var out []PeerTimes
	var peer tcpPeer
	var each []tcpHistogram
	all := t.tcp.objects.TtTimes.Iterate()
	for all.Next(&peer, &each) {
		p := PeerTimes{Peer: peer.addrPort()}
		for _, h := range each {
			p.Times.add(h.Sum, &h.Buckets)
		}
		out = append(out, p)
	}
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("iotrace: read the round trips: %w", err)
	}
	return out, nil
}

// Close takes the programs out of the kernel. A second call does nothing.
func (t *Trace) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	var errs []error
	if p := t.block; p != nil {
		errs = append(errs, p.link.Close(), p.objects.Close())
	}
	if p := t.tcp; p != nil {
		errs = append(errs, p.link.Close(), p.objects.Close())
	}
	t.block, t.tcp = nil, nil
	t.places = map[uint64]uint32{}
	return errors.Join(errs...)
}

// unusable says why no program can be loaded, "" when some may.
func unusable(o *Options) string {
	if o.Off != "" {
		return o.Off
	}
	file := o.BTF
	if file == "" {
		file = kernelBTF
	}
	if _, err := os.Stat(file); err != nil {
		return fmt.Sprintf("the kernel has no type information (CONFIG_DEBUG_INFO_BTF): %v", err)
	}
	return lacks()
}

// kernelBTF is where the kernel shows its type information.
const kernelBTF = "/sys/kernel/btf/vmlinux"
