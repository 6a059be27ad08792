package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Verdict is what became of one test.
type Verdict string

// The verdicts; Crash, Hang and Defect count as failures.
const (
	Passed  Verdict = "passed"
	Failed  Verdict = "FAILED"
	Skipped Verdict = "skipped"
	Crash   Verdict = "CRASH"
	Hang    Verdict = "HANG"
	Defect  Verdict = "DEFECT" // the test's own: no target passes it
)

// Outcome is a verdict and, unless the test passed, why.
type Outcome struct {
	Verdict Verdict
	Reason  string
}

var (
	// summaryLine is CUnit's count of tests: total, ran, passed, failed, inactive.
	summaryLine = regexp.MustCompile(`(?m)^ +tests +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$`)
	// assertLine is one failed assertion: "    1. file.c:98  - CU_ASSERT(x)"; the clean-up after the
	// test may write on in the same line.
	assertLine  = regexp.MustCompile(`(?m)^ +\d+\. (\S+:\d+ .*?)(?: {4}\[[A-Z]+\].*)?$`)
	skippedLine = regexp.MustCompile(`\[SKIPPED\] *(.*)`)
	failedLine  = regexp.MustCompile(`\[FAILED\] *(.*)`)
)

// judge reads the output of iscsi-test-cu for a single test. CUnit itself knows no skipping and
// calls a test that skipped passed; a test that says both SKIPPED and FAILED has failed.
func judge(output string, exit error) Outcome {
	counts := summaryLine.FindStringSubmatch(output)
	if counts == nil {
		return Outcome{Failed, "no summary: " + lastLine(output)}
	}
	if ran := number(counts[2]); ran != 1 {
		return Outcome{Failed, fmt.Sprintf("%d tests ran instead of one", ran)}
	}
	switch skipped := skippedLine.FindStringSubmatch(output); {
	case number(counts[4]) > 0:
		return Outcome{Failed, why(output)}
	case exit != nil:
		return Outcome{Failed, exit.Error()}
	case skipped != nil:
		return Outcome{Skipped, skipped[1]}
	}
	return Outcome{Verdict: Passed}
}

// why is the first assertion that failed, then the test's last message; earlier messages may come
// from its preparation, and those behind the assertion come from its clean-up.
func why(output string) string {
	var reasons []string
	if at := assertLine.FindStringSubmatchIndex(output); at != nil {
		reasons = append(reasons, strings.TrimSpace(output[at[2]:at[3]]))
		output = output[:at[0]]
	}
	if all := failedLine.FindAllStringSubmatch(output, -1); all != nil {
		reasons = append(reasons, strings.TrimSpace(all[len(all)-1][1]))
	}
	return strings.Join(reasons, "; ")
}

// number reads digits that a pattern has matched.
func number(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return -1
	}
	return n
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// Tally counts outcomes.
type Tally struct {
	Passed, Failed, Skipped int
	Defects                 int // of Failed
}

func (t *Tally) add(v Verdict) {
	switch v {
	case Passed:
		t.Passed++
	case Skipped:
		t.Skipped++
	case Defect:
		t.Defects++
		t.Failed++
	default:
		t.Failed++
	}
}

// String is the run's closing line.
func (t Tally) String() string {
	return fmt.Sprintf("conformance: %d passed, %d failed, %d skipped", t.Passed, t.Failed, t.Skipped)
}
