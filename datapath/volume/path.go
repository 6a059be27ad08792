package volume

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// fault is what an I/O's error says about the way to the disk.
type fault uint8

const (
	ofOther   fault = iota // nothing: the answer is the initiator's
	ofPath                 // another path may do it
	ofMedium               // the block, or what was under way with it; the path is sound
	ofFencing              // a reservation keeps this node out
)

// faults are what the kernel's block layer makes of a device's answer (block/blk-core.c, blk_errors).
var faults = []struct {
	errno error
	means fault
}{
	{unix.EBADE, ofFencing}, // reservation conflict
	{unix.ENODATA, ofMedium},
	{unix.EILSEQ, ofMedium},
	{unix.EIO, ofPath},
	{unix.ETIMEDOUT, ofPath},
	{unix.ENODEV, ofPath},
	{unix.ENXIO, ofPath},
	{unix.ENOLINK, ofPath},
	{unix.EREMOTEIO, ofPath},
	{unix.ESTALE, ofPath},
}

func faultOf(err error) fault {
	for _, f := range faults {
		if errors.Is(err, f.errno) {
			return f.means
		}
	}
	return ofOther
}

// verdict is what becomes of a direct I/O that ended.
type verdict uint8

const (
	answerIt   verdict = iota // with its error, if there is one
	redirectIt                // through the coordinator
	keepIt                    // until the volume is resumed
)

// path is what this node knows of its way to the disk, told by events; it has no clock and does no I/O.
// The path is down while the device's ends cannot be read, or no path takes writes. It rests for a
// while when I/O fails again and again although all can be read.
type path struct {
	down    bool
	mute    bool          // no path takes writes: the last redirected one failed too
	strikes int           // failures since first, that no probe explains
	first   time.Duration // of them
	rests   time.Duration // until then; 0: it does not
}

// Bounds of failures that a probe, which only reads, cannot find.
const (
	maxStrikes   = 8
	strikeWindow = time.Second
	restTime     = time.Second
)

// failed notes that a direct I/O failed by the path; missed: by its deadline, so that others would
// wait as long.
func (p *path) failed(now time.Duration, missed bool) {
	if now-p.first > strikeWindow {
		p.first, p.strikes = now, 0
	}
	p.strikes++
	p.down = p.down || missed
}

// probed notes a probe's result: whether the device's ends can be read, and the place that failed last.
func (p *path) probed(now time.Duration, ends, spot bool) {
	switch {
	case !ends:
		p.rests, p.strikes = 0, 0
	case !spot: // bad blocks explain the failures, of redirected writes too
		p.rests, p.strikes, p.mute = 0, 0, false
	case p.strikes >= maxStrikes:
		p.rests, p.strikes = now+restTime, 0
	}
	if now >= p.rests {
		p.rests = 0
	}
	p.down = !ends || p.mute || p.rests > 0
}

// wrote notes how a redirected write ended: when that fails by the path too, no path takes writes.
func (p *path) wrote(failed bool) { p.mute = failed }

// judge tells what becomes of an I/O that ended with err, and keeps this node out when it is fenced.
func (v *Volume) judge(err error) verdict {
	switch f := faultOf(err); {
	case err == nil || f == ofOther:
		return answerIt
	case f == ofFencing && v.opts.Fenced != nil:
		v.pause(Fenced)
		v.keep.fencedBy(err)
		return keepIt
	}
	return redirectIt
}

// judgeIO is judge for a read or write: a write finds ENOSPC on a device that has shrunk, or is thin itself.
func (v *Volume) judgeIO(err error, write bool) verdict {
	if write && errors.Is(err, unix.ENOSPC) {
		return redirectIt
	}
	return v.judge(err)
}

// heard notes how the coordinator fared with the disk.
func (v *Volume) heard(err error) {
	if deaf := err != nil && !noAnswer(err) && faultOf(err) == ofPath; deaf != v.deaf.Load() {
		v.deaf.Store(deaf)
	}
}

// heardWrite notes that the device takes no writes by any path, or does again: a probe only reads.
func (v *Volume) heardWrite(err error) {
	if noAnswer(err) {
		return
	}
	mute := faultOf(err) == ofPath && !errors.Is(err, unix.ETIMEDOUT)
	if v.mute.Swap(mute) != mute && mute {
		v.keep.suspect(failure{err: err, at: somewhere})
	}
}

// noAnswer tells an error that says nothing about the disk.
func noAnswer(err error) bool {
	return errors.Is(err, protocol.ErrStale) || errors.Is(err, protocol.ErrUnreachable)
}
