package namespace

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// pjdfstest is where the checkout of github.com/pjd/pjdfstest is, of which the test builds the program.
const pjdfstest = "LUNAR_PJDFSTEST"

// claimed are the calls of which the namespace claims something; of the others in the suite it does nothing at all.
var claimed = []string{"ftruncate", "open", "posix_fallocate", "rename", "truncate", "unlink"}

// TestPOSIX runs pjdfstest on a node that does not coordinate, and judges what fails: by a call that the namespace does
// not claim, after one in the same file, or for good.
func TestPOSIX(t *testing.T) {
	source := os.Getenv(pjdfstest)
	if source == "" {
		t.Skip("it takes minutes: make namespace-test runs it, with a checkout of pjdfstest at " + pjdfstest)
	}
	b := newBench(t)
	suite := b.buildSuite(source)
	_, others := b.roles()
	_, err := others[0].API.CreateImage(b.ctx, api.CreateImage{Image: lab.ClusterVolume + "/posix/first", Size: 4096}) // and the folder
	check(t, err)
	var files []string
	for _, call := range claimed {
		some, err := filepath.Glob(filepath.Join(suite, "tests", call, "*.t"))
		check(t, err)
		if len(some) == 0 {
			t.Fatalf("%s has no tests of %s", suite, call)
		}
		files = append(files, some...)
	}
	all := map[string]*verdicts{}
	for _, f := range files {
		call := filepath.Base(filepath.Dir(f))
		if all[call] == nil {
			all[call] = &verdicts{}
		}
		all[call].read(t, filepath.Join(call, filepath.Base(f)), b.runSuite(others[0], f))
	}
	t.Logf("%-16s %6s %6s %6s %6s", "CALL", "PASS", "UNCLAIMED", "AFTER", "FAIL")
	for _, call := range slices.Sorted(maps.Keys(all)) {
		v := all[call]
		t.Logf("%-16s %6d %6d %6d %6d", call, v.passed, v.unclaimed, v.after, len(v.failed))
	}
	for _, call := range slices.Sorted(maps.Keys(all)) {
		for _, line := range all[call].failed {
			t.Error(line)
		}
	}
	b.clean()
}

// buildSuite copies a checkout, and compiles its program, without what its configure would need.
func (b *bench) buildSuite(source string) string {
	b.t.Helper()
	dir := b.lab.Path("pjdfstest")
	check(b.t, os.CopyFS(filepath.Join(dir, "tests"), os.DirFS(filepath.Join(source, "tests"))))
	b.run("gcc", "-w", "-D_GNU_SOURCE", "-DHAVE_SYS_SYSMACROS_H", "-DHAVE_FACCESSAT", "-DHAVE_FCHMODAT", "-DHAVE_FCHOWNAT", "-DHAVE_FSTATAT",
		"-DHAVE_LINKAT", "-DHAVE_MKDIRAT", "-DHAVE_MKFIFOAT", "-DHAVE_MKNODAT", "-DHAVE_OPENAT", "-DHAVE_POSIX_FALLOCATE", "-DHAVE_READLINKAT",
		"-DHAVE_RENAMEAT", "-DHAVE_SYMLINKAT", "-DHAVE_UTIMENSAT", "-DHAVE_STRUCT_STAT_ST_ATIM", "-DHAVE_STRUCT_STAT_ST_CTIM",
		"-DHAVE_STRUCT_STAT_ST_MTIM", "-I", b.emptyConfig(), "-o", filepath.Join(dir, "pjdfstest"), filepath.Join(source, "pjdfstest.c"))
	return dir
}

// emptyConfig is a folder with a config.h: the flags say what it would.
func (b *bench) emptyConfig() string {
	b.t.Helper()
	dir := b.lab.Path("config")
	check(b.t, os.MkdirAll(dir, 0o700))
	check(b.t, os.WriteFile(filepath.Join(dir, "config.h"), nil, 0o600))
	return dir
}

// fileLimit bounds one file of the suite.
const fileLimit = 2 * time.Minute

// runSuite runs one file of the suite in a folder of the namespace, and returns what it says.
func (b *bench) runSuite(n *lab.ClusterNode, file string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, fileLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", file)
	cmd.Dir, cmd.WaitDelay = b.at(n, "posix"), time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.Output()
	if ctx.Err() != nil {
		b.t.Errorf("%s: not within %v", file, fileLimit)
	}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		b.t.Fatalf("%s: %v", file, err)
	}
	return string(out)
}

// verdicts are how a call's assertions went.
type verdicts struct {
	passed    int
	unclaimed int // that call is not claimed, and said so
	after     int // of something that the one before would have made
	failed    []string
}

// assertion is a line of TAP, as misc.sh writes it.
var assertion = regexp.MustCompile(`^(ok|not ok) \d+(?: - tried '(.*)', expected (.*), got (.*))?`)

// unclaimed are the other things that docs/namespace.md says there are not.
var unclaimed = []*regexp.Regexp{
	regexp.MustCompile(`expected regular,\d+, got regular,0600$`),  // modes but 0600
	regexp.MustCompile(`tried 'f?truncate \S+ 123'.* got EINVAL$`), // sizes that are no multiple of a sector
}

func (v *verdicts) read(t *testing.T, file, tap string) {
	t.Helper()
	missing := false // what an unclaimed call would have made
	lines := bufio.NewScanner(strings.NewReader(tap))
	for lines.Scan() {
		m := assertion.FindStringSubmatch(lines.Text())
		switch {
		case m == nil:
		case m[1] == "ok":
			v.passed++
		case cmp.Or(m[4], "EOPNOTSUPP") == "EOPNOTSUPP":
			v.unclaimed++
			missing = true
		case missing, m[4] == "ENOENT" && strings.Contains(m[2], "/"): // the suite's shell could make no folder
			v.after++
		case slices.ContainsFunc(unclaimed, func(r *regexp.Regexp) bool { return r.MatchString(lines.Text()) }):
			v.unclaimed++
			missing = true
		default:
			v.failed = append(v.failed, fmt.Sprintf("%s: %s", file, lines.Text()))
		}
	}
}
