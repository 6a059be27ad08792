package cluster

import "slices"

// OffLineOn tells whether the user has taken the volume off line on a node.
func (v *Volume) OffLineOn(node string) bool { return slices.Contains(v.OffLine, node) }

// SetOffLine records or withdraws the user's wish that a node takes no part in the volume.
func (v *Volume) SetOffLine(node string, on bool) {
	v.OffLine = slices.DeleteFunc(v.OffLine, func(n string) bool { return n == node })
	if on {
		v.OffLine = append(v.OffLine, node)
		slices.Sort(v.OffLine)
	}
}
