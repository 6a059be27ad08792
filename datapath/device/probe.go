package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unsafe"
)

// Content is something found on a device.
type Content struct {
	Type  string // "xfs", "ext4", "gpt", …; "data" for what has no known signature
	What  string // in words
	UUID  string // of an XFS or ext file system
	Label string
}

// String is in words, with label and UUID where they are known.
func (c Content) String() string {
	s := c.What
	if c.Label != "" {
		s += fmt.Sprintf(" %q", c.Label)
	}
	if c.UUID != "" {
		s += " " + c.UUID
	}
	return s
}

// Sizes of what Probe reads from the device's ends.
const (
	headSize = 2 << 20
	tailSize = 256 << 10
)

// Probe tells what is on the device, file systems first; nothing when its ends are all zeroes.
func (d *Device) Probe() ([]Content, error) {
	size, err := d.Size()
	if err != nil {
		return nil, err
	}
	head, tail := aligned(min(headSize, size)), aligned(min(tailSize, size))
	if err := readFull(d, head, 0); err != nil {
		return nil, fmt.Errorf("probe %s: %w", d.Path, err)
	}
	if err := readFull(d, tail, size-int64(len(tail))); err != nil {
		return nil, fmt.Errorf("probe %s: %w", d.Path, err)
	}
	return identifyContent(head, tail), nil
}

