package netft

import (
	"context"
	"errors"

	"lunar/netft/network"
)

// Fabric is a running node's cluster network. All methods may be called from any goroutine.
type Fabric struct{}

// Start begins to watch, to send heartbeats and to keep routes, in the network namespace of the calling thread. The
// context bounds the start only.
func Start(_ context.Context, o Options) (*Fabric, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return nil, errors.ErrUnsupported
}

// SetPeers replaces the peers and stores them in the StateFile. The error is that of the file, or names a peer that
// cannot be used; the peers hold all the same, without that one.
func (f *Fabric) SetPeers([]Peer) error { return nil }

// SetSettings replaces what the cluster has recorded of its networks.
func (f *Fabric) SetSettings([]network.Setting) {}

// Interfaces are this node's own.
func (f *Fabric) Interfaces() []network.Interface { return nil }

// Networks are the networks of all nodes known, in the order of the list.
func (f *Fabric) Networks() []network.Network { return nil }

// View is Networks, with the settings to store and the warnings.
func (f *Fabric) View() network.View { return network.View{} }

// Paths tells of every path, sorted by peer, network and family.
func (f *Fabric) Paths() []PathStats { return nil }

// Migration are the names of the networks for live migration to a peer, best first; none if none works.
func (f *Fabric) Migration(uint16) []string { return nil }

// Counters counts what belongs to no path.
func (f *Fabric) Counters() Counters { return Counters{} }

// Method is MethodKernel, or MethodSocket followed by why the kernel does not stamp.
func (f *Fabric) Method() string { return MethodSocket }

// Close stops, takes back the routes and the cluster address, and waits.
func (f *Fabric) Close() error { return nil }
