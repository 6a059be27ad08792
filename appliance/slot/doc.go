// Package slot updates the appliance's image: two slots, of which one is booted and the other is written.
//
// A slot is a partition that holds a whole root file system with its kernel. GRUB chooses between them by the variables of its
// environment block, which has a partition of its own; all of them lie in that partition's first sector, which a power cut
// leaves either old or new. An update goes in this order, each step durable before the next:
//
//  1. the variables say that the other slot holds nothing, and that the booted one is the default;
//  2. the image is written, and read back;
//  3. the variables name its version, and let the loader try it Tries times.
//
// A slot on trial becomes the default by Confirm, when the daemon is ready there. Else the machine restarts, and the loader,
// which counts, goes back to the default. So at each moment the default is a slot that is whole and was good before.
//
// The caller's duties: it is root, and the initrd has made the links to the partitions below System.Dir.
package slot
