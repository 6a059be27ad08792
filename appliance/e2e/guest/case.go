package guest

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// caseLimit bounds a command in the guest that sets no limit of its own.
const caseLimit = 90 * time.Second

// Case is one command of the list.
type Case struct {
	Group string
	Shell string         // bash, with scripts/guest.sh sourced and DEV, PEER, COPY, PORTAL and IQN set
	Title string         // stands in the table where Shell is too long for it
	Keep  *regexp.Regexp // the lines of the output that matter; nil keeps all
	Want  *regexp.Regexp // matched against Result.String; nil wants exit status 0
	Limit time.Duration  // 0 is caseLimit
	Host  func(context.Context, Target) error
	// Host, if any, runs on the target's side before the command.
}

// Name is how the table and a filter know the case.
func (c Case) Name() string {
	if c.Title != "" {
		return c.Title
	}
	return c.Shell
}

// Result is what one command did against one target.
type Result struct {
	Group   string
	Command string
	Status  int    // exit status; StatusTimeout if the guest's timeout ended it
	Line    string // the output that matters, normalised, on one line
	Output  string // all of it, raw
	Passed  bool
}

// String is "status" or "status: line".
func (r Result) String() string {
	if r.Line == "" {
		return fmt.Sprint(r.Status)
	}
	return fmt.Sprintf("%d: %s", r.Status, r.Line)
}

var succeeded = regexp.MustCompile(`^0($|:)`)

func (c Case) judge(status int, output string) Result {
	want := c.Want
	if want == nil {
		want = succeeded
	}
	r := Result{Group: c.Group, Command: c.Name(), Status: status, Line: normalise(output, c.Keep), Output: output}
	r.Passed = want.MatchString(r.String())
	return r
}

// do runs the case; an error means that machine or target are lost, not that the command failed.
func (c Case) do(ctx context.Context, m *Machine, t Target) (Result, error) {
	if c.Host != nil {
		if err := c.Host(ctx, t); err != nil {
			return c.judge(-1, err.Error()), nil
		}
	}
	limit := c.Limit
	if limit == 0 {
		limit = caseLimit
	}
	status, output, err := m.Run(ctx, limit, c.Shell)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w: %s", c.Name(), err, strings.TrimSpace(output))
	}
	return c.judge(status, output), nil
}

// group gives the cases of one subject their heading.
func group(name string, cases ...Case) []Case {
	for i := range cases {
		cases[i].Group = name
	}
	return cases
}

// lines keeps what matches the expression.
func lines(expression string) *regexp.Regexp { return regexp.MustCompile(expression) }

// exit wants one of the statuses, such as "5|9".
func exit(statuses string) *regexp.Regexp {
	return regexp.MustCompile(`^(` + statuses + `)($|:)`)
}

// anyExit accepts every result: the standard leaves the feature to the target.
var anyExit = regexp.MustCompile(``)
