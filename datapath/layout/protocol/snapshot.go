package protocol

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of a snapshot.
const (
	MaxSnapshotImages = 256 // that one snapshot has
	MaxSnapshotName   = 64  // bytes
)

// ErrSnapshotName means a name that no snapshot can have.
var ErrSnapshotName = fmt.Errorf("not a snapshot's name: %w", unix.EINVAL)

// CheckSnapshotName tells what is wrong with a snapshot's name.
func CheckSnapshotName(name string) error {
	bad := func(r rune) bool {
		return !(r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	if name != "" && len(name) <= MaxSnapshotName && !strings.HasPrefix(name, ".") && !strings.ContainsFunc(name, bad) {
		return nil
	}
	return fmt.Errorf("%q is %w: use 1 to %d letters, digits, '-', '_' and '.', not beginning with '.'", name, ErrSnapshotName, MaxSnapshotName)
}

// snapshotRoot has the snapshots of a volume, NAME/PATH each.
const snapshotRoot = ".lunar/snapshots/"

// SnapshotPath is the path by which an image of a snapshot is attached; it is read-only then. No image has such a path.
func SnapshotPath(name, image string) string { return snapshotRoot + name + "/" + image }

// CutSnapshotPath is the inverse of SnapshotPath; ok is false for the path of an image.
func CutSnapshotPath(path string) (name, image string, ok bool) {
	rest, ok := strings.CutPrefix(path, snapshotRoot)
	if ok {
		name, image, ok = strings.Cut(rest, "/")
	}
	if !ok {
		return "", "", false
	}
	return name, image, true
}

// Snapshot is one image as it was when a snapshot was taken. The images of one snapshot are as they were
// at one instant.
type Snapshot struct {
	Name      string  `json:"name"`      // of the snapshot, unique on its volume
	Path      string  `json:"path"`      // of the image, at that time
	ID        ImageID `json:"id"`        // of its file
	Set       ImageID `json:"set"`       // of the whole snapshot
	Size      int64   `json:"size"`      // bytes
	Exclusive int64   `json:"exclusive"` // bytes on the volume that no other file has
	Taken     int64   `json:"taken"`     // nanoseconds since 1970
	Hold      int64   `json:"hold"`      // nanoseconds for which I/O was held
}
