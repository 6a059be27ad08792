package iscsi

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// tool runs one of libiscsi's programs against the fixture.
func (f *fixture) tool(name string, args ...string) string {
	f.t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		f.t.Skipf("%s is not installed (Debian: libiscsi-bin)", name)
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		f.t.Logf("%s %v: %v", name, args, err)
	}
	return string(out)
}

func (f *fixture) url() string { return "iscsi://" + f.addr + "/" + testTarget + "/0" }

func TestLibiscsiTools(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"iscsi-ls", []string{"-s", "iscsi://" + f.addr}, testTarget},
		{"iscsi-inq", []string{f.url()}, "DIRECT_ACCESS"},
		{"iscsi-readcapacity16", []string{f.url()}, "RETURNED LOGICAL BLOCK ADDRESS:8191"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := *f
			f.t = t
			if out := f.tool(c.name, c.args...); !strings.Contains(out, c.want) {
				t.Errorf("%q is not in:\n%s", c.want, out)
			}
		})
	}
}

// allPassed is CUnit's summary with no failed assert.
var allPassed = regexp.MustCompile(`asserts +(\d+) +(\d+) +(\d+) +0 `)

// TestConformance runs a family of iscsi-test-cu, which tries what RFC 7143 says of the wire; the
// whole suite is in the end-to-end tests. LUNAR_TEST_CU names another family.
func TestConformance(t *testing.T) {
	family := os.Getenv("LUNAR_TEST_CU")
	if family == "" {
		family = "iSCSI"
	}
	f := newFixture(t)
	second := f.listen("127.0.0.1:0")
	out := f.tool("iscsi-test-cu", "--dataloss", "--verbose", "--test="+family, f.url(),
		strings.Replace(f.url(), f.addr, second, 1))
	if !allPassed.MatchString(out) {
		t.Errorf("not every test passed:\n%s", out)
	}
}
