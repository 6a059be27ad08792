// Package iscsi is an iSCSI target, RFC 7143: portals, login with CHAP, sessions, the full feature
// phase and task management. It carries SCSI commands between initiators and scsi.Targets.
//
// What it does not do, and says so in negotiation: a session has one connection (MaxConnections=1;
// several paths are the initiator's multipath driver's work, over several sessions) and error
// recovery level 0 (a broken connection ends its session, and the initiator logs in anew).
//
// A connection lives on one Lane. Everything after accept runs as callbacks on that lane's thread:
// no lock is taken and nothing is allocated per command. The files follow a command's way: portal.go
// accepts, conn.go receives and dispatches through the opcode table, login.go and negotiate.go and
// chap.go open the session, command.go, dataout.go and datain.go carry a command, send.go answers.
//
// The caller owns the lanes, the buffers and the scsi.Targets; they must outlive Server.Close.
package iscsi
