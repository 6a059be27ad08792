package namespace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lunar/appliance/namespace/fusedev"
)

// ErrNoFUSE means that this machine cannot mount by FUSE.
var ErrNoFUSE = errors.New("this machine has no FUSE")

const (
	device   = "/dev/fuse"
	fsName   = "lunar"
	typeName = "fuse." + fsName
)

// Namespace is a mounted tree.
type Namespace struct {
	mount   string
	log     *slog.Logger
	tree    Tree
	files   *files
	bridge  *bridge
	express *express        // nil: go-fuse reads the requests itself
	served  <-chan struct{} // closed when the kernel's requests have ended
}

// Mount shows the tree. What a daemon that was killed left mounted there is replaced. Close ends it.
func Mount(o Options) (*Namespace, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(device); err != nil {
		return nil, fmt.Errorf("%w: %w: modprobe fuse", ErrNoFUSE, err)
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Tree = steady{o.Tree}
	ns := &Namespace{
		mount: filepath.Clean(o.Mount), log: o.Log, tree: o.Tree, bridge: newBridge(&o),
		files: &files{tree: o.Tree, patience: cmp.Or(o.patience, busyPatience), open: map[place]*file{}},
	}
	if err := clearMount(ns.mount); err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	if err := os.MkdirAll(ns.mount, folderMode); err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	if o.Watch != nil {
		ns.express = newExpress(ns, o.Lanes-1)
	}
	if err := ns.serve(&o); err != nil {
		return nil, fmt.Errorf("namespace: mount %s: %w", ns.mount, err)
	}
	return ns, nil
}

// serve mounts and has the requests served, on a lane if there is a Watch.
func (ns *Namespace) serve(o *Options) (err error) {
	logger := slog.NewLogLogger(ns.log.Handler(), slog.LevelDebug)
	mount := &fuse.MountOptions{
		AllowOther: true, Options: []string{"default_permissions"}, FsName: fsName, Name: fsName,
		DirectMountStrict: true, DisableXAttrs: true, DisableReadDirPlus: true, DisableSplice: true,
		MaxWrite: MaxIO, MaxBackground: maxBackground, CongestionThreshold: maxBackground, MaxInflightRequestBytes: MaxRequestBytes,
		ExtraCapabilities: fuse.CAP_ASYNC_DIO, Logger: logger,
	}
	raw := fuse.RawFileSystem(durable{fs.NewNodeFS(&root{fixed{ns: ns}}, &fs.Options{MountOptions: *mount, Logger: logger})})
	if ns.express != nil {
		if ns.served, err = ns.serveOnLane(o, raw, mount); err == nil {
			return nil
		}
		ns.log.Warn("programs' requests are not read on a lane, which is slower", "error", err)
		ns.express = nil
	}
	ns.served, err = ns.serveByGoFuse(raw, mount)
	return err
}

// serveByGoFuse leaves all to go-fuse's server. No process is started while it mounts: it would inherit the
// connection, which then would outlive this process.
func (ns *Namespace) serveByGoFuse(raw fuse.RawFileSystem, mount *fuse.MountOptions) (<-chan struct{}, error) {
	syscall.ForkLock.RLock()
	server, err := fuse.NewServer(raw, ns.mount, mount)
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve()
	}()
	return served, nil
}

// serveOnLane reads the requests on the last lane: the first ones have more connections of initiators.
func (ns *Namespace) serveOnLane(o *Options, raw fuse.RawFileSystem, mount *fuse.MountOptions) (<-chan struct{}, error) {
	fd, err := mountDevice(ns.mount)
	if err != nil {
		return nil, err
	}
	server, err := fusedev.Serve(fusedev.Options{
		FD: fd, Lane: oneLane{o, ns.express.lane}, Files: ns.express, FS: numbered{raw, ns.express}, Mount: mount,
		Transfers: MaxInFlight, Requests: MaxRequestBytes / MaxIO, Log: ns.log,
	})
	if err != nil {
		return nil, errors.Join(err, unix.Unmount(ns.mount, unix.MNT_FORCE|unix.MNT_DETACH))
	}
	return server.Done(), nil
}

// mountDevice mounts a new connection, and returns its descriptor.
func mountDevice(path string) (int, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", device, err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions,allow_other",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), MaxIO)
	if err := unix.Mount(fsName, path, typeName, unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// oneLane is a lane as package fusedev wants it.
type oneLane struct {
	o    *Options
	lane int
}

// Post implements fusedev.Lane.
func (l oneLane) Post(fn func()) error { return l.o.Post(l.lane, fn) }

// Watch implements fusedev.Lane.
func (l oneLane) Watch(fd int, ready func()) (func(func()), error) {
	return l.o.Watch(l.lane, fd, ready)
}

// Close unmounts, also while programs have files open: their calls fail from then on. It waits for the I/O
// under way, until ctx ends, and closes the images.
func (ns *Namespace) Close(ctx context.Context) error {
	err := unix.Unmount(ns.mount, unix.MNT_FORCE|unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) {
		err = nil // someone else has unmounted it
	}
	select {
	case <-ns.served:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("requests are still under way: %w", ctx.Err()))
	}
	if err = errors.Join(err, ns.files.closeAll(ctx)); err != nil {
		return fmt.Errorf("namespace: unmount %s: %w", ns.mount, err)
	}
	return nil
}

// refuse is the errno of err, which the log explains: an errno alone does not say what to do.
func (ns *Namespace) refuse(what string, p place, err error) syscall.Errno {
	e := errno(err)
	switch e {
	case 0, syscall.ENOENT, syscall.EEXIST, syscall.EINTR:
	default:
		ns.log.Warn("a program's call was refused", "call", what, "volume", p.volume, "path", p.path, "errno", e, "error", err)
	}
	return e
}

// maxStacked bounds the mounts that are taken off one path.
const maxStacked = 16

// clearMount takes off what an earlier daemon mounted at path.
func clearMount(path string) error {
	for range maxStacked {
		there, err := mountedAt(path)
		if err != nil || !there {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			return fmt.Errorf("take the old mount off %s: %w", path, err)
		}
	}
	return fmt.Errorf("more than %d mounts are at %s: unmount them", maxStacked, path)
}

// mountedAt tells whether a namespace is mounted at path; it asks nobody who may be dead.
func mountedAt(path string) (bool, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		where, kind, ok := parseMount(line)
		if ok && where == path && kind == typeName {
			return true, nil
		}
	}
	return false, nil
}

// parseMount reads a line of proc_pid_mountinfo(5): the mount point and the file system's type.
func parseMount(line string) (where, kind string, ok bool) {
	front, back, ok := strings.Cut(line, " - ")
	fields, tail := strings.Fields(front), strings.Fields(back)
	const point = 4
	if !ok || len(fields) <= point || len(tail) == 0 {
		return "", "", false
	}
	return unescape.Replace(fields[point]), tail[0], true
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
