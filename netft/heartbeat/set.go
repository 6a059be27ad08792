package heartbeat

import (
	"errors"
	"fmt"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/detector"
)

// Set replaces the interfaces and the paths. What is known of paths that stay is kept. The error names what cannot
// be used; all else is.
func (h *Heart) Set(interfaces []Interface, targets []Target) error {
	h.setting.Lock()
	defer h.setting.Unlock()
	if h.ending.Load() {
		return errors.New("heartbeat: closed")
	}
	var errs []error
	if len(targets) > MaxPaths {
		errs = append(errs, fmt.Errorf("heartbeat: %d paths to watch, and only %d can be: the last ones are left out", len(targets), MaxPaths))
		targets = targets[:MaxPaths]
	}
	errs = append(errs, h.ns.Do(func() error { return errors.Join(h.openSockets(interfaces), h.attach(interfaces)) }))
	h.setPaths(interfaces, targets)
	errs = append(errs, h.tellKernel(targets))
	return errors.Join(errs...)
}

// openSockets opens those that are missing and closes those that are not wanted.
func (h *Heart) openSockets(interfaces []Interface) error {
	wanted := map[door]Interface{}
	for _, i := range interfaces {
		if i.IPv4 {
			wanted[door{i.Index, detector.IPv4}] = i
		}
		if i.IPv6 {
			wanted[door{i.Index, detector.IPv6}] = i
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for at, s := range h.sockets {
		if i, ok := wanted[at]; !ok || i.Name != s.name {
			_ = s.close() // nothing is written that could be lost
			delete(h.sockets, at)
		}
	}
	var errs []error
	for at, i := range wanted {
		if s := h.sockets[at]; s != nil {
			s.network = i.Network
			continue
		}
		s, err := openSocket(at, i.Name, h.o.Port)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.network = i.Network
		h.sockets[at] = s
	}
	return errors.Join(errs...)
}

// attach puts the kernel's programs where they are wanted. One that cannot be there leaves its interface to the sockets.
func (h *Heart) attach(interfaces []Interface) error {
	if h.o.Kernel == nil {
		return nil
	}
	var errs []error
	wanted := map[int]bool{}
	for _, i := range interfaces {
		wanted[i.Index] = true
		if network, there := h.attached[i.Index]; there && network == i.Network {
			continue
		}
		if err := h.o.Kernel.Attach(i.Index, i.Network); err != nil {
			errs = append(errs, err)
			delete(h.attached, i.Index)
			continue
		}
		h.attached[i.Index] = i.Network
	}
	for index := range h.attached {
		if !wanted[index] {
			errs = append(errs, h.o.Kernel.Detach(index))
			delete(h.attached, index)
		}
	}
	return errors.Join(errs...)
}

func (h *Heart) setPaths(interfaces []Interface, targets []Target) {
	names := map[int]Interface{}
	for _, i := range interfaces {
		names[i.Index] = i
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.byPath
	h.paths, h.byPath = nil, make(map[detector.Path]*path, len(targets))
	for _, t := range targets {
		if h.byPath[t.Path] != nil {
			continue
		}
		p := before[t.Path]
		if p == nil {
			p = &path{stamp: kernel.Stamp{Path: kernelPath(t.Path)}, sequence: h.retired[t.Path]}
			delete(h.retired, t.Path)
		}
		p.aim(t, names[t.Interface].Index)
		h.paths = append(h.paths, p)
		h.byPath[t.Path] = p
	}
	h.retire(before)
}

// retire remembers the numbers of paths that are gone: a path that comes back, as after a change of address, goes on
// from there, since its peer takes lower ones for a replay.
func (h *Heart) retire(before map[detector.Path]*path) {
	for at, p := range before {
		if h.byPath[at] != nil {
			continue
		}
		if len(h.retired) >= maxRetired {
			clear(h.retired) // peers catch up after as many heartbeats
		}
		h.retired[at] = p.sequence
	}
}

// tellKernel names the paths of the interfaces on which the kernel stamps.
func (h *Heart) tellKernel(targets []Target) error {
	if h.o.Kernel == nil {
		return nil
	}
	kept := map[kernel.Path]bool{}
	var paths []kernel.Path
	for _, t := range targets {
		p := kernelPath(t.Path)
		if _, attached := h.attached[t.Interface]; attached && !kept[p] {
			kept[p] = true
			paths = append(paths, p)
		}
	}
	if err := h.o.Kernel.SetPaths(paths); err != nil {
		return err
	}
	h.mu.Lock()
	h.kept = kept
	h.mu.Unlock()
	return nil
}
