package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Coordinator is what a Server brings calls to. Its methods block until ctx ends at most, and are safe
// from any goroutine.
type Coordinator interface {
	Hello(ctx context.Context, node protocol.NodeID, incarnation uint64) error
	Acknowledge(ctx context.Context, node protocol.NodeID, epoch uint64) error
	Attach(ctx context.Context, node protocol.NodeID, path string, h protocol.Holder) (protocol.Grant, protocol.HolderID, error)
	Detach(ctx context.Context, call protocol.Call, h protocol.HolderID) error

	CompareAndWrite(ctx context.Context, call protocol.Call, expect, data []byte, off int64, fua bool) (miscompare int, err error)
	Copy(ctx context.Context, to protocol.Call, off int64, from protocol.Call, r layout.Range) error

	Create(ctx context.Context, m protocol.Meta, path string, o protocol.CreateOptions) error
	Delete(ctx context.Context, m protocol.Meta, path string) error
	Rename(ctx context.Context, m protocol.Meta, from, to string) error
	Resize(ctx context.Context, m protocol.Meta, path string, size int64, force bool) error
	Clone(ctx context.Context, m protocol.Meta, from, to string) error
	List(ctx context.Context) ([]protocol.Stat, error)
	Stat(ctx context.Context, path string) (protocol.Stat, error)
	Space(ctx context.Context) (protocol.Space, error)

	Snapshot(ctx context.Context, m protocol.Meta, name string, paths []string) (hold time.Duration, err error)
	Snapshots(ctx context.Context) ([]protocol.Snapshot, error)
	DeleteSnapshot(ctx context.Context, m protocol.Meta, name, path string) error
	CloneSnapshot(ctx context.Context, m protocol.Meta, name, path, to string) error
	Revert(ctx context.Context, m protocol.Meta, name, path string) error
	Diff(ctx context.Context, path, from, to string) ([]layout.Range, error)
}

// DataPath carries redirected I/O to a volume's coordinator, as volume.Coordinator describes it.
type DataPath interface {
	Read(ctx context.Context, call protocol.Call, p []byte, off int64) error
	Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error
	Flush(ctx context.Context, call protocol.Call) error
	Unmap(ctx context.Context, call protocol.Call, ranges []layout.Range) error
}

// ServerOptions sets a Server up.
type ServerOptions struct {
	// TLS has this node's certificate, the cluster's CA in ClientCAs, and ClientAuth
	// tls.RequireAndVerifyClientCert, or VerifyConnection that does this. The common name of a peer's certificate is its NodeID.
	TLS *tls.Config
	// Lookup finds the coordinator of a volume here. ErrStale: it is another epoch's, or not here;
	// ErrUnreachable: not yet. It does not block.
	Lookup func(volume string, epoch uint64) (Coordinator, error)
	// Sentinels are errors that stay themselves on the other side, for errors.Is; by their words.
	// Errnos, protocol.ErrStale and protocol.ErrUnreachable do so always.
	Sentinels []error
	Limits    Limits
	Timing    Timing
	Log       *slog.Logger // default slog.Default()
}

// Validate tells what is wrong with o.
func (o ServerOptions) Validate() error {
	switch {
	case o.Lookup == nil:
		return fmt.Errorf("wire: ServerOptions.Lookup is missing: %w", unix.EINVAL)
	case o.TLS == nil || !verifiesClients(o.TLS):
		return fmt.Errorf("wire: ServerOptions.TLS has to require certificates of the cluster's CA from clients: %w", unix.EINVAL)
	}
	if err := o.Limits.validate(); err != nil {
		return err
	}
	return o.Timing.validate()
}

// verifiesClients tells that only who has a certificate of the cluster's CA gets in.
func verifiesClients(c *tls.Config) bool {
	return c.ClientAuth == tls.RequireAndVerifyClientCert && c.ClientCAs != nil ||
		c.ClientAuth == tls.RequireAnyClientCert && c.VerifyConnection != nil
}

// ClientOptions sets a Client up.
type ClientOptions struct {
	Address string // HOST:PORT of the coordinator's Server
	// TLS has this node's certificate, the cluster's CA in RootCAs, and the ServerName to expect.
	TLS         *tls.Config
	Volume      string
	Epoch       uint64
	Node        protocol.NodeID // the common name of TLS's certificate
	Incarnation uint64          // greater with each start of this node's process; not 0
	Data        DataPath        // its errors pass through
	Sentinels   []error         // as in ServerOptions
	// Dial opens a connection to Address; default TCP with TCP_USER_TIMEOUT.
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Limits Limits
	Timing Timing
	Log    *slog.Logger // default slog.Default()
}

// Validate tells what is wrong with o.
func (o ClientOptions) Validate() error {
	switch {
	case o.Address == "" || o.Volume == "" || o.Epoch == 0 || o.Node == "" || o.Incarnation == 0:
		return fmt.Errorf("wire: ClientOptions need Address, Volume, Epoch, Node and Incarnation: %w", unix.EINVAL)
	case o.Data == nil:
		return fmt.Errorf("wire: ClientOptions.Data is missing: %w", unix.EINVAL)
	case o.TLS == nil || o.TLS.RootCAs == nil || len(o.TLS.Certificates) == 0 && o.TLS.GetClientCertificate == nil:
		return fmt.Errorf("wire: ClientOptions.TLS needs the cluster's CA and this node's certificate: %w", unix.EINVAL)
	}
	if err := o.Limits.validate(); err != nil {
		return err
	}
	return o.Timing.validate()
}