// ReadEnds reads the first and the last block of a device that is size bytes long, size as Size gave it: it tells
// whether the path to the LUN works. The error wraps the device's errno, or io.EOF when the
// device has become smaller.
func (d *Device) ReadEnds(size int64) error {
	block := aligned(int64(max(d.LogicalBlock, 4096)))
	for _, off := range []int64{0, size - int64(len(block))} {
		if _, err := d.ReadAt(block, off); err != nil {
			return fmt.Errorf("read %s at byte %d: %w", d.Path, off, err)
		}
	}
	return nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	if _, err := r.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// aligned makes a zeroed buffer that direct I/O takes.
func aligned(n int64) []byte {
	const unit = 4096
	b := make([]byte, n+unit)
	shift := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (unit - 1)
	return b[shift : int64(shift)+n]
}

// signature is how a kind of content is known: magic at offset; from the end when it is negative.
type signature struct {
	typ, what string
	offset    int
	magic     string
	is        func(head []byte) bool // nil, or what must hold too
}

// signatures is what a device is searched for; file systems that become volumes come first.
var signatures = []signature{
	{typ: "xfs", what: "an XFS file system", offset: 0, magic: "XFSB"},
	{typ: "ext4", what: "an ext4 file system", offset: 1080, magic: "\x53\xef", is: extent4},
	{typ: "ext2", what: "an ext2 or ext3 file system", offset: 1080, magic: "\x53\xef", is: func(h []byte) bool { return !extent4(h) }},
	{typ: "btrfs", what: "a btrfs file system", offset: 65600, magic: "_BHRfS_M"},
	{typ: "f2fs", what: "an F2FS file system", offset: 1024, magic: "\x10\x20\xf5\xf2"},
	{typ: "gfs2", what: "a GFS2 file system", offset: 65536, magic: "\x01\x16\x19\x70"},
	{typ: "ocfs2", what: "an OCFS2 file system", offset: 8192, magic: "OCFSV2"},
	{typ: "vmfs", what: "a VMware VMFS datastore", offset: 1 << 20, magic: "\x0d\xd0\x01\xc0"},
	{typ: "ntfs", what: "an NTFS file system", offset: 3, magic: "NTFS    "},
	{typ: "refs", what: "a ReFS file system", offset: 3, magic: "ReFS\x00\x00\x00\x00"},
	{typ: "exfat", what: "an exFAT file system", offset: 3, magic: "EXFAT   "},
	{typ: "vfat", what: "a FAT file system", offset: 82, magic: "FAT32   "},
	{typ: "vfat", what: "a FAT file system", offset: 54, magic: "FAT1"},
	{typ: "iso9660", what: "an ISO 9660 file system", offset: 32769, magic: "CD001"},
	{typ: "squashfs", what: "a squashfs file system", offset: 0, magic: "hsqs"},
	{typ: "erofs", what: "an EROFS file system", offset: 1024, magic: "\xe2\xe1\xf5\xe0"},
	{typ: "luks", what: "a LUKS encrypted volume", offset: 0, magic: "LUKS\xba\xbe"},
	{typ: "lvm2", what: "an LVM physical volume", offset: 0, magic: "LABELONE"},
	{typ: "lvm2", what: "an LVM physical volume", offset: 512, magic: "LABELONE"},
	{typ: "lvm2", what: "an LVM physical volume", offset: 1024, magic: "LABELONE"},
	{typ: "lvm2", what: "an LVM physical volume", offset: 1536, magic: "LABELONE"},
	{typ: "raid", what: "a member of a Linux RAID", offset: 0, magic: "\xfc\x4e\x2b\xa9"},
	{typ: "raid", what: "a member of a Linux RAID", offset: 4096, magic: "\xfc\x4e\x2b\xa9"},
	{typ: "raid", what: "a member of a Linux RAID", offset: -8192, magic: "\xfc\x4e\x2b\xa9"},
	{typ: "raid", what: "a member of a Linux RAID", offset: -65536, magic: "\xfc\x4e\x2b\xa9"},
	{typ: "swap", what: "swap space", offset: 4086, magic: "SWAPSPACE2"},
	{typ: "swap", what: "swap space", offset: 65526, magic: "SWAPSPACE2"},
	{typ: "bcache", what: "a bcache device", offset: 4120, magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca"},
	{typ: "zfs", what: "a member of a ZFS pool", offset: 128 << 10, magic: "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
	{typ: "ceph", what: "a Ceph BlueStore device", offset: 0, magic: "bluestore block device"},
	{typ: "gpt", what: "a GPT partition table", offset: 512, magic: "EFI PART"},
	{typ: "gpt", what: "a GPT partition table", offset: 4096, magic: "EFI PART"},
	{typ: "gpt", what: "a GPT partition table (its backup)", offset: -512, magic: "EFI PART"},
	{typ: "gpt", what: "a GPT partition table (its backup)", offset: -4096, magic: "EFI PART"},
	{typ: "mbr", what: "an MBR partition table or boot sector", offset: 510, magic: "\x55\xaa"},
}

// matches looks for the signature in the device's ends.
func (s signature) matches(head, tail []byte) bool {
	part, at := head, s.offset
	if at < 0 {
		part, at = tail, len(tail)+at
	}
	if at < 0 || at > len(part) || !bytes.HasPrefix(part[at:], []byte(s.magic)) {
		return false
	}
	return s.is == nil || s.is(head)
}

// extent4 tells ext4 from its forerunners by the features that only it has: extents, 64bit,
// flex_bg, metadata checksums.
func extent4(head []byte) bool {
	const incompat, roCompat = 1024 + 0x60, 1024 + 0x64
	if len(head) < roCompat+4 {
		return false
	}
	return binary.LittleEndian.Uint32(head[incompat:])&(0x40|0x80|0x200) != 0 ||
		binary.LittleEndian.Uint32(head[roCompat:])&0x400 != 0
}

// identifyContent finds every signature, each type once.
func identifyContent(head, tail []byte) (found []Content) {
	seen := map[string]bool{}
	for _, s := range signatures {
		if !seen[s.typ] && s.matches(head, tail) {
			seen[s.typ] = true
			found = append(found, describeContent(s, head))
		}
	}
	if len(found) == 0 && (!zero(head) || !zero(tail)) {
		found = append(found, Content{Type: "data", What: "data of an unknown kind"})
	}
	return found
}

// labels is where file systems keep UUID and label.
var labels = map[string]struct{ uuid, label, labelLen int }{
	"xfs":  {32, 108, 12},
	"ext4": {1024 + 0x68, 1024 + 0x78, 16},
	"ext2": {1024 + 0x68, 1024 + 0x78, 16},
}

func describeContent(s signature, head []byte) Content {
	c := Content{Type: s.typ, What: s.what}
	at, ok := labels[s.typ]
	if !ok || len(head) < at.uuid+16 || len(head) < at.label+at.labelLen {
		return c
	}
	u := head[at.uuid : at.uuid+16]
	c.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	label, _, _ := bytes.Cut(head[at.label:at.label+at.labelLen], []byte{0})
	c.Label = string(bytes.ToValidUTF8(label, []byte("?")))
	return c
}

func zero(p []byte) bool {
	for len(p) >= 8 {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
