package api

import (
	"runtime"
	"runtime/debug"
)

// release is set by the linker: -X lunar/appliance/api.release=1.2.3.
var release = "devel"

// BuildVersion is the version of the running binary.
func BuildVersion() Version {
	v := Version{Version: release, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}
