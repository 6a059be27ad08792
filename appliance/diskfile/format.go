package diskfile

import (
	"path/filepath"
	"strings"

	"lunar/appliance/api"
)

// Format is a format of image files.
type Format string

// The formats.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
	VHD   Format = "vhd"
	VHDX  Format = "vhdx"
	VMDK  Format = "vmdk"
)

// Formats are all of them, as a usage text names them.
const Formats = "raw, qcow2, vhd, vhdx or vmdk"

// formats says how qemu-img names each format, and with which options it writes one: a VHD's size would be
// rounded to a geometry without force_size.
var formats = map[Format]struct{ driver, options string }{
	Raw:   {"raw", ""},
	QCOW2: {"qcow2", ""},
	VHD:   {"vpc", "subformat=dynamic,force_size=on"},
	VHDX:  {"vhdx", "subformat=dynamic"},
	VMDK:  {"vmdk", "subformat=monolithicSparse"},
}

// aliases are other names that people know, and the endings of files' names.
var aliases = map[string]Format{"vpc": VHD, "img": Raw, "bin": Raw, "dd": Raw, "iso": Raw, "qcow": QCOW2}

// ParseFormat reads a format's name, as --format has it.
func ParseFormat(name string) (Format, error) {
	f := Format(strings.ToLower(name))
	if f == "vpc" {
		f = VHD
	}
	if _, ok := formats[f]; !ok {
		return "", api.Errorf(api.Invalid, "%q is not a format of image files", name).WithHint("use %s", Formats)
	}
	return f, nil
}

// ByName is the format that the ending of a file's name says, or "".
func ByName(path string) Format {
	ending := strings.ToLower(strings.TrimPrefix(filepath.Ext(path), "."))
	if f, ok := aliases[ending]; ok {
		return f
	}
	if _, ok := formats[Format(ending)]; ok {
		return Format(ending)
	}
	return ""
}
