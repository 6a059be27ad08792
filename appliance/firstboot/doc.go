// Package firstboot applies what a machine is told about itself: its name, its network, the cluster to join, an ssh key, time
// servers.
//
// It is told by a disk with the file lunar.toml (a file system with the label LUNAR-CONFIG, or LUNARCONFIG, for FAT has room for
// 11 letters), by credentials of systemd, lunar.KEY, and by the kernel command line, lunar.KEY=VALUE; what comes later in this
// list counts more. That is applied once, and again when it has changed; what was set on the console since then holds until it
// does. A value that is wrong is told and leaves the one before in force.
//
// The settings are kept in the state directory. Everything that follows from them is made anew in /run at each boot, so a
// state directory that cannot be written costs no more than what was set on the console.
//
// The caller's duties: Configure comes before the network and lunard; Set is not called by two at a time.
package firstboot
