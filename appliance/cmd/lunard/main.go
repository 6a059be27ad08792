// Command lunard is the daemon of a Lunar storage node.
package main

import (
	"os"

	"lunar/appliance/daemon"
)

func main() { os.Exit(daemon.Command(os.Args[1:], os.Stdout, os.Stderr)) }
