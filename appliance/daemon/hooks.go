package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/hook"
)

// hookFolder is where hooks that have begun are recorded, in the state directory.
const hookFolder = "hooks"

// hooksAtOnce bounds the hooks of one snapshot that begin or end side by side.
const hooksAtOnce = 16

// Hook implements server.Hooks.
func (n *Node) Hook(ctx context.Context, volume, path string) (api.Hook, error) {
	v, err := n.volume(volume)
	if err != nil {
		return api.Hook{}, err
	}
	record, err := n.db.Volume(ctx, v.id)
	if err != nil {
		return api.Hook{}, refusal(err)
	}
	h, ok := record.Hooks[path]
	if !ok {
		return api.Hook{}, api.Errorf(api.NotFound, "image %s/%s has no hook", volume, path).
			WithHint("lunarctl image hook %s/%s --before COMMAND --after COMMAND, or --agent SOCKET, sets one", volume, path)
	}
	return describeHook(volume, path, &h), nil
}

func describeHook(volume, path string, h *cluster.Hook) api.Hook {
	return api.Hook{Image: volume + "/" + path, Node: h.Node, Before: h.Before, After: h.After, Agent: h.Agent, LimitNS: int64(h.Limit)}
}

// SetHook implements server.Hooks.
func (n *Node) SetHook(ctx context.Context, volume, path string, r api.Hook) (api.Hook, error) {
	h := cluster.Hook{Node: r.Node, Before: r.Before, After: r.After, Agent: r.Agent, Limit: time.Duration(r.LimitNS)}
	if h.Limit == 0 {
		h.Limit = hook.DefaultLimit
	}
	if h.Node == "" {
		h.Node = n.name
	}
	if err := specOf(&h).Validate(); err != nil {
		return api.Hook{}, api.Errorf(api.Invalid, "%v", err)
	}
	if h.Node != n.name && !slices.ContainsFunc(n.peers(), func(m cluster.Member) bool { return m.Name == h.Node }) {
		return api.Hook{}, api.Errorf(api.NotFound, "there is no node %q in the cluster", h.Node).WithHint("`lunarctl node list` shows the nodes")
	}
	if _, err := n.Image(ctx, volume, path); err != nil {
		return api.Hook{}, err
	}
	if err := n.updateHooks(ctx, volume, func(v *cluster.Volume) error { return v.SetHook(path, &h) }); err != nil {
		return api.Hook{}, err
	}
	n.note(ctx, cluster.Event{Kind: "image.hook", Volume: volume, Text: fmt.Sprintf("image %s/%s has a hook on node %s around its snapshots", volume, path, h.Node)})
	return describeHook(volume, path, &h), nil
}

// ClearHook implements server.Hooks.
func (n *Node) ClearHook(ctx context.Context, volume, path string) error {
	if _, err := n.Hook(ctx, volume, path); err != nil {
		return err
	}
	if err := n.updateHooks(ctx, volume, func(v *cluster.Volume) error { return v.SetHook(path, nil) }); err != nil {
		return err
	}
	n.note(ctx, cluster.Event{Kind: "image.hook", Volume: volume, Text: fmt.Sprintf("image %s/%s has no hook any more", volume, path)})
	return nil
}

