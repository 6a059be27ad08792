package coordinator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// keyAttribute is where a file keeps the key of the call that made it: Once. Only root sees it.
const keyAttribute = "trusted.lunar.key"

// setKey notes which call makes the file.
func setKey(f *os.File, key protocol.Key) error {
	if key == (protocol.Key{}) {
		return nil
	}
	if err := unix.Fsetxattr(int(f.Fd()), keyAttribute, key[:], 0); err != nil {
		return fmt.Errorf("set %s: %w", keyAttribute, err)
	}
	return nil
}

// madeBy tells whether the call with this key made the file.
func madeBy(f *os.File, key protocol.Key) bool {
	var has protocol.Key
	n, err := unix.Fgetxattr(int(f.Fd()), keyAttribute, has[:])
	return err == nil && n == len(has) && has == key && key != (protocol.Key{})
}

// made looks what is at p, where the call m wants to make an image: true when it has done so before,
// and that is durable now; ErrExists when another has.
func (c *Coordinator) made(m protocol.Meta, p string) (bool, error) {
	f, _, err := c.fs.openFile(p, unix.O_RDWR)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, ErrPath), errors.Is(err, ErrUnsupported): // no image, but a name that is taken
		return false, ErrExists
	case err != nil:
		return false, err
	}
	defer func() { _ = f.Close() }()
	if !madeBy(f, m.Key) {
		return false, ErrExists
	}
	return true, errors.Join(durable(f), c.syncFolder(p))
}

// syncFolder makes durable what is in the folder that p lies in.
func (c *Coordinator) syncFolder(p string) error {
	folder, err := c.fs.openFolder(p, false)
	if err != nil {
		return err
	}
	return errors.Join(durable(folder), folder.Close())
}

// isAt tells whether the image is at p.
func (c *Coordinator) isAt(id protocol.ImageID, p string) (bool, error) {
	st, err := c.fs.statImage(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, ErrPath) {
		return false, nil
	}
	return err == nil && st.ID == id, err
}

// target opens the folder of the image at p, which m is to remove from there. It is nil when the image
// is not there any more: ErrNotFound, unless m is a retry, which may find its work done.
func (c *Coordinator) target(m protocol.Meta, p string) (*os.File, error) {
	if m.Image != 0 {
		there, err := c.isAt(m.Image, p)
		if err != nil {
			return nil, err
		}
		if !there && m.Retry {
			return nil, nil
		}
		if !there {
			return nil, fmt.Errorf("%w there any more: it was deleted, renamed or made anew", ErrNotFound)
		}
	}
	return c.folderOfUnused(p)
}

// unlink removes the name p, durably.
func (c *Coordinator) unlink(m protocol.Meta, p string) error {
	folder, err := c.target(m, p)
	if err != nil {
		return err
	}
	if folder == nil { // an earlier try did it
		if err := c.syncFolder(p); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	}
	defer func() { _ = folder.Close() }()
	if err := unix.Unlinkat(int(folder.Fd()), path.Base(p), 0); err != nil {
		return err
	}
	c.step("unlinked")
	return durable(folder)
}

// rename moves a name, durably.
func (c *Coordinator) rename(m protocol.Meta, from, to string) error {
	source, err := c.target(m, from)
	if err != nil {
		return err
	}
	if source == nil {
		return c.renamed(m, from, to)
	}
	defer func() { _ = source.Close() }()
	target, err := c.fs.openFolder(to, true)
	if err != nil {
		return err
	}
	defer func() { _ = target.Close() }()
	c.step("folders made")
	err = unix.Renameat2(int(source.Fd()), path.Base(from), int(target.Fd()), path.Base(to), unix.RENAME_NOREPLACE)
	if err != nil {
		return err
	}
	c.step("renamed")
	return errors.Join(durable(target), durable(source))
}

// renamed is a retry that does not find its image at the old path.
func (c *Coordinator) renamed(m protocol.Meta, from, to string) error {
	there, err := c.isAt(m.Image, to)
	switch {
	case err != nil:
		return err
	case !there:
		return ErrNotFound
	}
	return errors.Join(c.syncFolder(to), c.syncFolder(from))
}

// imageID names a file for good: inode numbers are used again, with another time of birth.
func imageID(st *unix.Statx_t) protocol.ImageID {
	h := fnv.New64a()
	var b [20]byte
	binary.LittleEndian.PutUint64(b[:], st.Ino)
	binary.LittleEndian.PutUint64(b[8:], uint64(st.Btime.Sec))
	binary.LittleEndian.PutUint32(b[16:], st.Btime.Nsec)
	_, _ = h.Write(b[:])
	return protocol.ImageID(max(1, h.Sum64())) // 0 means none
}

// step is where a test may let the power fail.
func (c *Coordinator) step(name string) {
	if c.hook != nil {
		c.hook(name)
	}
}
