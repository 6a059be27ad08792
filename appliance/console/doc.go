// Package console shows on the machine's own screen and serial line what the machine is and what is wrong with it, and has a
// menu to mend it there, when there is no network and no lunard.
//
// Who sits at the machine may set what a configuration disk may set, and restart it: he could put such a disk in. He gets no
// shell, except where root has a password, which is asked for, or where the loader's recovery entry was chosen, which whoever reaches the
// loader's menu can: on the screen or the serial line, at a restart. The setting console=status takes the menu away.
//
// On a screen the picture is drawn anew when it has changed. On a serial line, which somebody may keep as a log, the text
// is printed when it has changed, but not more often than each QuietFor, and when a key is pressed.
//
// The caller's duties: it is root, its standard input and output are the terminal and its controlling one, and nobody else
// reads that.
package console