func (n *Node) updateHooks(ctx context.Context, volume string, change func(*cluster.Volume) error) error {
	v, err := n.volume(volume)
	if err != nil {
		return err
	}
	record, err := n.db.UpdateVolume(ctx, v.id, change)
	if err != nil {
		return refusal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	v.record = record
	return nil
}

// hookFollows has an image's hook go where the image goes, unless err says that it stays; to is "" when it is deleted.
func (n *Node) hookFollows(ctx context.Context, v *volumeState, from, to string, err error) error {
	if err != nil {
		return err
	}
	record := n.record(v)
	if _, has := record.Hooks[from]; !has {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseTimeout)
	defer cancel()
	if err := n.updateHooks(ctx, record.Name, func(v *cluster.Volume) error { v.MoveHook(from, to); return nil }); err != nil {
		n.log.Warn("the hook of an image stays where the image was", "volume", record.Name, "image", from, "error", err)
	}
	return nil
}

func specOf(h *cluster.Hook) hook.Spec {
	return hook.Spec{Before: h.Before, After: h.After, Agent: h.Agent, Limit: h.Limit}
}

// quiescence is the hooks of one snapshot.
type quiescence struct {
	node     *Node
	v        *volumeState
	snapshot string
	begun    []*begunHook
}

// begunHook is one image's.
type begunHook struct {
	path string
	hook cluster.Hook
	end  func(ctx context.Context, taken bool) error // nil: it did not begin
}

// quiesced takes a snapshot of images between what their hooks run before and after it, side by side. A hook that fails
// before it, or did not stop its application for as long as take ran, is an error; undo takes back what take made.
// What a hook after it could not do is a warning.
func (n *Node) quiesced(ctx context.Context, v *volumeState, snapshot string, paths []string, take, undo func() error) (ran int, warnings []string, err error) {
	q := &quiescence{node: n, v: v, snapshot: snapshot}
	if err := q.find(ctx, paths); err != nil {
		return 0, nil, err
	}
	if err = q.begin(ctx); err == nil {
		err = take()
	}
	warnings, late := q.finish(ctx, err == nil)
	if err == nil && late != nil {
		err = errors.Join(api.Errorf(api.Failed, "%v", late).WithHint("give the hook more time: lunarctl image hook IMAGE --limit D …"), undo())
	}
	return len(q.begun), warnings, err
}

// find collects the images' hooks.
func (q *quiescence) find(ctx context.Context, paths []string) error {
	record, err := q.node.db.Volume(ctx, q.v.id)
	if err != nil {
		return fmt.Errorf("the images' hooks: %w", err)
	}
	for _, p := range paths {
		if h, ok := record.Hooks[p]; ok {
			q.begun = append(q.begun, &begunHook{path: p, hook: h})
		}
	}
	return nil
}

// each runs fn for all, some side by side.
func (q *quiescence) each(fn func(*begunHook) error) error {
	errs := make([]error, len(q.begun))
	room := make(chan struct{}, hooksAtOnce)
	var all sync.WaitGroup
	for i, b := range q.begun {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			errs[i] = fn(b)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (q *quiescence) begin(ctx context.Context) error {
	err := q.each(func(b *begunHook) (err error) {
		if b.hook.Node == q.node.name {
			b.end, err = q.beginHere(ctx, b)
		} else {
			b.end, err = q.beginThere(ctx, b)
		}
		return err
	})
	if err == nil {
		return nil
	}
	q.node.note(ctx, cluster.Event{Kind: "snapshot.hook", Volume: q.v.name(), Text: fmt.Sprintf("snapshot %s was not taken: %v", q.snapshot, err)})
	return api.Errorf(api.Refused, "%v", err).WithHint("mend the hook, or take the snapshot without: lunarctl snapshot create --no-hooks")
}

func (q *quiescence) beginHere(ctx context.Context, b *begunHook) (func(context.Context, bool) error, error) {
	k, err := q.node.startHook(ctx, q.v, b.path, &b.hook, q.snapshot)
	if err != nil {
		return nil, err
	}
	return k.End, nil
}

func (n *Node) startHook(ctx context.Context, v *volumeState, path string, h *cluster.Hook, snapshot string) (*hook.Keeper, error) {
	volume := v.name()
	return hook.Start(ctx, filepath.Join(n.stateDir, hookFolder), specOf(h), hook.Job{Volume: volume, Image: volume + "/" + path, Snapshot: snapshot})
}

// finish ends what was begun. late: the snapshot is not of what was stopped.
func (q *quiescence) finish(ctx context.Context, taken bool) (warnings []string, late error) {
	var mu sync.Mutex // guards late and warnings
	_ = q.each(func(b *begunHook) error {
		if b.end == nil {
			return nil
		}
		err := b.end(context.WithoutCancel(ctx), taken)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
		case errors.Is(err, hook.ErrLate):
			late = errors.Join(late, fmt.Errorf("image %s: %w", b.path, err))
		default:
			warnings = append(warnings, fmt.Sprintf("image %s, node %s: %v", b.path, b.hook.Node, err))
		}
		return nil
	})
	for _, w := range append(slices.Clone(warnings), lines(late)...) {
		q.node.note(ctx, cluster.Event{Kind: "snapshot.hook", Volume: q.v.name(), Text: fmt.Sprintf("snapshot %s: %s", q.snapshot, w)})
	}
	return warnings, late
}

func lines(err error) []string {
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}

// recoverHooks does what hooks of an earlier daemon have left, which it may have been killed before.
func (n *Node) recoverHooks(ctx context.Context) {
	err := hook.Recover(ctx, filepath.Join(n.stateDir, hookFolder), func(r hook.Recovered) {
		text := fmt.Sprintf("the hook after snapshot %s of image %s has run: the daemon was gone before", r.Job.Snapshot, r.Job.Image)
		if r.Err != nil {
			text = fmt.Sprintf("the hook after snapshot %s of image %s, which the daemon was gone before, has failed: %v", r.Job.Snapshot, r.Job.Image, r.Err)
		}
		n.note(ctx, cluster.Event{Kind: "snapshot.hook", Volume: r.Job.Volume, Text: text})
	})
	if err != nil {
		n.log.Warn("hooks of an earlier daemon", "error", err)
	}
}

// pathHooks is where nodes have each other run hooks.
const pathHooks = "/node/v1/hooks"

// hookAPI runs this node's hooks for snapshots that others take.
func (n *Node) hookAPI(mux *http.ServeMux) {
	mux.HandleFunc("POST "+pathHooks, func(w http.ResponseWriter, r *http.Request) { answerPeer(n, w, r, n.beginHookFor) })
	mux.HandleFunc("POST "+pathHooks+"/{id}/end", func(w http.ResponseWriter, r *http.Request) {
		answerPeer(n, w, r, func(ctx context.Context, o hookOrder) (hookEnd, error) {
			return n.endHookFor(ctx, r.PathValue("id"), o)
		})
	})
}
