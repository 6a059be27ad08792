package heartbeat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrNotPinned says that the folder of Options.Pin cannot hold pins. Load works without one.
var ErrNotPinned = errors.New("heartbeat: cannot pin")

// pins is a folder of a bpf file system, locked while it is open. Each name in it that is ours begins with pinPrefix.
type pins struct {
	folder string
	lock   *os.File
	found  bool // by another process, with something in it
}

const (
	pinPrefix  = "hb_"
	linkPrefix = pinPrefix + "link_"
)

var hooks = map[ebpf.AttachType]string{ebpf.AttachTCXIngress: "ingress", ebpf.AttachTCXEgress: "egress"}

func openPins(folder string) (*pins, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
	}
	p, err := lockPins(folder)
	if err != nil {
		return nil, err
	}
	names, err := p.names()
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.found = len(names) > 0
	return p, nil
}

func lockPins(folder string) (*pins, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotPinned, folder, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return nil, fmt.Errorf("%w: %s is not in a bpf file system; mount one: mount -t bpf bpf /sys/fs/bpf", ErrNotPinned, folder)
	}
	lock, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close() // opened for reading
		return nil, fmt.Errorf("%w: another process uses %s: %w", ErrNotPinned, folder, err)
	}
	return &pins{folder: folder, lock: lock}, nil
}

func (p *pins) close() error { return p.lock.Close() }

func (p *pins) names() ([]string, error) {
	entries, err := os.ReadDir(p.folder)
	if err != nil {
		return nil, fmt.Errorf("heartbeat: read the pins: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), pinPrefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// clear removes what is pinned, links first, so that no program runs on maps that are going.
func (p *pins) clear() error {
	names, err := p.names()
	if err != nil {
		return err
	}
	for _, links := range []bool{true, false} {
		for _, name := range names {
			if strings.HasPrefix(name, linkPrefix) != links {
				continue
			}
			if err := os.Remove(filepath.Join(p.folder, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("heartbeat: unpin: %w", err)
			}
		}
	}
	p.found = false
	return nil
}

// remove clears the folder, and removes it if nothing else is in it.
func (p *pins) remove() error {
	if err := p.clear(); err != nil {
		return err
	}
	err := os.Remove(p.folder)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (p *pins) link(ifindex int, hook ebpf.AttachType) string {
	return filepath.Join(p.folder, fmt.Sprintf("%s%d_%s", linkPrefix, ifindex, hooks[hook]))
}

// Unpin removes what a daemon that was killed left pinned in folder: the kernel then stops answering for it. It
// refuses, with ErrNotPinned, while a daemon uses the folder. A folder that is not there is no error.
func Unpin(folder string) error {
	p, err := lockPins(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(p.remove(), p.close())
}

// adopt takes over what a daemon before this one left pinned: its paths, and its links, which run the programs
// of this Load from now on, without a gap.
func (h *Heartbeat) adopt() error {
	if err := h.adoptPaths(); err != nil {
		return err
	}
	if h.pins == nil {
		return nil
	}
	var ifindex, network uint32
	found := h.objects.HbInterfaces.Iterate()
	for found.Next(&ifindex, &network) {
		a := attachment{
			network: uint16(network),
			ingress: h.adoptLink(int(ifindex), ebpf.AttachTCXIngress, h.objects.HbIngress),
			egress:  h.adoptLink(int(ifindex), ebpf.AttachTCXEgress, h.objects.HbEgress),
		}
		h.attached[int(ifindex)] = a
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("heartbeat: read the pinned interfaces: %w", err)
	}
	return h.dropDead()
}

// adoptLink is nil if there is none that still holds on to its interface.
func (h *Heartbeat) adoptLink(ifindex int, hook ebpf.AttachType, p *ebpf.Program) link.Link {
	path := h.pins.link(ifindex, hook)
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return nil
	}
	if holds(l, ifindex) && l.Update(p) == nil {
		return l
	}
	_, _ = l.Unpin(), l.Close() // a link to nothing: there is nothing to lose
	return nil
}

func (h *Heartbeat) dropDead() error {
	var errs []error
	for ifindex, a := range h.attached {
		if !a.lives(ifindex) {
			errs = append(errs, h.detach(ifindex))
		}
	}
	return errors.Join(errs...)
}
