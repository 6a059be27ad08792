package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Column is one target's results.
type Column struct {
	Name    string // the table's heading
	Kernel  string // of the guest
	Results []Result
}

// Failed counts the results that were not as wanted.
func (c Column) Failed() int { return len(c.Complaints()) }

// Save keeps the column as JSON in dir, for a later table.
func (c Column) Save(dir string) error {
	text, err := json.MarshalIndent(c, "", " ")
	if err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "results-"+c.Name+".json"), text, 0o644)
}

// LoadColumn reads what Save kept; a column that was never saved is empty.
func LoadColumn(dir, name string) (Column, error) {
	text, err := os.ReadFile(filepath.Join(dir, "results-"+name+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Column{Name: name}, nil
	}
	if err != nil {
		return Column{}, fmt.Errorf("load results: %w", err)
	}
	var c Column
	if err := json.Unmarshal(text, &c); err != nil {
		return Column{}, fmt.Errorf("load results of %s: %w", name, err)
	}
	return c, nil
}

// Update puts the results of a later run in the place of those of the same commands, and forgets commands that left the list.
func (c *Column) Update(later Column, list []Case) {
	c.Kernel = later.Kernel
	c.Results = slices.DeleteFunc(c.Results, func(r Result) bool {
		return !slices.ContainsFunc(list, func(known Case) bool { return known.Name() == r.Command })
	})
	for _, r := range later.Results {
		i := slices.IndexFunc(c.Results, func(old Result) bool { return old.Command == r.Command })
		if i < 0 {
			c.Results = append(c.Results, r)
			continue
		}
		c.Results[i] = r
	}
}

// Table renders the columns side by side as Markdown, a part per group, in the list's order. A result that was not as
// wanted is marked with ✗.
func Table(list []Case, columns []Column) string {
	var b strings.Builder
	heading := ""
	for _, c := range list {
		if c.Group != heading {
			heading = c.Group
			startTable(&b, heading, columns)
		}
		fmt.Fprintf(&b, "| `%s` |", strings.ReplaceAll(c.Name(), "|", `\|`))
		for _, column := range columns {
			fmt.Fprintf(&b, " %s |", cell(column.text(c)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func startTable(b *strings.Builder, heading string, columns []Column) {
	fmt.Fprintf(b, "\n### %s\n\n| command |", heading)
	for _, column := range columns {
		fmt.Fprintf(b, " %s |", column.Name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
}

func (c Column) text(of Case) string {
	for _, r := range c.Results {
		switch {
		case r.Command != of.Name():
		case r.Passed:
			return r.String()
		default:
			return "✗ " + r.String()
		}
	}
	return "not run"
}

// cell keeps a text from ending its table cell.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(text)
}

// Marks between which Insert puts the table.
const (
	tableBegin = "<!-- results: made by make guest-test -->"
	tableEnd   = "<!-- end of results -->"
)

// ErrNoMarks means that a page lacks the lines between which the table belongs.
var ErrNoMarks = errors.New("no place for the table")

// Insert returns the page with the table between its marks replaced.
func Insert(page []byte, table string) ([]byte, error) {
	before, rest, begun := bytes.Cut(page, []byte(tableBegin))
	_, after, ended := bytes.Cut(rest, []byte(tableEnd))
	if !begun || !ended {
		return nil, fmt.Errorf("%w: put the lines %q and %q into the page", ErrNoMarks, tableBegin, tableEnd)
	}
	return fmt.Appendf(nil, "%s%s\n%s%s%s", before, tableBegin, table, tableEnd, after), nil
}

// Complaints are the results that were not as wanted, a line each.
func (c Column) Complaints() []string {
	var lines []string
	for _, r := range c.Results {
		if !r.Passed {
			lines = append(lines, r.Command+" => "+r.String())
		}
	}
	return lines
}
