package device

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
)

// identities is where a LUN's identity may be found below its folder in sysfs, best first.
var identities = []struct {
	file, source string
	find         func(content []byte) string
}{
	{"wwid", "sysfs wwid (NVMe)", clean},
	{"device/wwid", "sysfs wwid (SCSI VPD page 83h)", clean},
	{"device/vpd_pg83", "SCSI VPD page 83h", wwidOfPage83},
	{"dm/uuid", "device-mapper UUID", clean},
	{"serial", "sysfs serial", prefixed("serial.")},
	{"device/serial", "sysfs serial", prefixed("serial.")},
	{"loop/backing_file", "path of the loop device's backing file", hashed("file.")},
	{"uuid", "sysfs uuid", prefixed("uuid.")},
}

// identify finds the identity of the device whose sysfs folder is sys. A partition is named after
// its disk. Without any other the kernel's name is used, and said to be unstable.
func identify(sys string) (wwid, source string) {
	suffix := ""
	if part := strings.TrimSpace(read(sys, "partition")); part != "" {
		suffix = "-part" + part
		sys = parent(sys)
	}
	for _, id := range identities {
		content, err := os.ReadFile(filepath.Join(sys, id.file))
		if err != nil {
			continue
		}
		if wwid := id.find(content); wwid != "" {
			return wwid + suffix, id.source
		}
	}
	return "name." + filepath.Base(resolve(sys)) + suffix, "the kernel's name, which may change: the device has no identity"
}

// parent is the folder of the disk that the partition at sys belongs to.
func parent(sys string) string { return filepath.Dir(resolve(sys)) }

func resolve(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

func read(dir, file string) string {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return string(b)
}

func (d *Device) attribute(name string) string {
	return strings.TrimSpace(read(resolve(d.sys), name))
}

// clean makes one word of what sysfs says.
func clean(b []byte) string {
	return strings.Join(strings.Fields(strings.Trim(string(b), "\x00 \n")), "_")
}

func prefixed(prefix string) func([]byte) string {
	return func(b []byte) string {
		if s := clean(b); s != "" {
			return prefix + s
		}
		return ""
	}
}

func hashed(prefix string) func([]byte) string {
	return func(b []byte) string {
		path := strings.TrimSuffix(string(b), "\n")
		if path == "" {
			return ""
		}
		sum := sha256.Sum256([]byte(path))
		return prefix + hex.EncodeToString(sum[:8])
	}
}

// Designator types of VPD page 83h, best first (SPC-5 7.7.6), and how they are written.
var designators = []struct {
	kind   byte
	prefix string
}{{3, "naa."}, {2, "eui."}, {8, ""}, {1, "t10."}}

// wwidOfPage83 is the best identity of the logical unit in a Device Identification page.
func wwidOfPage83(page []byte) string {
	if len(page) < 4 {
		return ""
	}
	end := min(len(page), 4+int(binary.BigEndian.Uint16(page[2:])))
	best, rank := "", len(designators)
	for at := 4; at+4 <= end; {
		length := int(page[at+3])
		if at+4+length > end {
			break
		}
		if r := rankOf(page[at+1]); r < rank {
			best, rank = designators[r].prefix+designator(page[at], page[at+4:at+4+length]), r
		}
		at += 4 + length
	}
	return best
}

// rankOf is the place in designators of the type in a designator's second byte; its association
// must be the logical unit.
func rankOf(flags byte) int {
	for i, d := range designators {
		if flags>>4&3 == 0 && flags&15 == d.kind {
			return i
		}
	}
	return len(designators)
}

// designator writes one in its code set: 1 is binary, others are text.
func designator(codeSet byte, b []byte) string {
	if codeSet&15 == 1 {
		return hex.EncodeToString(b)
	}
	return clean(b)
}
