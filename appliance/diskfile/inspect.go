package diskfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
)

// Source is a file that can be imported.
type Source struct {
	Path   string // absolute
	Format Format
	Device bool // a block device
}

const sector = 512

// contents is what a file says of itself.
type contents struct {
	head []byte // the first headSize bytes, or less
	tail []byte // the last sector, or less
	size int64
}

const headSize = 64 << 10

// Inspect finds out what the file at path is, and refuses what is no image, what is not whole, and what refers to
// other files. as is the format that the user says it has, or "": then the content tells.
func Inspect(path string, as Format) (Source, error) {
	s := Source{Path: path}
	var err error
	if s.Path, err = filepath.Abs(path); err != nil {
		return s, err
	}
	c, mode, err := look(s.Path)
	if err != nil {
		return s, err
	}
	s.Device = mode&fs.ModeDevice != 0
	found, err := c.format(s.Path)
	if as != Raw && err != nil {
		return s, err
	}
	switch {
	case as == Raw:
		s.Format = Raw
		return s, nil
	case as != "" && as != found:
		return s, api.Errorf(api.Invalid, "%s is not in the format %s: its content is %s", path, as, found.described()).
			WithHint("leave --format away, so that the content tells the format")
	case found != "":
		s.Format = found
		return s, nil
	}
	s.Format = Raw
	if s.Device || c.looksRaw() {
		return s, nil
	}
	return s, c.unknown(path)
}

// described is a format in words; "" is one that has no mark.
func (f Format) described() string {
	if f == "" {
		return "of no format that is known"
	}
	return string(f)
}

// look reads what tells the format. It never blocks on a pipe.
func look(path string) (c contents, mode fs.FileMode, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return c, 0, unreadable(path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return c, 0, unreadable(path, err)
	}
	if mode = info.Mode(); !mode.IsRegular() && mode.Type() != fs.ModeDevice {
		return c, mode, api.Errorf(api.Invalid, "%s is neither a file nor a disk", path)
	}
	if c.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return c, mode, unreadable(path, err)
	}
	if c.size == 0 {
		return c, mode, api.Errorf(api.Invalid, "%s is empty: it is no image", path)
	}
	if c.head, err = part(f, 0, min(headSize, c.size)); err == nil {
		c.tail, err = part(f, max(0, c.size-sector), min(sector, c.size))
	}
	if err != nil {
		return c, mode, unreadable(path, err)
	}
	return c, mode, nil
}

func part(f *os.File, off, n int64) ([]byte, error) {
	p := make([]byte, n)
	_, err := f.ReadAt(p, off)
	return p, err
}

func unreadable(path string, err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		err = e.Err
	}
	code := api.Failed
	if errors.Is(err, fs.ErrNotExist) {
		code = api.NotFound
	}
	return api.Errorf(code, "%s cannot be read: %v", path, err)
}

// marks are the beginnings of formats that can be imported, and what checks one.
var marks = []struct {
	at     int
	text   string
	format Format
	check  func(c *contents, path string) error
}{
	{0, "QFI\xfb", QCOW2, (*contents).checkQCOW2},
	{0, "conectix", VHD, (*contents).checkVHD},
	{0, "vhdxfile", VHDX, nil},
	{0, "KDMV", VMDK, (*contents).checkVMDK},
}

// strangers are beginnings of what is no image, or none that can be imported, with what to do.
var strangers = []struct {
	at         int
	text, what string
	hint       string
}{
	{0, "# Disk DescriptorFile", "the description of a VMDK, whose data lie in other files", "make it one file first: qemu-img convert -O qcow2 FILE NEW.qcow2; or import its -flat.vmdk with --format raw"},
	{0, "COWD", "a VMDK of VMware ESX 3, or one of its snapshots", "make it one file first: qemu-img convert -O qcow2 FILE NEW.qcow2"},
	{0, "QED\x00", "a QED image", "convert it first: qemu-img convert -O qcow2 FILE NEW.qcow2"},
	{0x40, "\x7f\x10\xda\xbe", "a VirtualBox VDI", "convert it first: qemu-img convert -O qcow2 FILE NEW.qcow2"},
	{0, "LUKS\xba\xbe", "encrypted (LUKS)", "--format raw imports it as it is"},
	{0, "\x1f\x8b", "compressed (gzip)", "unpack it first: gunzip FILE"},
	{0, "\xfd7zXZ\x00", "compressed (xz)", "unpack it first: unxz FILE"},
	{0, "\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it first: unzstd FILE"},
	{0, "BZh", "compressed (bzip2)", "unpack it first: bunzip2 FILE"},
	{0, "PK\x03\x04", "a ZIP archive", "unpack it first: unzip FILE"},
	{257, "ustar", "an archive (tar, OVA)", "unpack it first: tar xf FILE"},
}

func (c *contents) has(at int, text string) bool {
	return len(c.head) >= at+len(text) && string(c.head[at:at+len(text)]) == text
}

// format is what the content says, "" when it says nothing.
func (c *contents) format(path string) (Format, error) {
	for _, s := range strangers {
		if c.has(s.at, s.text) {
			return "", api.Errorf(api.Invalid, "%s cannot be imported: it is %s", path, s.what).WithHint("%s", s.hint)
		}
	}
	for _, m := range marks {
		if !c.has(m.at, m.text) {
			continue
		}
		if m.check != nil {
			if err := m.check(c, path); err != nil {
				return m.format, err
			}
		}
		return m.format, nil
	}
	if c.isFixedVHD() {
		return VHD, nil
	}
	return "", nil
}

