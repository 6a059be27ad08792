package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/layout/protocol"
)

// on runs an image call on a volume that is on line; the volume stays so until call returns.
func (n *Node) on(volume string, call func(v *volumeState, p *parts) error) error {
	v, err := n.volume(volume)
	if err != nil {
		return err
	}
	p, release := v.borrow()
	if p == nil {
		return api.Errorf(api.Unavailable, "volume %s is not available: %s", volume, v.why())
	}
	defer release()
	return refusal(call(v, p))
}

func (n *Node) imageOf(v *volumeState, s protocol.Stat) api.Image {
	r := n.record(v)
	return api.Image{
		Volume: r.Name, Path: s.Path, Size: s.Size, Allocated: s.Used,
		Modified: time.Unix(s.ModTime, 0).UTC(), Mapped: n.mappings(unitKey{r.ID, s.Path}),
	}
}

// Images implements server.Images; a volume that is not on line has none in the list of all.
func (n *Node) Images(ctx context.Context, volume string) ([]api.Image, error) {
	return listed(ctx, n, volume, n.imagesOn)
}

// listed is what on lists of a volume, or of all volumes that are on line when none is named.
func listed[T any](ctx context.Context, n *Node, volume string, on func(ctx context.Context, volume string) ([]T, error)) ([]T, error) {
	if volume != "" {
		return on(ctx, volume)
	}
	out := []T{}
	for _, v := range n.sortedVolumes() {
		some, err := on(ctx, n.record(v).Name)
		if err != nil && api.CodeOf(err) != api.Unavailable {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

func (n *Node) imagesOn(ctx context.Context, volume string) ([]api.Image, error) {
	out := []api.Image{}
	err := n.on(volume, func(v *volumeState, p *parts) error {
		stats, err := p.vol.List(ctx)
		for _, s := range stats {
			if !reserved(s.Path) {
				out = append(out, n.imageOf(v, s))
			}
		}
		return err
	})
	slices.SortFunc(out, func(a, b api.Image) int { return cmp.Compare(a.Path, b.Path) })
	return out, err
}

// Image implements server.Images.
func (n *Node) Image(ctx context.Context, volume, path string) (out api.Image, err error) {
	err = n.on(volume, func(v *volumeState, p *parts) error {
		s, err := p.vol.Stat(ctx, path)
		out = n.imageOf(v, s)
		return err
	})
	return out, err
}

// CreateImage implements server.Images.
func (n *Node) CreateImage(ctx context.Context, r api.CreateImage) (api.Image, error) {
	volume, path, err := api.SplitImage(r.Image)
	if err != nil {
		return api.Image{}, err
	}
	if err := errors.Join(sized(&r), unreserved(volume, path)); err != nil {
		return api.Image{}, refusal(err)
	}
	build := func(_ *volumeState, p *parts) error {
		job := n.jobs.begin("image.create", r.Image, r.Size)
		defer n.jobs.end(job)
		return p.vol.Create(ctx, path, protocol.CreateOptions{Size: r.Size, Thick: r.Thick, Eager: r.Thick, Progress: job.done.Store})
	}
	if r.From != "" {
		from, source, err := api.SplitImage(r.From)
		if err != nil {
			return api.Image{}, err
		}
		if from != volume {
			return api.Image{}, api.Errorf(api.Invalid, "a clone shares its blocks with %s: it has to be on volume %s too", r.From, from)
		}
		build = func(_ *volumeState, p *parts) error { return p.clone(ctx, source, path) }
	}
	if err := n.on(volume, build); err != nil {
		return api.Image{}, err
	}
	n.note(ctx, cluster.Event{Kind: "image.create", Volume: volume, Text: fmt.Sprintf("image %s was made", r.Image)})
	return n.Image(ctx, volume, path)
}

// ChangeImage implements server.Images.
func (n *Node) ChangeImage(ctx context.Context, volume, path string, r api.ChangeImage) (api.Image, error) {
	switch {
	case (r.Name == "") == (r.Size == 0):
		return api.Image{}, api.Errorf(api.Invalid, "either a new name or a new size has to be given")
	case r.Name != "":
		return n.renameImage(ctx, volume, path, r.Name)
	}
	return n.resizeImage(ctx, volume, path, r)
}

func (n *Node) resizeImage(ctx context.Context, volume, path string, r api.ChangeImage) (api.Image, error) {
	var before int64
	err := n.on(volume, func(_ *volumeState, p *parts) error {
		s, err := p.vol.Stat(ctx, path)
		if err != nil {
			return err
		}
		before = s.Size
		return p.vol.Resize(ctx, path, r.Size, r.Force)
	})
	if err != nil {
		return api.Image{}, err
	}
	n.capacityChanged(volume, path)
	n.note(ctx, cluster.Event{Kind: "image.resize", Volume: volume,
		Text: fmt.Sprintf("image %s/%s was resized from %s to %s", volume, path, api.FormatSize(before), api.FormatSize(r.Size))})
	return n.Image(ctx, volume, path)
}

func (n *Node) renameImage(ctx context.Context, volume, path, name string) (api.Image, error) {
	toVolume, to, err := api.SplitImage(name)
	if err != nil {
		return api.Image{}, err
	}
	if err := unreserved(toVolume, to); err != nil {
		return api.Image{}, err
	}
	if toVolume != volume {
		return api.Image{}, api.Errorf(api.Invalid, "an image cannot move from volume %s to %s by a new name", volume, toVolume)
	}
	if err := n.unsuspended(ctx, volume); err != nil {
		return api.Image{}, refusal(err)
	}
	end, err := n.begin(ctx)
	if err != nil {
		return api.Image{}, err
	}
	defer end()
	err = n.on(volume, func(v *volumeState, p *parts) error {
		if err := n.notExported(v, path); err != nil {
			return err
		}
		return n.hookFollows(ctx, v, path, to, p.vol.Rename(ctx, path, to))
	})
	if err != nil {
		return api.Image{}, err
	}
	n.note(ctx, cluster.Event{Kind: "image.rename", Volume: volume, Text: fmt.Sprintf("image %s/%s is now %s", volume, path, name)})
	return n.Image(ctx, volume, to)
}

// notExported refuses an image that a LUN maps. The caller holds Node.changes.
func (n *Node) notExported(v *volumeState, path string) error {
	m := n.mappings(unitKey{v.id, path})
	if len(m) == 0 {
		return nil
	}
	return api.Errorf(api.Busy, "image %s/%s is exported as LUN %d of %s", v.name(), path, m[0].LUN, m[0].Target).
		WithHint("unmap it first: lunarctl target unmap %s %d", m[0].Target, m[0].LUN)
}

// DeleteImage implements server.Images.
func (n *Node) DeleteImage(ctx context.Context, volume, path string, force bool) error {
	if err := n.unsuspended(ctx, volume); err != nil {
		return refusal(err)
	}
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = n.on(volume, func(v *volumeState, p *parts) error {
		s, err := p.vol.Stat(ctx, path)
		if err != nil {
			return err
		}
		if err := n.notExported(v, path); err != nil {
			return err
		}
		if s.Used > 0 && !force {
			return api.Errorf(api.Refused, "image %s/%s holds %s of data", volume, path, api.FormatSize(s.Used)).
				WithHint("--force deletes it all the same: that data is lost")
		}
		return n.hookFollows(ctx, v, path, "", p.vol.Delete(ctx, path))
	})
	if err != nil {
		return err
	}
	n.note(ctx, cluster.Event{Kind: "image.delete", Volume: volume, Text: fmt.Sprintf("image %s/%s was deleted", volume, path)})
	return nil
}
