// Package backup tests backups as tools take them: nbdcopy, nbdinfo and qemu-img read a volume that initiators write to.
package backup
