// Package trace is the stage clock: it times each command of a lane on its way from the arrival of its bytes to the
// sending of its answer, and counts the times by powers of two, per stage and per initiator, LUN and operation. The
// slowest commands are kept whole.
//
// A Lane satisfies the interfaces that iscsi, datapath/volume and datapath/uring declare for it. Its methods belong to
// the lane's thread, Switch excepted; they take no lock and allocate nothing in steady state. A mark names a command under way; 0 names
// none, and costs nothing more.
//
// What was counted is read by a Watch, which has the lanes hand over what they counted since they were last asked: by
// Options.Post, some series at a time, so that no lane is kept busy.
package trace
