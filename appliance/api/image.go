package api

import (
	"strings"
	"time"
)

// CreateImage makes an image, or with From a clone of one.
type CreateImage struct {
	Image string `json:"image"`           // VOLUME/PATH
	Size  int64  `json:"size,omitempty"`  // bytes
	Thick bool   `json:"thick,omitempty"` // allocate everything now
	From  string `json:"from,omitempty"`  // VOLUME/PATH to clone; Size and Thick are then the source's
}

// Image is a raw file on a volume.
type Image struct {
	Volume    string    `json:"volume"`
	Path      string    `json:"path"`
	Size      int64     `json:"size"`      // bytes that a guest sees
	Allocated int64     `json:"allocated"` // bytes that it occupies
	Mapped    []Mapping `json:"mapped,omitempty"`
	Modified  time.Time `json:"modified"`
}

// Name is VOLUME/PATH.
func (i *Image) Name() string { return i.Volume + "/" + i.Path }

// Mapping is a place where an image is exported.
type Mapping struct {
	Target string `json:"target"`
	LUN    uint16 `json:"lun"`
}

// ChangeImage resizes or renames an image; exactly one field besides Force is set.
type ChangeImage struct {
	Size  int64  `json:"size,omitempty"` // bytes
	Name  string `json:"name,omitempty"` // new VOLUME/PATH, on the same volume
	Force bool   `json:"force,omitempty"`
}

// SplitImage cuts VOLUME/PATH at its first slash.
func SplitImage(name string) (volume, path string, err error) {
	volume, path, ok := strings.Cut(name, "/")
	if !ok || volume == "" || path == "" {
		return "", "", Errorf(Invalid, "%q does not name an image", name).WithHint("write it as VOLUME/PATH, such as Volume1/web.img")
	}
	return volume, path, nil
}
