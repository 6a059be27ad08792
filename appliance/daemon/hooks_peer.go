package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/hook"
)

// maxHooks bounds the hooks that a node runs for other nodes at a time.
const maxHooks = 256

// hookWait is what another node's answer may take beside what its hook's limit bounds.
const hookWait = 15 * time.Second

// hookOrder asks another node for a hook.
type hookOrder struct {
	VolumeID string `json:"volumeId,omitempty"`
	Path     string `json:"path,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	Taken    bool   `json:"taken,omitempty"`
}

type hookBegun struct {
	ID string `json:"id"`
}

// hookEnd is how a hook ended.
type hookEnd struct {
	Late  string `json:"late,omitempty"`
	After string `json:"after,omitempty"`
}

// beginThere has the hook's node begin it. When this node dies, that one ends it by its limit.
func (q *quiescence) beginThere(ctx context.Context, b *begunHook) (func(context.Context, bool) error, error) {
	n := q.node
	peers := n.presentPeers()
	i := slices.IndexFunc(peers, func(m cluster.Member) bool { return m.Name == b.hook.Node })
	if i < 0 {
		return nil, fmt.Errorf("image %s: its hook runs on node %s, which is not there now", b.path, b.hook.Node)
	}
	wait := 2*b.hook.Limit + hookWait
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	begun, err := askPeer[hookBegun](limited, n, peers[i], http.MethodPost, pathHooks, hookOrder{VolumeID: q.v.id, Path: b.path, Snapshot: q.snapshot})
	if err != nil {
		return nil, fmt.Errorf("image %s, node %s: %w", b.path, b.hook.Node, err)
	}
	return func(ctx context.Context, taken bool) error {
		limited, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		end, err := askPeer[hookEnd](limited, n, peers[i], http.MethodPost, pathHooks+"/"+url.PathEscape(begun.ID)+"/end", hookOrder{Taken: taken})
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", hook.ErrLate, err)
		case end.Late != "":
			return fmt.Errorf("%w: %s", hook.ErrLate, end.Late)
		case end.After != "":
			return fmt.Errorf("%w: %s", hook.ErrAfter, end.After)
		}
		return nil
	}, nil
}

// hooks are those that this node runs for others. The zero value is ready.
type hooks struct {
	mu      sync.Mutex // guards what follows
	all     map[string]*hookFor
	number  uint64
	stopped chan struct{} // made with all
	running sync.WaitGroup
}

// hookFor is one of them.
type hookFor struct {
	keeper *hook.Keeper
	order  chan bool
	ended  chan error // has the answer
}

var errManyHooks = api.Errorf(api.Full, "%d hooks run on this node", maxHooks).WithHint("try again")

// add takes care of a hook until it is ended, by order or because nobody orders it.
func (h *hooks) add(ctx context.Context, k *hook.Keeper) (id string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open()
	select {
	case <-h.stopped:
		return "", errors.Join(errStopping, k.Leave())
	default:
	}
	if len(h.all) >= maxHooks {
		return "", errors.Join(errManyHooks, k.Leave())
	}
	h.number++
	id = fmt.Sprint(h.number)
	one := &hookFor{keeper: k, order: make(chan bool), ended: make(chan error, 1)}
	h.all[id] = one
	h.running.Go(func() {
		one.wait(context.WithoutCancel(ctx), h.stopped)
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.all, id)
	})
	return id, nil
}

// open needs mu.
func (h *hooks) open() {
	if h.all == nil {
		h.all, h.stopped = map[string]*hookFor{}, make(chan struct{})
	}
}

func (o *hookFor) wait(ctx context.Context, stopped <-chan struct{}) {
	nobody := time.NewTimer(o.keeper.Limit())
	defer nobody.Stop()
	select {
	case taken := <-o.order:
		o.ended <- o.keeper.End(ctx, taken)
	case <-nobody.C:
		o.ended <- o.keeper.End(ctx, false)
	case <-stopped:
		o.ended <- errors.Join(errStopping, o.keeper.Leave())
	}
}

func (h *hooks) get(id string) *hookFor {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[id]
}

// stop leaves all to their keepers, and lets none in any more.
func (h *hooks) stop() {
	h.mu.Lock()
	h.open()
	select {
	case <-h.stopped:
	default:
		close(h.stopped)
	}
	h.mu.Unlock()
	h.running.Wait()
}

func (n *Node) beginHookFor(ctx context.Context, o hookOrder) (hookBegun, error) {
	v := n.volumeByID(o.VolumeID)
	if v == nil {
		return hookBegun{}, api.Errorf(api.NotFound, "node %s does not know the volume yet", n.name)
	}
	record, err := n.db.Volume(ctx, v.id)
	if err != nil {
		return hookBegun{}, err
	}
	h, ok := record.Hooks[o.Path]
	if !ok || h.Node != n.name {
		return hookBegun{}, api.Errorf(api.NotFound, "node %s has no hook of image %s/%s", n.name, record.Name, o.Path)
	}
	k, err := n.startHook(ctx, v, o.Path, &h, o.Snapshot)
	if err != nil {
		return hookBegun{}, api.Errorf(api.Refused, "%v", err)
	}
	id, err := n.hooks.add(ctx, k)
	return hookBegun{id}, err
}

func (n *Node) endHookFor(ctx context.Context, id string, o hookOrder) (out hookEnd, err error) {
	one := n.hooks.get(id)
	if one == nil {
		return hookEnd{Late: "the hook has ended already"}, nil
	}
	select {
	case one.order <- o.Taken:
	case err := <-one.ended:
		one.ended <- err
		return hookEnd{Late: "the hook has ended already"}, nil
	case <-ctx.Done():
		return out, ctx.Err()
	}
	err = <-one.ended
	switch {
	case errors.Is(err, hook.ErrLate):
		out.Late = err.Error()
	case err != nil:
		out.After = err.Error()
	}
	return out, nil
}
