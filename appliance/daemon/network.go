package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"lunar/appliance/cluster"
	"lunar/appliance/config"
	"lunar/netft"
	"lunar/netft/detector"
	"lunar/netft/link"
	"lunar/netft/network"
)

// The files of the state directory that have to do with networks.
const (
	peersFile       = "peers.json" // the peers as last known, for a start without the database
	incarnationFile = "heartbeat"  // the number of the last start that sent heartbeats
)

// pinFolder holds the heartbeats' programs of this machine's nodes: if lunard dies, the kernel goes on answering, so
// that others see a node that lives. Names there have no dots.
const pinFolder = "/sys/fs/bpf/lunar"

// maxInterfaces and maxAddresses bound what a node tells of itself; more of them are of no use to a cluster.
const (
	maxInterfaces = 64
	maxAddresses  = 16
)

// fabric is netft as the cluster database begins and ends it: cluster.Network. It is down on a node in no cluster.
type fabric struct {
	name    string
	dir     string
	byHand  string // cluster.address
	options config.Network
	log     *slog.Logger

	verdicts chan netft.Verdict // for Node.keepJudging
	changed  chan struct{}      // of one: interfaces or networks have changed

	telling sync.Mutex       // one telling of peers and networks at a time, with what is known then
	latest  cluster.Networks // that were told; telling guards it

	mu     sync.Mutex // guards what follows
	net    *netft.Fabric
	number uint16
}

// maxVerdicts bounds those that wait; what is lost then is in the journal of netft alone.
const maxVerdicts = 1024

func newFabric(c *config.Config, log *slog.Logger) *fabric {
	return &fabric{
		name: c.Node.Name, dir: c.StateDir, byHand: c.Cluster.Address, options: c.Network, log: log,
		verdicts: make(chan netft.Verdict, maxVerdicts), changed: make(chan struct{}, 1),
	}
}

// Address implements cluster.Network.
func (*fabric) Address(id string, number uint16, family cluster.Family) netip.Addr {
	if family == cluster.FamilyIPv4 {
		return network.ClusterAddress4(id, number)
	}
	return network.ClusterAddress(id, number)
}

// IPv6 implements cluster.Network.
func (*fabric) IPv6() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(text)) == "0"
}

// loopback tells that the node's address is one that no other machine reaches: nothing is to be watched there.
func (f *fabric) loopback() bool {
	a, err := netip.ParseAddr(f.byHand)
	return err == nil && a.IsLoopback()
}

// An interface that came up has no link-local address for a while, until the kernel knows that nobody else has it
// (RFC 4862 §5.4). Others must not be told of it without one: their routes to this node would go, and with them the way
// to tell them more.
const (
	settleLimit = 3 * time.Second
	settlePause = 50 * time.Millisecond
)

// Interfaces implements cluster.Network. It waits a little for addresses that are about to come.
func (f *fabric) Interfaces(ctx context.Context) (json.RawMessage, error) {
	for end := time.Now().Add(settleLimit); ; {
		all, err := f.interfaces(ctx)
		if err != nil {
			return nil, err
		}
		if haveLinkLocal(all) || time.Now().After(end) {
			return json.Marshal(publishable(all))
		}
		if err := pause(ctx, settlePause); err != nil {
			return nil, err
		}
	}
}

func haveLinkLocal(all []network.Interface) bool {
	return !slices.ContainsFunc(all, func(i network.Interface) bool {
		return i.Running() && i.MAC != "" && !i.IPv6Disabled && !i.LinkLocal().IsValid()
	})
}

func (f *fabric) interfaces(ctx context.Context) (all []network.Interface, err error) {
	if f.loopback() {
		return []network.Interface{}, nil
	}
	if net := f.running(); net != nil {
		return net.Interfaces(), nil
	}
	w, err := link.Watch(ctx, f.log, func(list []network.Interface) { all = list })
	if err != nil {
		return nil, fmt.Errorf("network interfaces: %w", err)
	}
	w.Close()
	return all, nil
}

// publishable leaves out what has no address, and what is beyond the bounds.
func publishable(all []network.Interface) []network.Interface {
	out := []network.Interface{}
	for _, i := range all {
		if len(i.Addresses)+len(i.Duplicates) == 0 || len(out) == maxInterfaces {
			continue
		}
		i.Addresses = i.Addresses[:min(len(i.Addresses), maxAddresses)]
		i.Duplicates = i.Duplicates[:min(len(i.Duplicates), maxAddresses)]
		out = append(out, i)
	}
	return out
}

func (f *fabric) running() *netft.Fabric {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.net
}

// Up implements cluster.Network.
func (f *fabric) Up(ctx context.Context, s cluster.NetworkStart) error {
	f.telling.Lock()
	f.latest = cluster.Networks{} // another cluster's database counts anew
	f.telling.Unlock()
	if f.loopback() {
		return nil
	}
	incarnation, err := nextIncarnation(filepath.Join(f.dir, incarnationFile), time.Now())
	if err != nil {
		return err
	}
	net, err := netft.Start(ctx, netft.Options{
		Name: s.Node, Number: s.Number, Cluster: s.Address, Key: s.Key, Incarnation: incarnation, Profile: f.profile(),
		Port: uint16(f.options.Port), StateFile: filepath.Join(f.dir, peersFile), BPF: f.options.BPF == config.BPFAuto,
		Pin: filepath.Join(pinFolder, fmt.Sprintf("node%d", s.Number)), Verdict: f.judge, Changed: f.kick, Log: f.log,
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.net, f.number = net, s.Number
	f.mu.Unlock()
	f.kick()
	if s.Peers == nil {
		return nil
	}
	if err := net.SetPeers(peersOf(s.Peers, s.Address.IsValid())); err != nil {
		f.log.Warn("not every node is watched", "error", err)
	}
	return nil
}

// Down implements cluster.Network.
func (f *fabric) Down() error {
	f.mu.Lock()
	net := f.net
	f.net = nil
	f.mu.Unlock()
	if net == nil {
		return nil
	}
	return net.Close()
}

func (f *fabric) profile() detector.Profile {
	var p detector.Profile
	p.Period, p.Missed = f.options.Heartbeats()
	return p.WithDefaults()
}

// judge never blocks.
func (f *fabric) judge(v netft.Verdict) {
	select {
	case f.verdicts <- v:
	default:
		f.log.Error("a verdict was lost: too many wait", "peer", v.Peer, "verdict", v.Kind)
	}
}

// kick never blocks.
func (f *fabric) kick() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// peersOf reads what other nodes told of themselves; what cannot be read leaves a peer without interfaces. given tells
// that the cluster gave the addresses: only to such are there routes of ours.
func peersOf(all []cluster.NetworkPeer, given bool) []netft.Peer {
	var out []netft.Peer
	for _, p := range all {
		peer := netft.Peer{Name: p.Name, Number: p.Number}
		if a, err := netip.ParseAddr(p.Address); err == nil && given {
			peer.Cluster = a
		}
		if len(p.Interfaces) > 0 && json.Unmarshal(p.Interfaces, &peer.Interfaces) != nil {
			peer.Interfaces = nil
		}
		out = append(out, peer)
	}
	return out
}

// nextIncarnation is higher than each one before: the time, or one more than the last if the clock was set back. It
// is on disk when the call returns.
func nextIncarnation(path string, now time.Time) (uint64, error) {
	next := uint64(max(now.UnixNano(), 1))
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if last, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63); err == nil {
		next = max(next, last+1)
	}
	return next, storeSynced(path, []byte(strconv.FormatUint(next, 10)+"\n"))
}

// storeSynced replaces a file so that a crash leaves the old or the new content.
func storeSynced(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
