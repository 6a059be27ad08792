package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// MaxLUNs bounds a target's map: REPORT LUNS with flat addressing reaches farther, initiators do not.
const MaxLUNs = 256

// MaxAllow bounds a target's list of initiators.
const MaxAllow = 1024

// Targets lists the targets, ordered by name.
func (db *DB) Targets(ctx context.Context) ([]Target, error) {
	records, _, err := list[Target](ctx, db, targetKeys)
	if err != nil {
		return nil, fmt.Errorf("cluster: list targets: %w", err)
	}
	return values(records), nil
}

// Target reads one target.
func (db *DB) Target(ctx context.Context, name string) (Target, error) {
	r, err := get[Target](ctx, db, targetKeys+name)
	if err != nil {
		return Target{}, fmt.Errorf("cluster: target %s: %w", name, err)
	}
	return r.value, nil
}

// CreateTarget stores an empty target. ErrExists: the name is taken.
func (db *DB) CreateTarget(ctx context.Context, name string) (Target, error) {
	t := Target{Name: name, Created: time.Now().UTC()}
	op, err := put(targetKeys+name, &t)
	if err != nil {
		return t, fmt.Errorf("cluster: create target: %w", err)
	}
	ok, err := db.commit(ctx, []clientv3.Cmp{absent(targetKeys + name)}, op)
	if err == nil && !ok {
		err = ErrExists
	}
	if err != nil {
		return t, fmt.Errorf("cluster: create target %s: %w", name, err)
	}
	return t, nil
}

// UpdateTarget changes a target's access rules; change may run several times and must leave Name
// and LUNs as they are.
func (db *DB) UpdateTarget(ctx context.Context, name string, change func(*Target) error) (Target, error) {
	t, err := update(ctx, db, targetKeys+name, func(t *Target) ([]clientv3.Cmp, error) {
		if err := change(t); err != nil {
			return nil, err
		}
		if len(t.Allow) > MaxAllow {
			return nil, fmt.Errorf("%w: at most %d initiators", ErrFull, MaxAllow)
		}
		return nil, nil
	})
	if err != nil {
		return t, fmt.Errorf("cluster: update target %s: %w", name, err)
	}
	return t, nil
}

// DeleteTarget removes a target with its LUN map.
func (db *DB) DeleteTarget(ctx context.Context, name string) error {
	ok, err := db.commit(ctx, []clientv3.Cmp{present(targetKeys + name)}, clientv3.OpDelete(targetKeys+name))
	if err == nil && !ok {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("cluster: delete target %s: %w", name, err)
	}
	return nil
}

// Map adds an image to a target's LUN map. Its identity is made now, unless another LUN maps the
// image already: then it is one disk with several paths. A negative number means the lowest free
// one. ErrExists: the number is taken. ErrNotFound: no such target or volume.
func (db *DB) Map(ctx context.Context, name, volumeID, path string, number int) (LUN, error) {
	lun := LUN{VolumeID: volumeID, Path: path}
	err := retry(func() (bool, error) {
		targets, revision, err := list[Target](ctx, db, targetKeys)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(targets, func(r record[Target]) bool { return r.value.Name == name })
		if i < 0 {
			return false, ErrNotFound
		}
		if err := db.volumeExists(ctx, volumeID); err != nil {
			return false, err
		}
		lun.NAA, lun.Serial = identity(targets, volumeID, path)
		if lun.Number, err = targets[i].value.insert(lun, number); err != nil {
			return false, err
		}
		op, err := put(targets[i].key, &targets[i].value)
		if err != nil {
			return false, err
		}
		return db.commit(ctx, []clientv3.Cmp{targets[i].unchanged(), unchangedSince(targetKeys, revision), present(volumeKeys + volumeID)}, op)
	})
	if err != nil {
		return lun, fmt.Errorf("cluster: map in target %s: %w", name, err)
	}
	return lun, nil
}

func (db *DB) volumeExists(ctx context.Context, id string) error {
	if _, err := get[Volume](ctx, db, volumeKeys+id); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}

// identity is the NAA designator and serial number under which an image is mapped, new ones if it
// is not. NAA 3h is locally assigned: it needs no company identifier.
func identity(targets []record[Target], volumeID, path string) (naa, serial string) {
	for _, t := range targets {
		for _, l := range t.value.LUNs {
			if l.VolumeID == volumeID && l.Path == path {
				return l.NAA, l.Serial
			}
		}
	}
	return "3" + newID()[1:], newID()
}

func (t *Target) insert(lun LUN, number int) (uint16, error) {
	if number < 0 {
		number = int(t.freeLUN())
	}
	if number >= MaxLUNs || len(t.LUNs) >= MaxLUNs {
		return 0, fmt.Errorf("%w: LUN numbers go from 0 to %d", ErrFull, MaxLUNs-1)
	}
	lun.Number = uint16(number)
	i, taken := slices.BinarySearchFunc(t.LUNs, lun.Number, compareLUN)
	if taken {
		return 0, fmt.Errorf("LUN %d %w", number, ErrExists)
	}
	t.LUNs = slices.Insert(t.LUNs, i, lun)
	return lun.Number, nil
}

// Unmap removes a LUN and returns what it was. ErrNotFound: no such target or LUN.
func (db *DB) Unmap(ctx context.Context, name string, number uint16) (LUN, error) {
	var lun LUN
	_, err := update(ctx, db, targetKeys+name, func(t *Target) ([]clientv3.Cmp, error) {
		i, ok := slices.BinarySearchFunc(t.LUNs, number, compareLUN)
		if !ok {
			return nil, fmt.Errorf("LUN %d: %w", number, ErrNotFound)
		}
		lun = t.LUNs[i]
		t.LUNs = slices.Delete(t.LUNs, i, i+1)
		return nil, nil
	})
	if err != nil {
		return lun, fmt.Errorf("cluster: unmap in target %s: %w", name, err)
	}
	return lun, nil
}
