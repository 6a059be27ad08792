// Command bench measures lunard's iSCSI target beside Debian's tgtd (aio and rdwr, both past the page
// cache) and the embedded gotgt: one client, one size of file on an XFS of its own over a loop device of
// its own on the same disk, rounds in which the targets take turns, medians over the rounds.
//
// It prints a row per load and target (IOPS, p50, p99, CPU seconds of the target per 100,000 commands),
// then a table of ratios with the project's bars. CPU time is that of the target's process with all its
// threads; what the kernel spends below it on the loop device is in none of the rows.
//
// With -growth it measures lunard alone, with 1, 100 and 1,000 LUNs and sessions.
package main
