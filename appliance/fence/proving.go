package fence

import (
	"slices"

	"lunar/datapath/device"
)

// kind is the type of reservation on every volume. With the Registrants Only types the reservation goes
// with its holder, and then anyone may write.
const kind = device.WriteExclusiveAllRegistrants

// act is what a rule wants done next.
type act uint8

const (
	actRead       act = iota // READ KEYS and READ RESERVATION
	actReserve               // make the reservation
	actPreempt               // PREEMPT AND ABORT target
	actSettle                // wait until commands that nobody has ended for certain must be over
	actProven                // the victim cannot write
	actLost                  // this node itself is fenced
	actAsk                   // read the admission, linearizably
	actRegister              // register the own key on all paths
	actUnregister            // take it away
	actIn                    // this node may use the device
	actRefused               // it may not
)

// seen is what one look at the LUN showed.
type seen struct {
	keys device.Registrations
	held device.Reservation
}

// match tells whether a key is one that has to go.
type match func(device.ReservationKey) bool

// proving is the fencing of one victim. Only what the LUN shows counts; the answer to a preempt is hearsay,
// except that one without an error has ended the victim's commands.
type proving struct {
	own     device.ReservationKey
	match   match
	todo    act
	target  device.ReservationKey          // of actPreempt
	ended   map[device.ReservationKey]bool // keys that were there; whether a preempt of each had a good answer
	settled bool
}

func newProving(own device.ReservationKey, m match) *proving {
	return &proving{own: own, match: m, todo: actRead, ended: map[device.ReservationKey]bool{}}
}

// next is what has to be done now.
func (p *proving) next() act { return p.todo }

// look takes what actRead showed.
func (p *proving) look(s seen) {
	at := slices.IndexFunc(s.keys.Keys, func(k device.ReservationKey) bool { return k != p.own && p.match(k) })
	switch {
	case !s.keys.Has(p.own):
		p.todo = actLost
	case s.held.Type != kind:
		p.todo = actReserve
	case at >= 0:
		p.todo, p.target = actPreempt, s.keys.Keys[at]
		p.ended[p.target], p.settled = false, false
	case p.certain() || p.settled:
		p.todo = actProven
	default:
		p.todo = actSettle
	}
}

// certain tells whether each key that was there went by a preempt whose good answer came. A key that was
// gone before may have left commands behind.
func (p *proving) certain() bool {
	for _, ended := range p.ended {
		if !ended {
			return false
		}
	}
	return len(p.ended) > 0
}

// done takes the result of any other act; then the LUN is looked at again.
func (p *proving) done(err error) {
	switch p.todo {
	case actPreempt:
		p.ended[p.target] = err == nil
	case actSettle:
		p.settled = err == nil
	}
	p.todo = actRead
}
