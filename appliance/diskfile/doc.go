// Package diskfile reads and writes image files in the formats of other hypervisors: raw, qcow2, VHD, VHDX and VMDK.
// It looks at a file itself, and lets qemu-img convert it.
//
// A file comes from anywhere, and may be made to harm: an image can name other files in which its content is said
// to lie. Inspect refuses every one that does, with what to do, and qemu-img runs confined to the one file
// by Landlock, where the kernel has it: it can open no other file but its libraries, and no network.
//
// Errors are *api.Error: they say what is wrong with the file, and what to do.
package diskfile
