package guest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/guest"
	"lunar/appliance/e2e/lab"
)

// TestList holds the list to its form: each command has its own name, and bash can read it.
func TestList(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range guest.List() {
		if seen[c.Name()] {
			t.Errorf("two commands are called %q", c.Name())
		}
		seen[c.Name()] = true
		if c.Group == "" {
			t.Errorf("%q belongs to no group", c.Name())
		}
		if out, err := exec.Command("bash", "-n", "-c", c.Shell).CombinedOutput(); err != nil {
			t.Errorf("%q: %s", c.Name(), out)
		}
	}
}

// TestScriptsParse keeps what is sent into the guest readable for bash.
func TestScriptsParse(t *testing.T) {
	for _, pattern := range []string{"scripts/*.sh", "image/*.sh", "image/init"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			if out, err := exec.Command("bash", "-n", file).CombinedOutput(); err != nil {
				t.Errorf("%s: %s", file, out)
			}
		}
	}
}

func TestMachineOptionsValidate(t *testing.T) {
	for _, o := range []guest.MachineOptions{{}, {Drives: []guest.Drive{{File: "x"}}, MiB: 64}} {
		if err := o.Validate(); err == nil {
			t.Errorf("%+v is valid", o)
		}
	}
}

// TestBootFromISCSI boots a machine from a LUN of tgtd: what is tested is this package's own scenario.
func TestBootFromISCSI(t *testing.T) {
	ctx, s := scenario(t)
	target, err := guest.StartTGTD(ctx, s.Lab, guest.BootBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := s.Boot(ctx, guest.URL(target, 1)); err != nil {
		t.Fatal(err)
	}
}

// TestJudgeTellsGoodFromBad runs a part of the list against a target that does not notice when its file grows.
func TestJudgeTellsGoodFromBad(t *testing.T) {
	ctx, s := scenario(t)
	target, err := guest.StartTGTD(ctx, s.Lab, guest.LUNBytes, guest.LUNBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	s.Only = regexp.MustCompile(`^sg_turs -v|oflag=direct|^LUN 2 grown`)
	column, err := s.JudgeHost(ctx, "tgtd", target)
	if err != nil {
		t.Fatal(err)
	}
	complaints := column.Complaints()
	if len(column.Results) != 3 || len(complaints) != 1 || !strings.HasPrefix(complaints[0], "LUN 2 grown") {
		t.Errorf("%d results, complaints: %q", len(column.Results), column.Complaints())
	}
}

// scenario opens a lab for a test that boots machines, or skips it.
func scenario(t *testing.T) (context.Context, guest.Scenario) {
	t.Helper()
	if os.Getenv("LUNAR_GUEST") == "" {
		t.Skip("boots machines in software emulation, which takes minutes: set LUNAR_GUEST to a folder for the guest's image")
	}
	if os.Geteuid() != 0 {
		t.Skip("building a guest and serving disks need root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	image, err := guest.BuildImage(ctx, os.Getenv("LUNAR_GUEST"), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, guest.Scenario{Image: image, Lab: l, JudgeOptions: guest.JudgeOptions{Log: t.Output()}}
}

func TestInsert(t *testing.T) {
	const begin, end = "<!-- results: made by make guest-test -->", "<!-- end of results -->"
	page, err := guest.Insert([]byte("before\n"+begin+"\nold\n"+end+"\nafter\n"), "new\n")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(page), "before\n"+begin+"\nnew\n"+end+"\nafter\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := guest.Insert([]byte("no marks"), "new"); !errors.Is(err, guest.ErrNoMarks) {
		t.Errorf("a page without marks: %v", err)
	}
}

func TestTable(t *testing.T) {
	list := []guest.Case{{Group: "One", Shell: "a | b"}, {Group: "Two", Shell: "long", Title: "c"}}
	columns := []guest.Column{{Name: "LIO", Results: []guest.Result{
		{Command: "a | b", Line: "x | y", Passed: true},
		{Command: "c", Status: 5},
	}}, {Name: "Lunar"}}
	want := "\n### One\n\n| command | LIO | Lunar |\n|---|---|---|\n| `a \\| b` | 0: x \\| y | not run |\n" +
		"\n### Two\n\n| command | LIO | Lunar |\n|---|---|---|\n| `c` | ✗ 5 | not run |\n"
	if got := guest.Table(list, columns); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestColumnSurvivesAFile(t *testing.T) {
	dir := t.TempDir()
	empty, err := guest.LoadColumn(dir, "LIO")
	if err != nil || empty.Name != "LIO" || len(empty.Results) != 0 {
		t.Fatalf("nothing saved: %+v, %v", empty, err)
	}
	saved := guest.Column{Name: "LIO", Kernel: "6.1", Results: []guest.Result{{Command: "a", Status: 3, Line: "x"}, {Command: "left"}}}
	if err := saved.Save(dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := guest.LoadColumn(dir, "LIO")
	if err != nil || loaded.Failed() != 2 || loaded.Complaints()[0] != "a => 3: x" {
		t.Errorf("%+v, %v", loaded, err)
	}
	loaded.Update(guest.Column{Kernel: "6.2", Results: []guest.Result{{Command: "a", Passed: true}, {Command: "b"}}},
		[]guest.Case{{Shell: "a"}, {Shell: "b"}})
	if len(loaded.Results) != 2 || !loaded.Results[0].Passed || loaded.Results[1].Command != "b" || loaded.Kernel != "6.2" {
		t.Errorf("after an update: %+v", loaded)
	}
}
