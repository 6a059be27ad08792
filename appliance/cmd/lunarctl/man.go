//go:build man

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Built with the tag man, lunarctl is the program that makes the manual: `go run -tags man ./appliance/cmd/lunarctl DIR
// PAGE.md...` writes a page per command and one per Markdown file. SOURCE_DATE_EPOCH dates them.
func main() {
	if err := writeManual(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

func writeManual(dir string, pages []string) error {
	root := (&cli{in: os.Stdin, out: os.Stdout, err: os.Stderr}).root()
	root.InitDefaultCompletionCmd()
	if err := root.PersistentFlags().Set("socket", "/run/lunar/lunard.sock"); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	root.Long += "\n\n" + conventions
	forEach(root, func(c *cobra.Command) {
		c.DisableFlagsInUseLine = true
		c.Long = strings.ReplaceAll(c.Long, "\t", "    ")
	})
	header := &doc.GenManHeader{Section: "1", Source: "Lunar", Manual: "Lunar"}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		out := filepath.Join(dir, strings.TrimSuffix(filepath.Base(page), ".md"))
		if err := os.WriteFile(out, md2man.Render(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

const conventions = "Output is a table for people, with --json for programs. Sizes are written as 10GiB. The exit status is 0 when all went " +
	"well, 1 when something was refused or failed, 2 for wrong usage, 3 when the node cannot be reached. A command works on any node " +
	"of a cluster. One that would lose data refuses without --force and says what is there."

func forEach(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, sub := range c.Commands() {
		forEach(sub, fn)
	}
}
