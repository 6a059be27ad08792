// Package guest boots Debian in QEMU's software emulation and lets that real Linux judge an iSCSI target.
//
// Two scenarios: [Boot] boots a machine wholly from a LUN through QEMU's libiscsi driver and checks on the host what the
// guest wrote; [Judge] lets a machine's open-iscsi log in and run a fixed list of file-system and sg3-utils commands,
// whose results stand beside those of the kernel's own target (LIO) on the same list.
//
// The caller runs as root on Debian with QEMU installed, gives every scenario a context with a deadline, and a directory
// for its files. Whatever a function here starts (machines, tgtd, lunard, loop devices) is gone when it or the Close that
// it hands out returns. Machines run niced, one at a time.
package guest
