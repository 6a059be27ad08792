// Command conformance runs libiscsi's iscsi-test-cu, test by test, against a target that it starts:
// lunard, or with -peer Debian's tgtd or the embedded gotgt. It prints a line per test and closes
// with "conformance: N passed, N failed, N skipped". A crash of the target and a test that does not
// end count as failures and are named; so does a test that stops at a known defect of its own, which
// the table tells apart. It exits 1 when lunard fails a test that a target can pass.
package main
