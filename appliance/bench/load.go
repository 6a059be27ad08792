package main

import (
	"fmt"
	"strconv"
)

// Load is what the client does to the LUN.
type Load struct {
	Write, Random bool
	Block         int // bytes per command
	Depth         int // commands under way per connection
	Connections   int
	LUNs          int // LUNs that share the commands; 0 is 1
}

// loads are the issue's: 4 KiB random at depth 1 and 32, 128 KiB sequential at depth 16.
func loads(connections []int) []Load {
	var all []Load
	for _, conns := range connections {
		for _, shape := range []Load{
			{Random: true, Block: 4 << 10, Depth: 1},
			{Random: true, Block: 4 << 10, Depth: 32},
			{Random: false, Block: 128 << 10, Depth: 16},
		} {
			for _, write := range []bool{false, true} {
				shape.Write, shape.Connections = write, conns
				all = append(all, shape)
			}
		}
	}
	return all
}

// String names the load, as in "4k random read QD32 ×8".
func (l Load) String() string {
	return fmt.Sprintf("%dk %s %s QD%d ×%d", l.Block>>10, l.order(), l.verb(), l.Depth, l.Connections)
}

func (l Load) verb() string {
	if l.Write {
		return "write"
	}
	return "read"
}

func (l Load) order() string {
	if l.Random {
		return "random"
	}
	return "sequential"
}

// arguments are those of the client; seconds 0 fills the LUN once.
func (l Load) arguments(url string, seconds float64) []string {
	return []string{url, l.verb(), l.order(), strconv.Itoa(l.Block), strconv.Itoa(l.Depth),
		strconv.Itoa(l.Connections), strconv.FormatFloat(seconds, 'f', -1, 64), strconv.Itoa(max(l.LUNs, 1))}
}
