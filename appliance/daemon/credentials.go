package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lunar/appliance/api"
)

// The credentials of systemd by which a new node joins a cluster (systemd.exec(5), LoadCredential=).
const (
	joinAddress = "lunar.join-address"
	joinToken   = "lunar.join-token"
)

// joinAgain is how long a node waits that did not reach the cluster which it is to join.
const joinAgain = 5 * time.Second

// maxCredential bounds what is read of a credential.
const maxCredential = 4096

// joinByCredential takes a node that is in no cluster and has nothing of its own into the one that its credentials name. It
// returns when that is done, is refused, or ctx ends; why it is not done yet stands in the status.
func (n *Node) joinByCredential(ctx context.Context) {
	r, err := joinCredentials(os.Getenv("CREDENTIALS_DIRECTORY"))
	if err != nil {
		n.log.Error("this node does not join by its credentials", "error", err)
		n.tellJoining("ALARM: it joins no cluster: " + err.Error())
		return
	}
	if r.Address == "" || n.db.InCluster() != "" || len(n.sortedVolumes())+n.targetCount() > 0 {
		return
	}
	n.tellJoining("joining the cluster of " + r.Address)
	for {
		_, err := n.JoinCluster(ctx, r)
		code := api.CodeOf(err)
		if err == nil || code == api.Exists {
			n.log.Info("this node has joined a cluster by its credentials", "address", r.Address)
			n.joining.Store(nil)
			return
		}
		if ctx.Err() != nil {
			return
		}
		n.log.Warn("this node has not joined the cluster yet", "address", r.Address, "error", err)
		if code == api.Invalid || code == api.Refused {
			n.tellJoining(fmt.Sprintf("ALARM: the cluster of %s refuses this node: %v; make a new token there, and `lunarctl cluster join` here", r.Address, err))
			return
		}
		n.tellJoining(fmt.Sprintf("joining the cluster of %s: %v", r.Address, err))
		select {
		case <-time.After(joinAgain):
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) tellJoining(text string) { n.joining.Store(&text) }

// joinCredentials reads the credentials below dir; none are no error, one without the other is.
func joinCredentials(dir string) (r api.Join, err error) {
	if dir == "" {
		return r, nil
	}
	address, errA := credential(dir, joinAddress)
	token, errT := credential(dir, joinToken)
	switch {
	case errA != nil || errT != nil:
		return r, errors.Join(errA, errT)
	case address != "" && token == "":
		return r, fmt.Errorf("there is a credential %s, and none %s", joinAddress, joinToken)
	}
	return api.Join{Address: address, Token: token}, nil
}

func credential(dir, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil && len(text) > maxCredential {
		err = fmt.Errorf("more than %d bytes", maxCredential)
	}
	if err != nil {
		return "", fmt.Errorf("credential %s: %w", name, err)
	}
	return strings.TrimSpace(string(text)), nil
}
