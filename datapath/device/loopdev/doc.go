// Package loopdev attaches files to loop devices, with direct I/O to the file: volumes in a file,
// for tests, demonstrations and machines without a spare disk.
//
// A Loop goes away with the process that made it, even if that is killed: the kernel detaches it
// when the last descriptor is closed. Root only.
package loopdev
