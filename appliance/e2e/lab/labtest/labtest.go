// Package labtest gives tests their labs: lunard and lunarctl once for a package, and a folder for each test, which is
// cleaned up after it.
//
// A package's TestMain calls Main. What must end before the lab does is registered with t.Cleanup after Open.
package labtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

// binEnv names the folder of lunard and lunarctl, as lab.Programs has it.
const binEnv = "LUNAR_BIN"

// Main runs a package's tests with lunard and lunarctl built, unless no test would use them, and ends the process.
func Main(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if why() != "" {
		return m.Run()
	}
	dir, done, err := lab.Programs(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer done()
	if err := os.Setenv(binEnv, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// why says what keeps tests from having a lab.
func why() string {
	switch {
	case testing.Short():
		return "end-to-end tests are left out with -short"
	case os.Geteuid() != 0:
		return "end-to-end tests need root: network namespaces, loop devices, mounts"
	}
	return ""
}

// Open gives the test a lab, and a context that ends after limit; it skips the test where there are no means, or one of the
// tools is missing. After the test the context ends, then the lab; of a test that failed the ends of all logs are printed.
func Open(t *testing.T, limit time.Duration, tools ...string) (context.Context, *lab.Lab) {
	t.Helper()
	if text := why(); text != "" {
		t.Skip(text)
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: run appliance/e2e/packages.sh client", err)
		}
	}
	dir, err := os.MkdirTemp("", "e2e") // t.TempDir's path is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Open(dir, os.Getenv(binEnv))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(func() {
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
		showLogs(t, dir)
		_ = os.RemoveAll(dir)
	})
	return ctx, l
}

// showLogs prints the end of each program's output if the test failed, and keeps all of it in the folder LUNAR_KEEP.
func showLogs(t *testing.T, dir string) {
	const most = 12 << 10
	keep := os.Getenv("LUNAR_KEEP")
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		if keep != "" {
			name := strings.ReplaceAll(t.Name(), "/", "-") + "-" + filepath.Base(path)
			_ = os.WriteFile(filepath.Join(keep, name), text, 0o600)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(path), text[max(0, len(text)-most):])
		}
	}
}
