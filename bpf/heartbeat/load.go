package heartbeat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/dchest/siphash"
)

// Heartbeat is the programs of one node in the kernel. Its methods may be called at the same time.
type Heartbeat struct {
	options Options // as given, with the defaults filled in
	objects programObjects
	pins    *pins

	changing sync.Mutex // one change at a time: guards attached and the free slots
	attached map[int]attachment
	free     []uint32 // slots, the one that was freed last at the end

	mapped sync.RWMutex // guards the memory against Close, and slotOf
	memory memory       // nil when closed
	slotOf map[Path]uint32
}

// Load puts the programs into the kernel, where they do nothing until Attach and SetPaths. The error is
// ErrUnsupported if this kernel or this process cannot do it.
func Load(o Options) (*Heartbeat, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.fill()
	if err := supported(&o); err != nil {
		return nil, err
	}
	h := &Heartbeat{options: o, attached: map[int]attachment{}, slotOf: map[Path]uint32{}}
	if err := h.load(); err != nil {
		return nil, errors.Join(err, h.abandon())
	}
	return h, nil
}

func (o *Options) fill() {
	o.Keys = slices.Clone(o.Keys)
	if o.Tick == 0 {
		o.Tick = DefaultTick
	}
	if o.Silent == 0 {
		o.Silent = DefaultSilent
	}
	if o.BTF == "" {
		o.BTF = kernelBTF
	}
}

func (h *Heartbeat) load() (err error) {
	if h.options.Pin != "" {
		if h.pins, err = openPins(h.options.Pin); err != nil {
			return err
		}
	}
	if err := h.loadObjects(); err != nil {
		return refused("load the programs", err)
	}
	if err := tcxSupported(h.objects.HbIngress); err != nil {
		return err
	}
	if h.memory, err = mapMemory(h.objects.HbNode, h.objects.HbSlots); err != nil {
		return err
	}
	if err := h.configure(h.options.Keys); err != nil {
		return err
	}
	if err := h.adopt(); err != nil {
		return err
	}
	return h.runTimer(h.objects.HbStart)
}

// loadObjects takes over the maps that are pinned. Those of another version are let go.
func (h *Heartbeat) loadObjects() error {
	err := h.tryLoad()
	if h.pins == nil || !errors.Is(err, ebpf.ErrMapIncompatible) {
		return err
	}
	if err := h.pins.clear(); err != nil {
		return err
	}
	return h.tryLoad()
}

func (h *Heartbeat) tryLoad() error {
	spec, err := loadProgram()
	if err != nil {
		return err
	}
	var options ebpf.CollectionOptions
	if h.pins != nil {
		options.Maps.PinPath = h.pins.folder
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinByName
		}
	}
	return spec.LoadAndAssign(&h.objects, &options)
}

func (h *Heartbeat) runTimer(p *ebpf.Program) error {
	ret, err := p.Run(&ebpf.RunOptions{})
	if err != nil {
		return refused("run the timer", err)
	}
	if ret != 0 {
		return fmt.Errorf("heartbeat: the kernel's timer: error %d", int32(ret))
	}
	return nil
}

// SetKeys replaces the accepted keys, 1 to MaxKeys, at once and whole.
func (h *Heartbeat) SetKeys(keys [][KeySize]byte) error {
	if err := validateKeys(keys); err != nil {
		return err
	}
	h.changing.Lock()
	defer h.changing.Unlock()
	h.mapped.RLock()
	defer h.mapped.RUnlock()
	if h.memory.node == nil {
		return ErrClosed
	}
	return h.configure(keys)
}

// configure writes the settings that are not active, then makes them so.
func (h *Heartbeat) configure(keys [][KeySize]byte) error {
	s := programSettings{
		Number:      uint32(h.options.Number),
		Incarnation: h.options.Incarnation,
		Tick:        uint64(h.options.Tick),
		Silent:      uint64(h.options.Tick) * uint64(h.options.Silent),
		KeyCount:    uint32(len(keys)),
	}
	if h.options.Deliver {
		s.Flags = flagDeliver
	}
	for i, k := range keys {
		k0, k1 := binary.LittleEndian.Uint64(k[:8]), binary.LittleEndian.Uint64(k[8:])
		s.Keys[i].K0, s.Keys[i].K1 = k0, k1
		s.Keys[i].Cluster = uint32(siphash.Hash(k0, k1, clusterName))
	}
	next := atomic.LoadUint32(&h.memory.node.Active)&1 ^ 1
	if err := h.objects.HbSettings.Put(next, &s); err != nil {
		return refused("write the settings", err)
	}
	atomic.StoreUint32(&h.memory.node.Active, next)
	return nil
}

const flagDeliver = 1

// clusterName is what a key signs to name its cluster on the wire, as in netft/beat.
var clusterName = []byte("lunar heartbeat cluster\x00")

// Close takes everything out of the kernel, pins too. A second call does nothing.
func (h *Heartbeat) Close() error {
	h.changing.Lock()
	defer h.changing.Unlock()
	h.mapped.Lock()
	defer h.mapped.Unlock()
	if h.memory.node == nil {
		return nil
	}
	return errors.Join(h.runTimer(h.objects.HbStop), h.remove())
}

// remove needs no part of the Heartbeat to be there.
func (h *Heartbeat) remove() error {
	var errs []error
	for ifindex, a := range h.attached {
		errs = append(errs, a.close())
		delete(h.attached, ifindex)
	}
	if h.pins != nil {
		errs = append(errs, h.pins.remove())
	}
	return errors.Join(append(errs, h.release())...)
}

// abandon gives back what a Load that failed took. What another process pinned stays as it is.
func (h *Heartbeat) abandon() error {
	if h.pins == nil || h.pins.found {
		return h.release()
	}
	return h.remove()
}

func (h *Heartbeat) release() error {
	errs := []error{h.memory.unmap()}
	h.slotOf = nil
	if h.objects.HbNode != nil {
		errs = append(errs, h.objects.Close())
	}
	for _, a := range h.attached {
		errs = append(errs, a.release())
	}
	if h.pins != nil {
		errs = append(errs, h.pins.close())
	}
	return errors.Join(errs...)
}

// Method says in a few words how the heartbeats are watched, for a log.
func (h *Heartbeat) Method() string {
	if h.pins != nil {
		return "kernel (tcx, pinned in " + h.pins.folder + ")"
	}
	return "kernel (tcx)"
}

// kernelBTF is where the kernel shows its type information.
const kernelBTF = "/sys/kernel/btf/vmlinux"

// supported says what this process and this kernel lack, as far as can be told before trying.
func supported(o *Options) error {
	if _, err := os.Stat(o.BTF); err != nil {
		return fmt.Errorf("heartbeat: %w: the kernel has no type information (CONFIG_DEBUG_INFO_BTF): %w", ErrUnsupported, err)
	}
	if err := rights(); err != nil {
		return err
	}
	return answers()
}

// Now reads the clock of all stamps.
func Now() time.Duration { return monotonic() }
