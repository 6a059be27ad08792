// Package scsi is the device server of a block device: the SPC-4 and SBC-3 commands, sense data,
// unit attentions, task management, reservations and ALUA of the logical units behind an iSCSI
// target. It knows neither sockets nor disks: a transport hands it Commands, a Backend stores the
// blocks.
//
// What a caller has to do:
//
//   - Everything of one Nexus (Decode, Execute, task management, Close) happens on one lane, the
//     same for the life of the Nexus; a Backend completes on the lane that it was called on.
//     Nothing here blocks a lane, and a task that completes allocates nothing.
//   - Decode, gather the Data-Out of at most Command.Length bytes, Execute. Done is called once for
//     every Execute, a refused or aborted command included; Command.Silent tells when SAM-5 wants
//     no response to it.
//   - With several lanes TargetOptions.Post is needed: task management reaches tasks of other
//     nexuses through it.
//   - Target.Map, Unmap and LogicalUnit.CapacityChanged may be called from any goroutine.
//
// Task attributes: a HEAD OF QUEUE task starts at once; an ORDERED task waits for the older tasks
// of its I_T nexus on the logical unit, and younger ones wait for it. The order of arrival between
// different I_T nexuses is not observable by an initiator before a completion, so this satisfies
// SAM-5 §8.7 for the one task set of the logical unit. ACA is not supported (NormACA is 0).
package scsi
