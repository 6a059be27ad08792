package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// newID returns 64 random bits in hex; rand.Read never fails.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Volumes lists the volumes, ordered by name.
func (db *DB) Volumes(ctx context.Context) ([]Volume, error) {
	records, _, err := list[Volume](ctx, db, volumeKeys)
	if err != nil {
		return nil, fmt.Errorf("cluster: list volumes: %w", err)
	}
	volumes := values(records)
	slices.SortFunc(volumes, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return volumes, nil
}

// Volume reads one volume's record.
func (db *DB) Volume(ctx context.Context, id string) (Volume, error) {
	r, err := get[Volume](ctx, db, volumeKeys+id)
	if err != nil {
		return Volume{}, fmt.Errorf("cluster: volume %s: %w", id, err)
	}
	return r.value, nil
}

// AddVolume stores a new volume; ID and Created are set here. ErrExists: its name or its WWID is taken.
func (db *DB) AddVolume(ctx context.Context, v Volume) (Volume, error) {
	v.ID, v.Created = newID(), time.Now().UTC()
	record, err := put(volumeKeys+v.ID, &v)
	if err != nil {
		return v, fmt.Errorf("cluster: add volume: %w", err)
	}
	name, wwid := nameKeys+v.Name, wwidKeys+v.WWID
	if err := db.refuseGrowth([]clientv3.Op{clientv3.OpPut(name, v.ID)}); err != nil {
		return v, fmt.Errorf("cluster: add volume: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := db.client.Txn(ctx).If(absent(name), absent(wwid)).
		Then(record, clientv3.OpPut(name, v.ID), clientv3.OpPut(wwid, v.ID)).
		Else(clientv3.OpGet(name)).Commit()
	switch {
	case err != nil:
		return v, fmt.Errorf("cluster: add volume: %w", unavailable(err))
	case resp.Succeeded:
		return v, nil
	case len(resp.Responses[0].GetResponseRange().Kvs) > 0:
		return v, fmt.Errorf("cluster: add volume: a volume named %q %w", v.Name, ErrExists)
	}
	return v, fmt.Errorf("cluster: add volume: a volume on LUN %s %w", v.WWID, ErrExists)
}

// UpdateVolume changes a volume's record; change may run several times and must not touch ID,
// Name or WWID.
func (db *DB) UpdateVolume(ctx context.Context, id string, change func(*Volume) error) (Volume, error) {
	v, err := update(ctx, db, volumeKeys+id, func(v *Volume) ([]clientv3.Cmp, error) { return nil, change(v) })
	if err != nil {
		return v, fmt.Errorf("cluster: update volume %s: %w", id, err)
	}
	return v, nil
}

// RenameVolume gives a volume another name. ErrExists: the name is taken.
func (db *DB) RenameVolume(ctx context.Context, id, name string) error {
	err := retry(func() (bool, error) {
		r, err := get[Volume](ctx, db, volumeKeys+id)
		if err != nil || r.value.Name == name {
			return true, err
		}
		old := r.value.Name
		r.value.Name = name
		op, err := put(r.key, &r.value)
		if err != nil {
			return false, err
		}
		if err := db.nameFree(ctx, name); err != nil {
			return false, err
		}
		return db.commit(ctx, []clientv3.Cmp{r.unchanged(), absent(nameKeys + name)},
			op, clientv3.OpDelete(nameKeys+old), clientv3.OpPut(nameKeys+name, id))
	})
	if err != nil {
		return fmt.Errorf("cluster: rename volume: %w", err)
	}
	return nil
}

func (db *DB) nameFree(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := db.client.Get(ctx, nameKeys+name, clientv3.WithCountOnly())
	if err != nil {
		return unavailable(err)
	}
	if resp.Count > 0 {
		return fmt.Errorf("a volume named %q %w", name, ErrExists)
	}
	return nil
}

// RemoveVolume forgets a volume. ErrInUse: a target still maps an image of it.
func (db *DB) RemoveVolume(ctx context.Context, id string) error {
	err := retry(func() (bool, error) {
		r, err := get[Volume](ctx, db, volumeKeys+id)
		if err != nil {
			return false, err
		}
		targets, revision, err := list[Target](ctx, db, targetKeys)
		if err != nil {
			return false, err
		}
		for _, t := range targets {
			if i := slices.IndexFunc(t.value.LUNs, func(l LUN) bool { return l.VolumeID == id }); i >= 0 {
				return false, fmt.Errorf("%w: target %s maps LUN %d to it", ErrInUse, t.value.Name, t.value.LUNs[i].Number)
			}
		}
		return db.commit(ctx, []clientv3.Cmp{r.unchanged(), unchangedSince(targetKeys, revision)},
			clientv3.OpDelete(r.key), clientv3.OpDelete(nameKeys+r.value.Name), clientv3.OpDelete(wwidKeys+r.value.WWID),
			clientv3.OpDelete(seatKeys+id), clientv3.OpDelete(successionKeys+id))
	})
	if err != nil {
		return fmt.Errorf("cluster: remove volume: %w", err)
	}
	return nil
}
