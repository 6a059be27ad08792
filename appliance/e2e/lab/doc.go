// Package lab starts the real parts that the end-to-end tests, `make run`, `make conformance` and
// `make bench` work with: loop devices, lunard and lunarctl, peer targets, initiators.
//
// A Lab owns one folder and everything that was started in it. The caller owes it one Close, which
// ends all of it in reverse order; should the caller die first, the kernel ends the processes
// (PR_SET_PDEATHSIG) and clears the loop devices (LO_FLAGS_AUTOCLEAR). All of it needs root.
package lab
