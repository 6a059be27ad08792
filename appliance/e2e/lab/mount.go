package lab

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountXFS formats device and mounts it below the lab's folder; Close unmounts it.
func (l *Lab) MountXFS(ctx context.Context, device *Loop, name string) (*Mount, error) {
	if _, err := Run(ctx, "mkfs.xfs", "-q", "-f", device.Path); err != nil {
		return nil, err
	}
	return l.Mount(device.Path, name, "xfs", 0)
}

// Mount is a mounted file system.
type Mount struct {
	Path string

	mounted bool
}

// Mount mounts device with the plain kernel in a new folder; flags are mount(2)'s.
func (l *Lab) Mount(device, name, fsType string, flags uintptr) (*Mount, error) {
	m := &Mount{Path: l.Path(name)}
	if err := os.MkdirAll(m.Path, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount(device, m.Path, fsType, flags, ""); err != nil {
		return nil, fmt.Errorf("mount %s on %s: %w", device, m.Path, err)
	}
	m.mounted = true
	l.own(m.Close)
	return m, nil
}

// Close unmounts; a second call does nothing.
func (m *Mount) Close() error {
	if !m.mounted {
		return nil
	}
	m.mounted = false
	if err := unix.Unmount(m.Path, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", m.Path, err)
	}
	return nil
}
