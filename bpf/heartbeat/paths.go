package heartbeat

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func (p Path) key() (k programPath) {
	k.Peer, k.Network, k.Family = p.Peer, p.Network, uint8(p.Family)
	return k
}

func pathOf(k programPath) Path {
	return Path{Peer: k.Peer, Network: k.Network, Family: Family(k.Family)}
}

// SetPaths names the paths that are stamped, MaxPaths at most; heartbeats on others are counted as Unknown and passed
// on. Paths that were there before keep their stamps.
func (h *Heartbeat) SetPaths(paths []Path) error {
	wanted, err := h.checkPaths(paths)
	if err != nil {
		return err
	}
	h.changing.Lock()
	defer h.changing.Unlock()
	h.mapped.Lock()
	defer h.mapped.Unlock()
	if h.memory.node == nil {
		return ErrClosed
	}
	return errors.Join(h.dropPaths(wanted), h.addPaths(paths))
}

func (h *Heartbeat) checkPaths(paths []Path) (map[Path]bool, error) {
	if len(paths) > MaxPaths {
		return nil, fmt.Errorf("heartbeat: %d paths, at most %d can be watched", len(paths), MaxPaths)
	}
	wanted := make(map[Path]bool, len(paths))
	for _, p := range paths {
		switch {
		case p.Peer == 0 || p.Peer == h.options.Number:
			return nil, fmt.Errorf("heartbeat: node %d is no peer of node %d", p.Peer, h.options.Number)
		case p.Family != IPv4 && p.Family != IPv6:
			return nil, fmt.Errorf("heartbeat: family %d of the path to node %d is neither 4 nor 6", p.Family, p.Peer)
		case wanted[p]:
			return nil, fmt.Errorf("heartbeat: the path to node %d by network %d, IPv%d, is named twice", p.Peer, p.Network, p.Family)
		}
		wanted[p] = true
	}
	return wanted, nil
}

func (h *Heartbeat) dropPaths(wanted map[Path]bool) error {
	var freed []uint32
	for p, slot := range h.slotOf {
		if wanted[p] {
			continue
		}
		if err := h.objects.HbPaths.Delete(p.key()); err != nil {
			return fmt.Errorf("heartbeat: drop the path to node %d: %w", p.Peer, err)
		}
		delete(h.slotOf, p)
		freed = append(freed, slot)
	}
	if freed == nil {
		return nil
	}
	if !waitForKernel() {
		time.Sleep(gracePause)
	}
	for _, slot := range freed {
		h.memory.clear(slot, Path{}, 0)
	}
	h.free = append(h.free, freed...)
	return nil
}

// gracePause is far longer than a program runs, which is a few µs.
const gracePause = 50 * time.Millisecond

// waitForKernel returns when each program that could have found a path before is done: this barrier is a grace period.
// A kernel with nohz_full processors has none, and says false.
func waitForKernel() bool {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
	return errno == 0
}

func (h *Heartbeat) addPaths(paths []Path) error {
	now := Now()
	for _, p := range paths {
		if _, known := h.slotOf[p]; known {
			continue
		}
		slot := h.free[0]
		if err := h.objects.HbHidden.Put(slot, programHidden{}); err != nil {
			return fmt.Errorf("heartbeat: add the path to node %d: %w", p.Peer, err)
		}
		h.memory.clear(slot, p, now)
		h.bound(slot + 1)
		if err := h.objects.HbPaths.Put(p.key(), slot); err != nil {
			return fmt.Errorf("heartbeat: add the path to node %d: %w", p.Peer, err)
		}
		h.free = h.free[1:]
		h.slotOf[p] = slot
	}
	return nil
}

// bound tells the timer how many slots to look at.
func (h *Heartbeat) bound(slots uint32) {
	if slots > atomic.LoadUint32(&h.memory.node.Slots) {
		atomic.StoreUint32(&h.memory.node.Slots, slots)
	}
}

// adoptPaths finds what a daemon before this one left in pinned maps; without, all slots are free.
func (h *Heartbeat) adoptPaths() error {
	var key programPath
	var slot uint32
	used := map[uint32]bool{}
	found := h.objects.HbPaths.Iterate()
	for found.Next(&key, &slot) {
		h.slotOf[pathOf(key)] = slot
		used[slot] = true
	}
	for slot := range uint32(MaxPaths) {
		if !used[slot] {
			h.free = append(h.free, slot)
		}
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("heartbeat: read the pinned paths: %w", err)
	}
	return nil
}
