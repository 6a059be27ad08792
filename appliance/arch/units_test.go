package arch

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// exposure bounds what `systemd-analyze security` says of lunard.service, in tenths. The unit explains each part of it.
// Other versions of systemd count other things.
const exposure, countedBy = "30", "systemd 252 "

var programs = regexp.MustCompile(`=/usr/s?bin/lunar(d|ctl) `)

// TestUnits has systemd read the units: it ignores a key that it does not know, and says so.
func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	files, err := filepath.Glob("../../systemd/*.*") // not the folders
	more, _ := filepath.Glob("../../systemd/appliance/*.service")
	files = append(files, more...)
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	dir, args := t.TempDir(), []string{"verify", "--man=no"}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(dir, filepath.Base(f))
		// The programs are not installed where this test runs.
		if err := os.WriteFile(at, programs.ReplaceAll(text, []byte("=/bin/true ")), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, at)
	}
	if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	version, err := exec.Command("systemd-analyze", "--version").Output()
	if err != nil || !strings.HasPrefix(string(version), countedBy) {
		t.Logf("the exposure is not judged: %v, %.20s", err, version)
		return
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold="+exposure,
		filepath.Join(dir, "lunard.service")).CombinedOutput()
	if err != nil {
		t.Errorf("lunard.service is more exposed than %s: %v\n%s", exposure, err, out)
	}
}
