// Command run shows the main job on one node: it makes a volume in a file, starts lunard, exports a thin
// image, and has QEMU's iSCSI initiator write random data to it and read it back. Then it ejects the
// volume, mounts it with the plain kernel and compares the image's file; only then does it say that all
// is well, serve the image again, tell how to connect, and wait for Ctrl-C. With -once it ends there,
// with status 0 only if every comparison held. It leaves nothing running, mounted or attached.
package main
