// Command lunarctl manages a Lunar node through the unix socket of its lunard.
//
// Exit codes: 0 ok, 1 refused or failed, 2 wrong usage, 3 node not reachable. Tables and JSON go to
// standard output, everything else to standard error.
package main
