package heartbeat

import (
	"errors"
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attachment is the links of one interface; either may be nil.
type attachment struct {
	network         uint16
	ingress, egress link.Link
}

// ErrInterface says that an interface cannot carry heartbeats.
var ErrInterface = errors.New("heartbeat: not an Ethernet interface")

// Attach puts the programs on an interface of the calling thread's network namespace, which belongs to network.
// If they are there, it changes the network only. MaxInterfaces at most.
func (h *Heartbeat) Attach(ifindex int, network uint16) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	if h.closed() {
		return ErrClosed
	}
	a, there := h.attached[ifindex]
	if there && !a.lives(ifindex) {
		if err := h.detach(ifindex); err != nil {
			return err
		}
		there = false
	}
	if !there {
		return h.attach(ifindex, network)
	}
	if err := h.name(ifindex, network); err != nil {
		return err
	}
	a.network = network
	h.attached[ifindex] = a
	return nil
}

func (h *Heartbeat) closed() bool {
	h.mapped.RLock()
	defer h.mapped.RUnlock()
	return h.memory.node == nil
}

func (h *Heartbeat) name(ifindex int, network uint16) error {
	if err := h.objects.HbInterfaces.Put(uint32(ifindex), uint32(network)); err != nil {
		return fmt.Errorf("heartbeat: interface %d: %w", ifindex, err)
	}
	return nil
}

func (h *Heartbeat) attach(ifindex int, network uint16) error {
	if len(h.attached) >= MaxInterfaces {
		return fmt.Errorf("heartbeat: %d interfaces are attached, more cannot be", MaxInterfaces)
	}
	if err := carriesEthernet(ifindex); err != nil {
		return err
	}
	a := attachment{network: network}
	// Egress first: no peer's answer may come before our beat was stamped.
	err := errors.Join(
		h.name(ifindex, network),
		h.link(ifindex, ebpf.AttachTCXEgress, h.objects.HbEgress, &a.egress),
		h.link(ifindex, ebpf.AttachTCXIngress, h.objects.HbIngress, &a.ingress))
	h.attached[ifindex] = a
	if err != nil {
		return errors.Join(err, h.detach(ifindex))
	}
	return nil
}

func (h *Heartbeat) link(ifindex int, hook ebpf.AttachType, p *ebpf.Program, to *link.Link) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: p, Attach: hook, Anchor: link.Head()})
	if err != nil {
		return refused(fmt.Sprintf("attach to interface %d", ifindex), err)
	}
	*to = l
	if h.pins == nil {
		return nil
	}
	if err := l.Pin(h.pins.link(ifindex, hook)); err != nil {
		return fmt.Errorf("heartbeat: pin the programs of interface %d: %w", ifindex, err)
	}
	return nil
}

// carriesEthernet refuses interfaces whose packets have no Ethernet header, such as tunnels.
func carriesEthernet(ifindex int) error {
	i, err := net.InterfaceByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("heartbeat: interface %d: %w", ifindex, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("heartbeat: interface %s: %w", i.Name, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	request, err := unix.NewIfreq(i.Name)
	if err != nil {
		return fmt.Errorf("heartbeat: interface %s: %w", i.Name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, request); err != nil {
		return fmt.Errorf("heartbeat: interface %s: %w", i.Name, err)
	}
	if kind := request.Uint16(); kind != unix.ARPHRD_ETHER && kind != unix.ARPHRD_LOOPBACK {
		return fmt.Errorf("%w: %s has link type %d", ErrInterface, i.Name, kind)
	}
	return nil
}

// Detach takes the programs off an interface, which may be gone. One that is not attached is left alone.
func (h *Heartbeat) Detach(ifindex int) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	if h.closed() {
		return ErrClosed
	}
	return h.detach(ifindex)
}

func (h *Heartbeat) detach(ifindex int) error {
	a, there := h.attached[ifindex]
	if !there {
		return nil
	}
	delete(h.attached, ifindex)
	err := h.objects.HbInterfaces.Delete(uint32(ifindex))
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	return errors.Join(a.close(), err)
}

// Attached is the networks of the interfaces that have the programs, those too that a daemon before left pinned.
func (h *Heartbeat) Attached() map[int]uint16 {
	h.changing.Lock()
	defer h.changing.Unlock()
	all := make(map[int]uint16, len(h.attached))
	for ifindex, a := range h.attached {
		all[ifindex] = a.network
	}
	return all
}

// lives says that both links still hold on to the interface, which they do not if it was removed.
func (a attachment) lives(ifindex int) bool {
	return holds(a.ingress, ifindex) && holds(a.egress, ifindex)
}

func holds(l link.Link, ifindex int) bool {
	if l == nil {
		return false
	}
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return false
	}
	return info.TCX().Ifindex == uint32(ifindex)
}

// close takes the programs off, pinned or not.
func (a attachment) close() error {
	var errs []error
	for _, l := range []link.Link{a.ingress, a.egress} {
		if l != nil {
			errs = append(errs, l.Unpin(), l.Close())
		}
	}
	return errors.Join(errs...)
}

// release lets go of the links; those that are pinned stay.
func (a attachment) release() error {
	var errs []error
	for _, l := range []link.Link{a.ingress, a.egress} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}
