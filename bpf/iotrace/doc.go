// Package iotrace has the kernel tell where I/O spends its time, by programs on tracepoints: how long block devices take,
// the round trips of initiators' connections, and, while somebody looks, how long io_uring has requests. Times are counted
// by powers of two, per CPU, in the kernel; reading them costs the data path nothing.
//
// Load needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, and the kernel's BTF. Each program is loaded by itself: where one
// cannot be, Missing says which and why, and the others work. The caller closes a Trace, and each Ring before it.
package iotrace
