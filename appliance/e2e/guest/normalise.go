package guest

import (
	"regexp"
	"strings"
)

// lineLimit bounds a result's line, in bytes, so that the table stays readable.
const lineLimit = 420

// varying is what differs between runs and targets without meaning anything; the order matters.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`iqn\.2026-01\.test\.guest:([ab])\b`), "initiator $1"},
	{regexp.MustCompile(`iqn\.[0-9a-z.:-]+`), "IQN"},
	{regexp.MustCompile(`\b(10\.0\.2\.2|127\.0\.0\.1):\d+`), "PORTAL"},
	{regexp.MustCompile(`/dev/sd[a-z]+`), "DISK"},
	{regexp.MustCompile(`\bsd[a-z]+\b`), "DISK"},
	{regexp.MustCompile(`\[\d+:\d+:\d+:(\d+)\]`), "[LUN $1]"},
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\b(naa\.|t10\.|0x)?[0-9a-f]{16,}\b`), "ID"},
	{regexp.MustCompile(`\b\d+(\.\d+)? ?(s|ms|MB/s|MiB/s|kB/s)\b`), "#"},
	{regexp.MustCompile(`[ \t]+`), " "},
}

// normalise makes one comparable line of a command's output: the kept lines, without what varies between runs.
func normalise(output string, keep *regexp.Regexp) string {
	var kept []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line == "" || keep != nil && !keep.MatchString(line) {
			continue
		}
		for _, v := range varying {
			line = v.pattern.ReplaceAllString(line, v.with)
		}
		kept = append(kept, line)
	}
	return shorten(strings.Join(kept, "; "))
}

func shorten(line string) string {
	if len(line) <= lineLimit {
		return line
	}
	return strings.ToValidUTF8(line[:lineLimit], "") + " …"
}
