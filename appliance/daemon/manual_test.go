package daemon

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestManual has the manual name every option of lunard.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../systemd/deb/lunard.8.md")
	must(t, err)
	var help bytes.Buffer
	_, _ = parse([]string{"--help"}, &help)
	options := regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(help.String(), -1)
	if len(options) == 0 {
		t.Fatal(help.String())
	}
	for _, o := range options {
		if !strings.Contains(string(page), "**--"+o[1]+"**") {
			t.Errorf("the manual has no --%s", o[1])
		}
	}
}
