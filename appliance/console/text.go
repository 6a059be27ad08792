package console

import (
	"strings"
	"unicode"
)

// text is the state in lines of width columns at most, height of them; the alarms come before what may be left out.
func (s *state) text(width, height int) []string {
	var lines []string
	add := func(name string, values ...string) {
		for i, v := range values {
			if i > 0 {
				name = ""
			}
			for j, part := range wrap(plain(v), max(width-nameWidth, 20)) {
				if j > 0 {
					name = ""
				}
				lines = append(lines, pad(name)+part)
			}
		}
	}
	some := func(name, value string) {
		if value != "" {
			add(name, value)
		}
	}
	some("Node", s.name)
	add("Address", s.links...)
	some("lunard", s.lunard)
	for _, a := range s.alarms {
		add("  WRONG", a)
	}
	some("Cluster", s.cluster)
	some("Image", s.version)
	some("Clock", s.clock)
	some("ssh", s.ssh)
	some("Update", s.image)
	add("Volume", s.volumes...)
	add("Next", s.hints...)
	if len(lines) > height {
		lines = append(lines[:height-1], "…")
	}
	return lines
}

const nameWidth = 10

func pad(name string) string { return name + strings.Repeat(" ", max(nameWidth-len(name), 1)) }

// plain leaves out what a terminal would take for an order.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// wrap breaks at spaces where it can.
func wrap(s string, width int) (lines []string) {
	for {
		runes := []rune(s)
		if len(runes) <= width {
			return append(lines, s)
		}
		cut := strings.LastIndex(string(runes[:width+1]), " ")
		if cut <= 0 {
			cut = len(string(runes[:width]))
		}
		lines = append(lines, s[:cut])
		s = strings.TrimLeft(s[cut:], " ")
	}
}