// The qcow2 header (QEMU, docs/interop/qcow2.txt).
const (
	qcow2HeaderSize   = 72
	qcow2ExternalData = 1 << 2 // incompatible feature: guest clusters lie in an external file
)

func (c *contents) checkQCOW2(path string) error {
	if len(c.head) < qcow2HeaderSize+8 {
		return damaged(path, QCOW2, "its header is cut off")
	}
	be := binary.BigEndian
	version, features := be.Uint32(c.head[4:]), uint64(0)
	if version >= 3 {
		features = be.Uint64(c.head[72:])
	}
	switch {
	case version < 2 || version > 3:
		return api.Errorf(api.Invalid, "%s is a qcow image of version %d", path, version).
			WithHint("convert it first: qemu-img convert -O qcow2 FILE NEW.qcow2")
	case be.Uint64(c.head[8:]) != 0:
		return refers(path, "has a backing file: what it does not hold lies there")
	case features&qcow2ExternalData != 0:
		return refers(path, "keeps its data in another file")
	case be.Uint32(c.head[32:]) != 0:
		return api.Errorf(api.Invalid, "%s is encrypted", path).
			WithHint("decrypt it first: qemu-img convert with --object secret, into a new file")
	}
	return nil
}

func refers(path, how string) error {
	return api.Errorf(api.Refused, "%s %s", path, how).
		WithHint("where you trust both files make one of them first: qemu-img convert -O qcow2 FILE NEW.qcow2")
}

func damaged(path string, f Format, why string) error {
	return api.Errorf(api.Failed, "%s is a damaged %s: %s", path, f, why).WithHint("copy it again from where it came from; nothing was imported")
}

// The VHD footer (Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer Format").
const (
	vhdCurrentSize = 48
	vhdDiskType    = 60
	vhdChecksum    = 64
	vhdFixed       = 2
	vhdDynamic     = 3
	vhdDiffering   = 4
)

var vhdCookie = []byte("conectix")

func (c *contents) isFixedVHD() bool {
	return isFooter(c.tail) && binary.BigEndian.Uint32(c.tail[vhdDiskType:]) == vhdFixed &&
		binary.BigEndian.Uint64(c.tail[vhdCurrentSize:]) == uint64(c.size-sector)
}

// isFooter tells whether p is a VHD's footer: its checksum is the complement of the sum of its other bytes.
func isFooter(p []byte) bool {
	if len(p) != sector || !bytes.HasPrefix(p, vhdCookie) {
		return false
	}
	var sum uint32
	for i, b := range p {
		if i < vhdChecksum || i >= vhdChecksum+4 {
			sum += uint32(b)
		}
	}
	return binary.BigEndian.Uint32(p[vhdChecksum:]) == ^sum
}

// checkVHD is for one that begins with the copy of its footer: all but fixed ones. qemu-img does not look at the
// footer at the end, without which a file was cut off, and takes a differencing disk for a whole one.
func (c *contents) checkVHD(path string) error {
	if !isFooter(c.tail) {
		return damaged(path, VHD, "its footer is missing at the end")
	}
	switch kind := binary.BigEndian.Uint32(c.tail[vhdDiskType:]); kind {
	case vhdDynamic:
		return nil
	case vhdDiffering:
		return refers(path, "is a differencing disk: what it does not hold lies in its parent")
	default:
		return damaged(path, VHD, fmt.Sprintf("it has the type %d", kind))
	}
}

// The VMDK's sparse header (Virtual Disk Format 5.0, "Hosted Sparse Extent Header"); qemu-img reads the
// description from the second sector on.
const (
	vmdkCapacity        = 12
	vmdkDescription     = 0x200
	vmdkDescriptionSize = 20 * 512
)

// checkVMDK refuses one whose description could name other files.
func (c *contents) checkVMDK(path string) error {
	if len(c.head) < vmdkDescription+sector {
		return damaged(path, VMDK, "its header is cut off")
	}
	if binary.LittleEndian.Uint64(c.head[vmdkCapacity:]) == 0 {
		return refers(path, "keeps its data in other files")
	}
	words := bytes.ToLower(c.head[vmdkDescription:min(len(c.head), vmdkDescription+vmdkDescriptionSize)])
	if bytes.Contains(words, []byte("parentfilenamehint")) {
		return refers(path, "is a snapshot: what it does not hold lies in its parent")
	}
	return nil
}

// rawMarks are what disks begin with: a boot sector, a GPT, file systems.
var rawMarks = []struct {
	at   int
	text string
}{{510, "\x55\xaa"}, {512, "EFI PART"}, {0, "XFSB"}, {1080, "\x53\xef"}, {0x8001, "CD001"}, {0x10040, "_BHRfS_M"}}

// looksRaw tells whether a file of no other format begins as a disk does.
func (c *contents) looksRaw() bool {
	if c.size%sector != 0 {
		return false
	}
	for _, m := range rawMarks {
		if c.has(m.at, m.text) {
			return true
		}
	}
	return false
}

// unknown refuses a file of no known content, unless its name says that it is raw.
func (c *contents) unknown(path string) error {
	said := ByName(path)
	switch {
	case said == Raw && c.size%sector == 0:
		return nil
	case said != "" && said != Raw:
		return api.Errorf(api.Invalid, "%s is no image: its name says %s, its content does not", path, said).
			WithHint("copy it again; --format raw imports what it holds, as a disk's content")
	}
	return api.Errorf(api.Invalid, "%s is no image: it begins neither as a qcow2, VHD, VHDX or VMDK does, nor as a disk", path).
		WithHint("--format raw imports what it holds, as a disk's content, filled up to whole sectors of %d bytes", sector)
}
