package guest

import (
	"context"
	"fmt"
	"net"
	"strconv"
)

// Target is a running iSCSI target with thin LUNs from 1 on.
type Target interface {
	Portal() string // HOST:PORT as the guest reaches it
	IQN() string
	Resize(ctx context.Context, lun int, bytes int64) error
	Close() // ends what the lab could not end in order; the lab ends the rest
}

// targetIQN is the name that every target under test is given.
const targetIQN = "iqn.2026-01.test.target:guest"

// onHost is a target on the host's loopback.
type onHost struct{ port int }

// Portal has the host's loopback as a guest on QEMU's user network sees it.
func (t onHost) Portal() string { return net.JoinHostPort("10.0.2.2", strconv.Itoa(t.port)) }

// IQN is targetIQN.
func (t onHost) IQN() string { return targetIQN }

// URL is how QEMU on the host reaches a LUN of a target on the host's loopback.
func URL(t Target, lun int) string {
	_, port, _ := net.SplitHostPort(t.Portal()) // always HOST:PORT
	return fmt.Sprintf("iscsi://127.0.0.1:%s/%s/%d", port, t.IQN(), lun)
}
