package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strconv"
	"time"

	"lunar/appliance/fence"
	"lunar/appliance/fence/guard"
	"lunar/datapath/device"
)

// How often the guard's credentials are compared with the cluster's, and how often it is asked to let the deadline pass.
const (
	equipInterval = 5 * time.Second
	disarmPause   = 5 * time.Millisecond
)

// guardLingers is how much longer than a takeover by lease waits a guard answers after its daemon's end: the others may
// have to choose a leader of their database first. A restarted daemon's guard replaces it at once.
const guardLingers = 15 * time.Second

// equip gives the guard what it needs to answer other nodes; was is what it has.
func (m *membership) equip(was guard.Credentials) (guard.Credentials, error) {
	c, err := m.node.db.Credentials()
	if err != nil {
		return was, err
	}
	now := guard.Credentials{
		Address:     net.JoinHostPort(m.node.db.Address(), strconv.Itoa(guard.Port)),
		Certificate: c.Certificate, Key: c.Key, CA: c.CA, Revoked: c.Revoked,
	}
	if reflect.DeepEqual(was, now) {
		return was, nil
	}
	if err := m.guard.Serve(now); err != nil {
		return was, err
	}
	return now, nil
}

// keepEquipped follows renewed and revoked certificates, until ctx ends. Without it takeovers from this node wait
// for longer, and nothing else.
func (m *membership) keepEquipped(ctx context.Context) {
	tick := time.NewTicker(equipInterval)
	defer tick.Stop()
	var has guard.Credentials
	for !m.unguarded.Load() {
		var err error
		if has, err = m.equip(has); err != nil && !m.unguarded.Load() {
			m.node.log.Error("the guard process does not answer other nodes as it should", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// disarm lets the deadline pass when nothing of this node can write any more: its I/O waits, and its volumes are
// unmounted. It tries until they are, or until the session is renewed.
func (m *membership) disarm(ctx context.Context) {
	for ctx.Err() == nil && !m.unguarded.Load() && m.deadline.isOver() {
		was, err := m.guard.Deadline(), m.node.unmounting()
		if err == nil {
			err = m.guard.Disarm()
		}
		if err == nil && m.node.unmounting() != nil { // begun meanwhile
			err = m.guard.Renew(was)
		} else if err == nil {
			m.node.log.Info("the guard lets this node's deadline pass: all its I/O waits, and nothing is mounted")
			return
		}
		if err != nil && !errors.Is(err, guard.ErrRefused) {
			return
		}
		select {
		case <-time.After(disarmPause):
		case <-ctx.Done():
		}
	}
}

// unmounting says which mount is given up by the guard and may be there still.
func (n *Node) unmounting() error {
	for _, v := range n.sortedVolumes() {
		if s := v.seat.Load(); s != nil && s.ending.Load() {
			return fmt.Errorf("%w: volume %s is not unmounted yet", guard.ErrRefused, s.name())
		}
	}
	return nil
}

// isOver tells that I/O is stopped.
func (d *deadline) isOver() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopped
}

// watchDevice tells the guard of a device before the first I/O to it.
func (n *Node) watchDevice(volumeID string, dev *device.Device) error {
	g := n.guardProcess()
	if g == nil {
		return nil
	}
	return g.Watch(volumeID, dev.Path, dev.Fd())
}

// forgetDevice is before it is closed. A guard that still has it only looks at a device for nothing.
func (n *Node) forgetDevice(volumeID string) {
	if g := n.guardProcess(); g != nil {
		if err := g.Forget(volumeID); err != nil {
			n.log.Warn("the guard process does not forget a device", "volume", volumeID, "error", err)
		}
	}
}

// askGuard has the guard of another node end it, and prove that.
func (n *Node) askGuard(ctx context.Context, victim fence.Node) (words string, err error) {
	address, ok := n.addressOf(victim.Name)
	if !ok {
		return "", fmt.Errorf("node %s is no member", victim.Name)
	}
	tls, err := n.db.ClientTLS(victim.Name)
	if err != nil {
		return "", err
	}
	return guard.Ask(ctx, net.JoinHostPort(address, strconv.Itoa(guard.Port)), tls, uint64(victim.Incarnation), "node "+n.name+" fences it")
}

// unmount takes the mount from the guard, which would keep it alive, and ends it; it may be tried again.
func (s *seat) unmount(ctx context.Context, end func(context.Context) error) error {
	var released error
	if !s.ending.Swap(true) {
		released = s.unguard()
	}
	err := end(ctx)
	s.ending.Store(err != nil)
	return errors.Join(released, err)
}
