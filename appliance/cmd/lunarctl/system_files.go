package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"lunar/appliance/namespace/publish"
)

// filesRecord tells where the machine sees the volumes as files, while lunard.service runs.
const filesRecord = "/run/lunar/files"

// systemFiles is for lunard.service, whose own mounts the machine does not see.
func (c *cli) systemFiles() *cobra.Command {
	cmd := noun("files", "The volumes as files, for the machine",
		c.verb("show PID", "Show the machine what lunard has mounted in its sandbox", 1, c.showFiles),
		c.verb("hide", "Take it away", 0, func(context.Context, []string) error { return publish.Hide(filesRecord) }))
	cmd.Hidden = true
	return cmd
}

func (c *cli) showFiles(_ context.Context, args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil || pid <= 0 {
		return usagef("%q is no process", args[0])
	}
	path, err := publish.Show(pid, filesRecord)
	if err != nil || path == "" {
		return err
	}
	_, err = fmt.Fprintln(c.out, "the volumes are files below", path)
	return err
}
