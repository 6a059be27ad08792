package namespace

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"path"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// The modes that the tree shows: a coordinator knows no others.
const (
	folderMode = 0o755
	imageMode  = 0o600
	maxName    = 255
)

// inode is the number of a file or folder, the same on all nodes and after a restart.
func inode(volume string, kind byte, key []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(volume))
	_, _ = h.Write([]byte{0, kind})
	_, _ = h.Write(key)
	n := h.Sum64()
	if n <= 1 || n == ^uint64(0) { // the root's, and go-fuse's own
		n = 2
	}
	return n
}

func inodeOfFile(volume string, id uint64) uint64 {
	return inode(volume, 'f', binary.LittleEndian.AppendUint64(nil, id))
}

func inodeOfFolder(volume, p string) uint64 { return inode(volume, 'd', []byte(p)) }

// fixed is what root and folders have in common: nothing of them can be changed.
type fixed struct {
	fs.Inode
	ns *Namespace
}

// Getattr implements fs.NodeGetattrer.
func (n *fixed) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	folderAttr(&out.Attr)
	return 0
}

func folderAttr(a *fuse.Attr) { a.Mode, a.Nlink, a.Blksize = syscall.S_IFDIR|folderMode, 2, 4096 }

// Fsync implements fs.NodeFsyncer: a change of a name is durable when it returns.
func (n *fixed) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// Unlink implements fs.NodeUnlinker.
func (n *fixed) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }

// Rmdir implements fs.NodeRmdirer.
func (n *fixed) Rmdir(context.Context, string) syscall.Errno { return syscall.EOPNOTSUPP }

// Create implements fs.NodeCreater.
func (n *fixed) Create(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EPERM
}

// root has a folder per volume.
type root struct{ fixed }

// Readdir implements fs.NodeReaddirer.
func (n *root) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var out []fuse.DirEntry
	for _, v := range n.ns.tree.Volumes() {
		out = append(out, fuse.DirEntry{Name: v.Name, Mode: syscall.S_IFDIR, Ino: inodeOfFolder(v.ID, "")})
	}
	return fs.NewListDirStream(out), 0
}

// Lookup implements fs.NodeLookuper.
func (n *root) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	for _, v := range n.ns.tree.Volumes() {
		if v.Name == name {
			return n.ns.folder(ctx, &n.Inode, place{v.ID, ""}, out), 0
		}
	}
	return nil, syscall.ENOENT
}

func (ns *Namespace) folder(ctx context.Context, parent *fs.Inode, p place, out *fuse.EntryOut) *fs.Inode {
	folderAttr(&out.Attr)
	child := &folder{fixed: fixed{ns: ns}, place: p}
	return parent.NewInode(ctx, child, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: inodeOfFolder(p.volume, p.path)})
}

// folder is a volume, or a folder of one. Folders keep their names: a coordinator renames images only.
type folder struct {
	fixed
	place // path is "" for the volume
}

func (n *folder) at(name string) (place, syscall.Errno) {
	if len(name) > maxName {
		return place{}, syscall.ENAMETOOLONG
	}
	return place{n.volume, path.Join(n.path, name)}, 0
}

// Readdir implements fs.NodeReaddirer.
func (n *folder) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	all, err := n.ns.tree.List(ctx, n.volume)
	if err != nil {
		return nil, n.ns.refuse("list", n.place, err)
	}
	return fs.NewListDirStream(entries(n.place, all)), 0
}

// entries are what lies in the folder at p, of all images of its volume.
func entries(p place, all []File) []fuse.DirEntry {
	var out []fuse.DirEntry
	seen := map[string]bool{}
	for i := range all {
		below := all[i].Path
		if p.path != "" {
			var ok bool
			if below, ok = strings.CutPrefix(below, p.path+"/"); !ok {
				continue
			}
		}
		name, _, deeper := strings.Cut(below, "/")
		switch {
		case !deeper:
			out = append(out, fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: inodeOfFile(p.volume, all[i].ID)})
		case !seen[name]:
			seen[name] = true
			out = append(out, fuse.DirEntry{Name: name, Mode: syscall.S_IFDIR, Ino: inodeOfFolder(p.volume, path.Join(p.path, name))})
		}
	}
	return out
}

// Lookup implements fs.NodeLookuper.
func (n *folder) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p, bad := n.at(name)
	if bad != 0 {
		return nil, bad
	}
	f, err := n.ns.tree.Stat(ctx, p.volume, p.path)
	switch errno(err) {
	case 0:
		return n.image(ctx, &f, out), 0
	case syscall.EISDIR:
		return n.ns.folder(ctx, &n.Inode, p, out), 0
	case syscall.EINVAL: // no image can have that path
		return nil, syscall.ENOENT
	}
	return nil, n.ns.refuse("look up", p, err)
}

func (n *folder) image(ctx context.Context, f *File, out *fuse.EntryOut) *fs.Inode {
	imageAttr(f, &out.Attr)
	child := &image{ns: n.ns, volume: n.volume}
	return n.NewInode(ctx, child, fs.StableAttr{Mode: syscall.S_IFREG, Ino: inodeOfFile(n.volume, f.ID)})
}

