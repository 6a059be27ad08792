package coordinator

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unfit are the attributes of files whose blocks do not simply hold their content, or must not be
// written; in the words of chattr(1).
var unfit = []struct {
	attribute  uint64
	what, cure string
}{
	{unix.STATX_ATTR_IMMUTABLE, "immutable", "make it writable with chattr -i"},
	{unix.STATX_ATTR_APPEND, "append-only", "make it writable with chattr -a"},
	{unix.STATX_ATTR_COMPRESSED, "compressed", "copy it to a plain file"},
	{unix.STATX_ATTR_ENCRYPTED, "encrypted", "copy it to a plain file"},
	{unix.STATX_ATTR_VERITY, "protected by fs-verity", "copy it to a plain file"},
	{unix.STATX_ATTR_DAX, "accessed by DAX", "clear that with chattr -x"},
}

// checkAttributes refuses the file at f, which may be open with O_PATH, when it is no regular file
// or has an attribute that makes it unfit for an image.
func checkAttributes(f *os.File) error {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return fmt.Errorf("%w: it is a folder: %w", ErrPath, unix.EISDIR)
	default:
		return fmt.Errorf("%w: it is no regular file", ErrPath)
	}
	for _, a := range unfit {
		if st.Attributes&a.attribute != 0 {
			return fmt.Errorf("%w: the file is %s: %s", ErrUnsupported, a.what, a.cure)
		}
	}
	return nil
}

// checkPlacement refuses an open file whose data goes through a journal or lies outside the volume's
// data section: FIEMAP does not tell.
func (m *mount) checkPlacement(f *os.File) error {
	switch m.fs {
	case Ext4:
		const journalData = 0x4000 // FS_JOURNAL_DATA_FL of linux/fs.h
		flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil && flags&journalData != 0 {
			err = fmt.Errorf("%w: the file's data is journalled: end that with chattr -j", ErrUnsupported)
		}
		return err
	case XFS:
		const getXattr, realtime = 0x801c581f, 1 // FS_IOC_FSGETXATTR and FS_XFLAG_REALTIME of linux/fs.h
		var attr [28]byte                        // struct fsxattr; its first word is the flags
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getXattr, uintptr(unsafe.Pointer(&attr)))
		if errno != 0 {
			return errno
		}
		if attr[0]&realtime != 0 {
			return fmt.Errorf("%w: the file lies in the realtime section: copy it to a plain file", ErrUnsupported)
		}
	}
	return nil
}
