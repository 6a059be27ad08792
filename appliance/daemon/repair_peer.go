package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
)

// pathRepair has a node repair a volume that it coordinates: with the volume's ID, and a line per step as answer.
const pathRepair = "/node/v1/repair/"

// coordinatorElsewhere is the other node that coordinates the volume, if there is one now.
func (n *Node) coordinatorElsewhere(v *volumeState) (cluster.Member, bool) {
	name := v.coordinator()
	if name == "" || name == n.name {
		return cluster.Member{}, false
	}
	peers := n.presentPeers()
	i := slices.IndexFunc(peers, func(m cluster.Member) bool { return m.Name == name })
	if i < 0 {
		return cluster.Member{}, false
	}
	return peers[i], true
}

// answerRepairs serves pathRepair.
func (n *Node) answerRepairs(mux *http.ServeMux) {
	mux.HandleFunc("POST "+pathRepair+"{id}", func(w http.ResponseWriter, r *http.Request) {
		var in api.Repair
		v := n.volumeByID(r.PathValue("id"))
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxBody)).Decode(&in); err != nil || v == nil {
			n.tell(w, nil, api.Errorf(api.Invalid, "node %s does not repair that volume: %v", n.name, err))
			return
		}
		lines := json.NewEncoder(w)
		tell := func(s api.RepairStep) error {
			if err := lines.Encode(s); err != nil {
				return err
			}
			return http.NewResponseController(w).Flush()
		}
		last := api.RepairStep{Phase: "done"}
		result, err := n.repairHere(r.Context(), v, in, tell)
		if last.Result = &result; err != nil {
			last = api.RepairStep{Phase: "failed"}
			if !errors.As(err, &last.Error) {
				last.Error = api.Errorf(api.Failed, "%v", err)
			}
		}
		_ = tell(last)
	})
}

// repairThere has another node do it, and hands its steps on.
func (n *Node) repairThere(ctx context.Context, peer cluster.Member, v *volumeState, r api.Repair, tell func(api.RepairStep) error) (api.RepairResult, error) {
	resp, err := n.postPeer(ctx, peer, pathRepair+url.PathEscape(v.id), r)
	if err != nil {
		return api.RepairResult{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return api.RepairResult{}, readPeer(peer.Name, resp, nil)
	}
	last, err := api.ReadRepair(resp.Body, tell)
	switch {
	case err != nil:
		return api.RepairResult{}, api.Errorf(api.Failed, "node %s does not say how the repair went: %v", peer.Name, err).
			WithHint("`lunarctl log --volume %s` tells it; a repair that was cut off is ended by the next coordinator", v.name())
	case last.Error != nil:
		return api.RepairResult{}, last.Error
	}
	return *last.Result, nil
}

// postPeer asks one node for an answer that is read as it comes; the caller closes its body.
func (n *Node) postPeer(ctx context.Context, peer cluster.Member, path string, in any) (*http.Response, error) {
	security, err := n.db.ClientTLS(peer.Name)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	address := "https://" + net.JoinHostPort(peer.Address, strconv.Itoa(cluster.NodePort)) + path
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: security, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", peer.Name, err)
	}
	return resp, nil
}
