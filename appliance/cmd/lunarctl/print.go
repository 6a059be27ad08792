package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"lunar/appliance/api"
)

// printList prints values as a table, or as a JSON array that is never null.
func printList[T any](c *cli, values []T, header string, row func(*T) []string) error {
	if c.json {
		if values == nil {
			values = []T{}
		}
		return c.printJSON(values)
	}
	rows := make([][]string, len(values))
	for i := range values {
		rows[i] = row(&values[i])
	}
	return c.table(header, rows)
}

// printOne prints a value as JSON, or as a line for people.
func (c *cli) printOne(value any, format string, args ...any) error {
	if c.json {
		return c.printJSON(value)
	}
	_, err := fmt.Fprintf(c.out, format+"\n", args...)
	return err
}

// done confirms a call without an answer; programs have the exit code.
func (c *cli) done(format string, args ...any) error {
	if c.json {
		return nil
	}
	_, err := fmt.Fprintf(c.out, format+"\n", args...)
	return err
}

func (c *cli) printJSON(value any) error {
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// table aligns columns; an empty cell prints as a dash, so that a line always splits into as many
// fields as the header.
func (c *cli) table(header string, rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	write := func(cells []string) {
		for i, cell := range cells {
			if cell == "" {
				cells[i] = "-"
			}
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	write(strings.Fields(header))
	for _, r := range rows {
		write(r)
	}
	return w.Flush()
}

// fields prints "Key: value" lines, aligned, leaving out empty values.
func (c *cli) fields(pairs ...string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			_, _ = fmt.Fprintf(w, "%s:\t%s\n", pairs[i], pairs[i+1])
		}
	}
	return w.Flush()
}

func count(n api.Count) string { return fmt.Sprintf("%d/%s", n.IOs, api.FormatSize(int64(n.Bytes))) }

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02T15:04:05")
}

// size prints a number of bytes, nothing for one that is not known.
func size(n int64) string {
	if n == 0 {
		return ""
	}
	return api.FormatSize(n)
}
