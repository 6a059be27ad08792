package coordinator

import (
	"os"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// openPath opens an image, or one of a snapshot to read it.
func (c *Coordinator) openPath(p string) (*os.File, protocol.Stat, error) {
	if name, image, ok := protocol.CutSnapshotPath(p); ok {
		return c.openSnapshot(name, image)
	}
	return c.fs.openImage(p)
}

// writable refuses changes of a snapshot.
func (im *image) writable() error {
	if im.frozen {
		return ErrReadOnly
	}
	return nil
}

// extentsOf is fiemap; what is frozen has no extent that may be written, whoever else has its blocks.
func extentsOf(f *os.File, r layout.Range, frozen bool) ([]layout.Extent, error) {
	extents, err := fiemap(f, r)
	if frozen {
		for i := range extents {
			if extents[i].State == layout.Written {
				extents[i].State = layout.Shared
			}
		}
	}
	return extents, err
}
