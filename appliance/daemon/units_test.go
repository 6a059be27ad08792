package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
)

const unitFile = "../../systemd/lunard.service"

// unitLines is what lunard.service sets a key to, line by line.
func unitLines(t *testing.T, key string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(unitFile)
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), key+"="); found {
			lines = append(lines, value)
		}
	}
	return lines
}

// unitValues is every value of a key of lunard.service, in order.
func unitValues(t *testing.T, key string) []string {
	t.Helper()
	return strings.Fields(strings.Join(unitLines(t, key), " "))
}

// TestUnitLetsItWork runs lunard with the unit's capabilities alone, and looks whether the unit lets all
// system calls through that it and mkfs make.
func TestUnitLetsItWork(t *testing.T) {
	for _, tool := range []string{"systemd-analyze", "strace", "setpriv"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	dev := disk(t)
	p := newProcess(t)
	var kept []string
	for _, c := range unitValues(t, "CapabilityBoundingSet") {
		kept = append(kept, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	seen := filepath.Join(p.dir, "calls")
	p.start(nil, nil, "setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all,"+strings.Join(kept, ","),
		"strace", "-D", "-f", "-qq", "-c", "-o", seen)
	c := p.client()
	defer c.Close()
	ctx := t.Context()
	_, err := c.AddVolume(ctx, api.AddVolume{Device: dev, Format: "ext4", Name: "Old"})
	must(t, err)
	must(t, c.EjectVolume(ctx, "Old"))
	_, err = c.AddVolume(ctx, api.AddVolume{Device: dev, Format: "xfs", Force: true})
	must(t, err)
	_, err = c.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 64 << 20, Thick: true})
	must(t, err)
	_, err = c.CreateTarget(ctx, iqn)
	must(t, err)
	_, err = c.Map(ctx, iqn, api.Map{Image: "Volume1/disk.img"})
	must(t, err)
	must(t, qemuIO(t, p.portal, "", "write -P 1 0 1M", "flush", "discard 0 1M"))
	must(t, c.RedirectVolume(ctx, "Volume1", true))
	must(t, qemuIO(t, p.portal, "", "write -P 1 0 1M", "read -P 1 0 1M"))
	must(t, p.cmd.Process.Signal(unix.SIGTERM))
	must(t, p.end(20*time.Second))

	allowed := allowedCalls(t)
	eventually(t, 10*time.Second, "strace has ended", func() bool { return len(callsIn(seen)) > 0 })
	for _, call := range callsIn(seen) {
		if !allowed[call] {
			t.Errorf("the unit forbids %s", call)
		}
	}
}

// allowedCalls are the system calls that the unit's filter lets through.
func allowedCalls(t *testing.T) map[string]bool {
	t.Helper()
	allowed := map[string]bool{}
	for _, line := range unitLines(t, "SystemCallFilter") {
		groups, forbids := strings.CutPrefix(line, "~")
		for group := range strings.FieldsSeq(groups) {
			for _, call := range callsOf(t, group) {
				allowed[call] = !forbids
			}
		}
	}
	return allowed
}

// callsOf are the system calls of a group, and of the groups in it; a call is its own group.
func callsOf(t *testing.T, group string) (calls []string) {
	t.Helper()
	if !strings.HasPrefix(group, "@") {
		return []string{group}
	}
	out, err := exec.Command("systemd-analyze", "syscall-filter", group).Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		switch name := strings.TrimSpace(line); {
		case name == "", name == group, strings.HasPrefix(name, "#"):
		case strings.HasPrefix(name, "@"):
			calls = append(calls, callsOf(t, name)...)
		default:
			calls = append(calls, name)
		}
	}
	return calls
}

// callsIn are the system calls in strace's summary.
func callsIn(path string) (calls []string) {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[0] == "%" || strings.HasPrefix(fields[0], "-") || fields[len(fields)-1] == "total" {
			continue
		}
		calls = append(calls, fields[len(fields)-1])
	}
	return calls
}
