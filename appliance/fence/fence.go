package fence

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"lunar/datapath/device"
)

// Method is how a volume's nodes are fenced.
type Method string

// Methods, the strongest first.
const (
	Reservations Method = "reservations"
	Agent        Method = "agent"
	Lease        Method = "lease"
)

// Errors of this package.
var (
	// ErrFenced: this incarnation of this node was fenced. It must stop all I/O to the volume at once.
	ErrFenced = errors.New("this node was fenced")
	// ErrNotAdmitted: the cluster does not count this incarnation of the node among its members.
	ErrNotAdmitted = errors.New("this node is not admitted")
	// ErrForeign: the LUN bears reservations of another cluster or of other software.
	ErrForeign = errors.New("the LUN is reserved by others")
	// ErrUnfenced: the device has no reservations, and no other method was chosen.
	ErrUnfenced = errors.New("the device cannot be fenced")
	// ErrPathUnregistered: a path has no registration and cannot get one now.
	ErrPathUnregistered = errors.New("path is not registered")
)

// Node is one incarnation of a node.
type Node struct {
	Name        string // as agents and messages name it
	Number      uint16 // unique in the cluster, never used again
	Incarnation uint32 // rises with each start of the node's daemon
}

// String is the name and the incarnation.
func (n Node) String() string { return fmt.Sprintf("%s (incarnation %d)", n.Name, n.Incarnation) }

// ClusterHash is the cluster's part of each key.
func ClusterHash(clusterID string) uint16 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(clusterID)) // never fails
	sum := h.Sum32()
	return uint16(sum>>16) ^ uint16(sum)
}

// Victim is whom to fence: this incarnation of the node and all before it. The caller has evicted it: from
// now on Admission says no to it, and its lease is not renewed.
type Victim struct {
	Node
	// Silent is how much of its lease's TTL the victim has used up: by its own deadline it acts for no longer than
	// TTL less Silent from now. 0 is always safe; negative for a victim with a longer TTL.
	Silent time.Duration
}

// Proof says that, and how, a victim was fenced.
type Proof struct {
	Volume     string
	Victim     Node
	Method     Method
	At         time.Time
	Took       time.Duration
	Generation uint32 // of the LUN's registrations; with Reservations
	Detail     string // in words
}

// Admission asks the cluster, linearizably, whether it counts this incarnation of a node among its members.
type Admission interface {
	Admitted(ctx context.Context, n Node) (bool, error)
}

// LUN is the reservations of a device; *device.Reservations has it.
type LUN interface {
	Rescan() (added []string, err error)
	Register(ctx context.Context, old, key device.ReservationKey) (device.PathErrors, error)
	RegisterIgnore(ctx context.Context, key device.ReservationKey) (device.PathErrors, error)
	Unregister(ctx context.Context, key device.ReservationKey) (device.PathErrors, error)
	Reserve(ctx context.Context, key device.ReservationKey, t device.ReservationType) error
	PreemptAbort(ctx context.Context, own, victim device.ReservationKey, t device.ReservationType) error
	ReadKeys(ctx context.Context) (device.Registrations, error)
	ReadReservation(ctx context.Context) (device.Reservation, error)
	Capabilities(ctx context.Context) (device.ReservationCapabilities, error)
}

// method is what a Fencer does by one of the Methods.
type method interface {
	admit(ctx context.Context) error
	fence(ctx context.Context, v Victim) (Proof, error)
	check(ctx context.Context) error
	paths(ctx context.Context, idle bool) error
	sweep(ctx context.Context, members []Node) ([]device.ReservationKey, error)
	leave(ctx context.Context, eject bool) error
	describe() string
}

// nothing is what agent and lease have to do besides fencing.
type nothing struct{}

func (nothing) admit(context.Context) error                                    { return nil }
func (nothing) check(context.Context) error                                    { return nil }
func (nothing) paths(context.Context, bool) error                              { return nil }
func (nothing) leave(context.Context, bool) error                              { return nil }
func (nothing) sweep(context.Context, []Node) ([]device.ReservationKey, error) { return nil, nil }
