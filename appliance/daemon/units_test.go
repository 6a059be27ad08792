package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnitFiles has systemd read the unit files.
func TestUnitFiles(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("needs systemd-analyze")
	}
	dir := t.TempDir()
	var paths []string
	for _, name := range []string{"lunard.service", "lunard.socket"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "systemd", name))
		must(t, err)
		// Neither the program nor its manual need be installed where this runs.
		unit := strings.ReplaceAll(string(text), "/usr/sbin/lunard", "/bin/true")
		unit = strings.ReplaceAll(unit, "man:lunard(8) man:lunarctl(8)", "https://example.org")
		unit = strings.ReplaceAll(unit, "man:lunard(8)", "https://example.org")
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(unit), 0o600))
		paths = append(paths, path)
	}
	out, err := exec.Command(analyze, append([]string{"verify"}, paths...)...).CombinedOutput()
	if err != nil || len(strings.TrimSpace(string(out))) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
}
