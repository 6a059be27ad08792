package main

import (
	"errors"
	"strings"
	"testing"
)

// summary is the tail of a CUnit run, as iscsi-test-cu 1.19 prints it.
func summary(ran, passed, failed string) string {
	return `

Run Summary:    Type  Total    Ran Passed Failed Inactive
              suites      1      1    n/a      0        0
               tests      ` + strings.Join([]string{ran, ran, passed, failed}, "      ") + `        0
             asserts      4      4      0      4      n/a

Elapsed time =    0.000 seconds
Tests completed with return value: 0
`
}

func TestJudge(t *testing.T) {
	const assert = "\n    1. test_iscsi_datasn_invalid.c:98  - CU_ASSERT_NOT_EQUAL(ret,0)\n"
	cases := []struct {
		name, output string
		exit         error
		want         Outcome
	}{
		{"passed", "  Test: Standard ...passed" + summary("1", "1", "0"), nil, Outcome{Verdict: Passed}},
		{"skipped", "  Test: Simple ...    [SKIPPED] COMPAREANDWRITE is not implemented.\npassed" + summary("1", "1", "0"), nil,
			Outcome{Skipped, "COMPAREANDWRITE is not implemented."}},
		{"failed", "  Test: DataSn ...FAILED" + assert + summary("1", "0", "1"), errors.New("exit status 1"),
			Outcome{Failed, "test_iscsi_datasn_invalid.c:98  - CU_ASSERT_NOT_EQUAL(ret,0)"}},
		{"failed after a skip", "[FAILED] early\n[SKIPPED] a\n[FAILED] b\nFAILED" + assert + summary("1", "0", "1"), nil,
			Outcome{Failed, "test_iscsi_datasn_invalid.c:98  - CU_ASSERT_NOT_EQUAL(ret,0); b"}},
		{"failed, then cleaned up", "FAILED\n    1. a.c:9  - CU_ASSERT_EQUAL(b,1)    [FAILED] PRIN command\n    [FAILED] PRIN command" + summary("1", "0", "1"),
			nil, Outcome{Failed, "a.c:9  - CU_ASSERT_EQUAL(b,1)"}},
		{"passed but exit status", "passed" + summary("1", "1", "0"), errors.New("exit status 3"), Outcome{Failed, "exit status 3"}},
		{"unknown test", summary("0", "0", "0"), nil, Outcome{Failed, "0 tests ran instead of one"}},
		{"no login", "Login Failed.\nFailed to connect to SCSI device 0\n", errors.New("exit status 255"),
			Outcome{Failed, "no summary: Failed to connect to SCSI device 0"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := judge(c.output, c.exit); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestExcuse(t *testing.T) {
	const name = "ALL.iSCSITMF.LUNResetSimpleAsync"
	own := "test_async_lu_reset_simple.c:157  - " + defects[name].assertion
	for _, c := range []struct {
		name, reason string
		given, want  Verdict
	}{
		{name, own, Failed, Defect},
		{name, own, Hang, Hang},
		{name, own + "; another message", Failed, Failed},
		{name, "test_async_lu_reset_simple.c:188  - CU_ASSERT_EQUAL(state.wr_cancelled,0)", Failed, Failed},
		{"ALL.Read10.Simple", own, Failed, Failed},
	} {
		if got := excuse(c.name, Outcome{c.given, c.reason}); got.Verdict != c.want {
			t.Errorf("%s, %s: %s, want %s", c.name, c.reason, got.Verdict, c.want)
		}
	}
}

func TestTally(t *testing.T) {
	var tally Tally
	for _, v := range []Verdict{Passed, Passed, Skipped, Failed, Crash, Hang, Defect} {
		tally.add(v)
	}
	if got, want := tally.String(), "conformance: 2 passed, 4 failed, 1 skipped"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
