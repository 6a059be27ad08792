package daemon

import (
	"context"
	"errors"
	"io/fs"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/fence"
	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/volume"
	"lunar/iscsi"
)

// codes says which kind of refusal each part's sentinel is, the most telling first.
var codes = []struct {
	err  error
	code api.Code
	hint string
}{
	{context.Canceled, api.Failed, ""},
	{device.ErrNotBlock, api.Invalid, "for a file make a loop device: losetup --find --show FILE"},
	{device.ErrHolds, api.Refused, "an XFS or ext4 file system is used as it is, without --format; `--format xfs --force` makes a new one: what the device holds is lost"},
	{device.ErrInUse, api.Busy, "unmount it, or take it out of its RAID, LVM or device-mapper use first"},
	{coordinator.ErrShrunk, api.Refused, "grow the LUN back to its size; nothing was changed on it"},
	{coordinator.ErrForeign, api.Refused, "eject it in that cluster; `volume add --force` takes it all the same, when that cluster is surely gone"},
	{fence.ErrUnfenced, api.Refused, "`volume add --allow-unfenced` accepts that nodes stop by a lease"},
	{fence.ErrForeign, api.Refused, "the LUN has keys of other hosts: take it out of their use first"},
	{coordinator.ErrNoVolume, api.Refused, "add `--format xfs` to make a file system"},
	{coordinator.ErrNoSpace, api.Full, ""},
	{coordinator.ErrExists, api.Exists, ""},
	{coordinator.ErrNotFound, api.NotFound, ""},
	{coordinator.ErrInUse, api.Busy, ""},
	{coordinator.ErrSuspended, api.Busy, "wait for its end, or end it: lunarctl backup list, lunarctl backup end VOLUME"},
	{coordinator.ErrPath, api.Invalid, ""},
	{coordinator.ErrSize, api.Invalid, ""},
	{coordinator.ErrHoldsData, api.Refused, "`--force` does it all the same: that data is lost"},
	{coordinator.ErrRecall, api.Busy, "try again"},
	{coordinator.ErrClosed, api.Unavailable, ""},
	{coordinator.ErrUnsupported, api.Invalid, ""},
	{volume.ErrClosed, api.Unavailable, ""},
	{volume.ErrInUse, api.Busy, ""},
	{volume.ErrBusy, api.Busy, "try again"},
	{cluster.ErrToken, api.Invalid, ""},
	{cluster.ErrAddress, api.Invalid, ""},
	{cluster.ErrAlone, api.NotFound, "`lunarctl cluster init` makes a cluster of this node, `lunarctl cluster join` takes it into one"},
	{cluster.ErrMember, api.Exists, ""},
	{cluster.ErrNotEmpty, api.Busy, ""},
	{cluster.ErrCertificate, api.Refused, ""},
	{cluster.ErrNotEligible, api.Unavailable, "`lunarctl node list` and `lunarctl volume show` say how the nodes are"},
	{cluster.ErrLocked, api.Busy, "stop lunard first: systemctl stop lunard"},
	{cluster.ErrExists, api.Exists, ""},
	{cluster.ErrNotFound, api.NotFound, ""},
	{cluster.ErrInUse, api.Busy, ""},
	{cluster.ErrFull, api.Full, ""},
	{cluster.ErrConflict, api.Busy, ""},
	{cluster.ErrUnavailable, api.Unavailable, ""},
	{iscsi.ErrTargetExists, api.Exists, ""},
	{iscsi.ErrNoTarget, api.NotFound, ""},
	{iscsi.ErrBadName, api.Invalid, "write it as iqn.YYYY-MM.REVERSED.DOMAIN:NAME"},
	{iscsi.ErrBadCredential, api.Invalid, ""},
	{fs.ErrNotExist, api.NotFound, ""},
	{fs.ErrPermission, api.Refused, ""},
}

// refusal turns a part's error into one of the API, nil into nil.
func refusal(err error) error {
	var e *api.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return &api.Error{Code: c.code, Message: err.Error(), Hint: c.hint}
		}
	}
	return &api.Error{Code: api.Failed, Message: err.Error()}
}