func imageAttr(f *File, a *fuse.Attr) {
	a.Mode, a.Nlink, a.Blksize = syscall.S_IFREG|imageMode, 1, 4096
	a.Size, a.Blocks = uint64(f.Size), uint64(f.Used+sector-1)/sector
	a.SetTimes(&f.ModTime, &f.ModTime, &f.ModTime)
}

// Create implements fs.NodeCreater.
func (n *folder) Create(ctx context.Context, name string, flags, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	p, bad := n.at(name)
	if bad != 0 {
		return nil, nil, 0, bad
	}
	err := n.ns.tree.Create(ctx, p.volume, p.path)
	if errno(err) == syscall.EEXIST && flags&syscall.O_EXCL == 0 { // made elsewhere since the kernel looked
		err = nil
	}
	var f File
	if err == nil {
		f, err = n.ns.tree.Stat(ctx, p.volume, p.path)
	}
	if err != nil {
		return nil, nil, 0, n.ns.refuse("create", p, err)
	}
	h, openFlags, bad := n.ns.open(ctx, p)
	if bad != 0 {
		return nil, nil, 0, bad
	}
	return n.image(ctx, &f, out), h, openFlags, 0
}

// Unlink implements fs.NodeUnlinker.
func (n *folder) Unlink(ctx context.Context, name string) syscall.Errno {
	p, bad := n.at(name)
	if bad != 0 {
		return bad
	}
	return n.ns.refuse("delete", p, n.ns.files.patiently(func() error { return n.ns.tree.Delete(ctx, p.volume, p.path) }))
}

// Rename implements fs.NodeRenamer. It replaces nothing: EEXIST.
func (n *folder) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	const noReplace = 1 // RENAME_NOREPLACE
	if flags&^noReplace != 0 {
		return syscall.EINVAL
	}
	to, ok := newParent.(*folder)
	if !ok || to.volume != n.volume {
		return syscall.EXDEV
	}
	p, bad := n.at(name)
	if bad != 0 {
		return bad
	}
	q, bad := to.at(newName)
	if bad != 0 {
		return bad
	}
	err := n.ns.files.patiently(func() error { return n.ns.tree.Rename(ctx, p.volume, p.path, q.path) })
	if errno(err) == syscall.EISDIR {
		return syscall.EOPNOTSUPP
	}
	return n.ns.refuse("rename", p, err)
}

// Statfs implements fs.NodeStatfser.
func (n *folder) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.ns.statfs(ctx, n.place, out)
}

func (ns *Namespace) statfs(ctx context.Context, p place, out *fuse.StatfsOut) syscall.Errno {
	space, err := ns.tree.Space(ctx, p.volume)
	if err != nil {
		return ns.refuse("statfs", p, err)
	}
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, maxName
	out.Blocks, out.Bfree, out.Bavail = uint64(space.Size/block), uint64(space.Free/block), uint64(space.Free/block)
	return 0
}

// image is an image's file. Its path is where the kernel found it last.
type image struct {
	fs.Inode
	ns     *Namespace
	volume string
}

func (n *image) place() (place, syscall.Errno) {
	name, parent := n.Parent()
	if parent == nil {
		return place{}, syscall.ESTALE
	}
	in, ok := parent.Operations().(*folder)
	if !ok {
		return place{}, syscall.ESTALE
	}
	return in.at(name)
}

// Getattr implements fs.NodeGetattrer.
func (n *image) Getattr(ctx context.Context, h fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	p, bad := n.placeOf(h)
	if bad != 0 {
		return bad
	}
	f, err := n.ns.tree.Stat(ctx, p.volume, p.path)
	if err != nil {
		return n.ns.refuse("get attributes of", p, err)
	}
	imageAttr(&f, &out.Attr)
	return 0
}

// placeOf is where the open image lies, or the image.
func (n *image) placeOf(h fs.FileHandle) (place, syscall.Errno) {
	if open, ok := h.(*handle); ok {
		return open.file.place, 0
	}
	return n.place()
}

// Setattr implements fs.NodeSetattrer: the size can be set, and everything else to what it is.
func (n *image) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	p, bad := n.placeOf(h)
	if bad != 0 {
		return bad
	}
	size, resized := in.GetSize()
	if !settable(in, resized) {
		return syscall.EOPNOTSUPP
	}
	if resized {
		if size > 1<<62 {
			return syscall.EFBIG
		}
		if err := n.ns.files.resize(ctx, p, int64(size)); err != nil {
			return n.ns.refuse("resize", p, err)
		}
	}
	return n.Getattr(ctx, h, out)
}

func settable(in *fuse.SetAttrIn, resized bool) bool {
	if mode, ok := in.GetMode(); ok && mode&0o7777 != imageMode {
		return false
	}
	if uid, ok := in.GetUID(); ok && uid != 0 {
		return false
	}
	if gid, ok := in.GetGID(); ok && gid != 0 {
		return false
	}
	const times = fuse.FATTR_ATIME | fuse.FATTR_MTIME
	return resized || in.Valid&times == 0
}

// Open implements fs.NodeOpener.
func (n *image) Open(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
	p, bad := n.place()
	if bad != 0 {
		return nil, 0, bad
	}
	return n.ns.open(ctx, p)
}

// Statfs implements fs.NodeStatfser.
func (n *image) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.ns.statfs(ctx, place{n.volume, ""}, out)
}
