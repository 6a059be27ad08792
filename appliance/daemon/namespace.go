package daemon

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/namespace"
	"lunar/datapath/layout/protocol"
)

// namespaceTime bounds the wait for the I/O of programs at the end.
const namespaceTime = 20 * time.Second

// openNamespace shows the volumes as files. A node that cannot do so serves all the same.
func (d *Daemon) openNamespace() {
	mount := d.config.NamespaceMount()
	if mount == "" {
		return
	}
	ns, err := namespace.Mount(namespace.Options{
		Mount: mount, Tree: tree{d.node}, Lanes: d.engine.Rings(), Post: d.node.post, Buffers: d.engine.Pool(), Log: d.log,
		Watch: d.watchOnLane,
	})
	if err != nil {
		d.log.Warn("the volumes are not shown as files", "error", err)
		return
	}
	d.namespace = ns
	d.log.Info("the volumes are shown as files", "mount", mount)
}

func (d *Daemon) watchOnLane(lane, fd int, ready func()) (stop func(stopped func()), err error) {
	w, err := d.engine.Ring(lane).Watch(fd, ready)
	if err != nil {
		return nil, err
	}
	return w.Stop, nil
}

func (d *Daemon) closeNamespace(ctx context.Context) error {
	if d.namespace == nil {
		return nil
	}
	ctx, cancel := bounded(ctx, namespaceTime)
	defer cancel()
	return d.namespace.Close(ctx)
}

// tree is a node's volumes as package namespace wants them.
type tree struct{ n *Node }

// Volumes implements namespace.Tree.
func (t tree) Volumes() []namespace.Volume {
	var out []namespace.Volume
	for _, v := range t.n.sortedVolumes() {
		out = append(out, namespace.Volume{ID: v.id, Name: v.name()})
	}
	if len(t.n.heldBackups()) > 0 {
		out = append(out, namespace.Volume{ID: backupTree, Name: backupTree})
	}
	return out
}

// on runs a call on a volume that is on line; the volume stays so until call returns.
func (t tree) on(id string, call func(v *volumeState, p *parts) error) error {
	if id == backupTree {
		return errHeld
	}
	v := t.n.volumeByID(id)
	if v == nil {
		return fmt.Errorf("the volume was ejected: %w", syscall.ENOENT)
	}
	p, release := v.borrow()
	if p == nil {
		return fmt.Errorf("volume %s is not available: %s: %w", v.name(), v.why(), syscall.ENXIO)
	}
	defer release()
	return call(v, p)
}

// List implements namespace.Tree.
func (t tree) List(ctx context.Context, volume string) (out []namespace.File, err error) {
	if volume == backupTree {
		return t.listHeld(ctx)
	}
	err = t.on(volume, func(_ *volumeState, p *parts) error {
		all, err := p.vol.List(ctx)
		for i := range all {
			if !reserved(all[i].Path) {
				out = append(out, fileOf(&all[i]))
			}
		}
		return err
	})
	return out, err
}

func fileOf(s *protocol.Stat) namespace.File {
	return namespace.File{Path: s.Path, ID: uint64(s.ID), Size: s.Size, Used: s.Used, ModTime: time.Unix(s.ModTime, 0)}
}

// Stat implements namespace.Tree.
func (t tree) Stat(ctx context.Context, volume, path string) (out namespace.File, err error) {
	if volume == backupTree {
		return t.statHeld(ctx, path)
	}
	if reserved(path) {
		return out, errUnseen
	}
	err = t.on(volume, func(_ *volumeState, p *parts) error {
		s, err := p.vol.Stat(ctx, path)
		out = fileOf(&s)
		return err
	})
	return out, err
}

// Space implements namespace.Tree.
func (t tree) Space(ctx context.Context, volume string) (out namespace.Space, err error) {
	if volume == backupTree {
		return out, nil
	}
	err = t.on(volume, func(_ *volumeState, p *parts) error {
		s, err := p.vol.Space(ctx)
		out = namespace.Space{Size: s.Size, Free: s.Free}
		return err
	})
	return out, err
}

// Create implements namespace.Tree.
func (t tree) Create(ctx context.Context, volume, path string) error {
	if reserved(path) {
		return errReserved
	}
	return t.on(volume, func(v *volumeState, p *parts) error {
		err := p.vol.Create(ctx, path, protocol.CreateOptions{})
		return t.noted(ctx, v, "image.create", path, "was made", err)
	})
}

// noted records what was done to an image, unless it failed.
func (t tree) noted(ctx context.Context, v *volumeState, kind, path, done string, err error) error {
	if err == nil {
		name := v.name()
		t.n.noteSoon(ctx, cluster.Event{Kind: kind, Volume: name, Text: fmt.Sprintf("image %s/%s %s", name, path, done)})
	}
	return err
}

// Rename implements namespace.Tree.
func (t tree) Rename(ctx context.Context, volume, from, to string) error {
	if reserved(to) {
		return errReserved
	}
	return t.changing(ctx, volume, from, func(v *volumeState, p *parts) error {
		return t.noted(ctx, v, "image.rename", from, "is now "+v.name()+"/"+to, t.n.hookFollows(ctx, v, from, to, p.vol.Rename(ctx, from, to)))
	})
}

// Delete implements namespace.Tree.
func (t tree) Delete(ctx context.Context, volume, path string) error {
	return t.changing(ctx, volume, path, func(v *volumeState, p *parts) error {
		return t.noted(ctx, v, "image.delete", path, "was deleted", t.n.hookFollows(ctx, v, path, "", p.vol.Delete(ctx, path)))
	})
}

// changing runs a change of an image that no LUN maps, also none that is not available now.
func (t tree) changing(ctx context.Context, volume, path string, call func(v *volumeState, p *parts) error) error {
	if err := t.n.unsuspendedID(ctx, volume); err != nil {
		return err
	}
	end, err := t.n.begin(ctx)
	if err != nil {
		return errors.Join(err, syscall.EBUSY)
	}
	defer end()
	return t.on(volume, func(v *volumeState, p *parts) error {
		if err := t.n.notExported(v, path); err != nil {
			return errors.Join(err, syscall.EBUSY)
		}
		return call(v, p)
	})
}

// Resize implements namespace.Tree.
func (t tree) Resize(ctx context.Context, volume, path string, size int64) error {
	err := t.on(volume, func(_ *volumeState, p *parts) error { return p.vol.Resize(ctx, path, size, true) })
	if err != nil {
		return err
	}
	if u := t.n.unit(unitKey{volume, path}); u != nil {
		u.checkSize()
	}
	return nil
}

// Open implements namespace.Tree.
func (t tree) Open(ctx context.Context, volume, path string) (out namespace.Image, err error) {
	if volume == backupTree {
		im, err := t.openHeld(ctx, path)
		if err != nil {
			return nil, err
		}
		return im, nil
	}
	err = t.on(volume, func(_ *volumeState, p *parts) error {
		im, err := p.vol.OpenImage(ctx, path)
		if err == nil {
			out = im
		}
		return err
	})
	return out, err
}

// sized refuses an image without bytes: no LUN can be that.
func sized(r *api.CreateImage) error {
	if r.From == "" && r.Size <= 0 {
		return api.Errorf(api.Invalid, "image %s: bad size: %d: give a multiple of 512", r.Image, r.Size)
	}
	return nil
}
