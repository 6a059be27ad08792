package fence

import "lunar/datapath/device"

// membership is a node's own registration: asked for, registered, and asked for again, so that an eviction
// between the first question and the registration is noticed before anything is written.
type membership struct {
	own        device.ReservationKey
	todo       act
	registered bool // the command was given at least once
	confirmed  bool // the key was seen on the LUN
	final      bool // in, out or lost: nothing more to do
}

func newMembership(own device.ReservationKey) *membership { return &membership{own: own, todo: actAsk} }

func (m *membership) next() act { return m.todo }

// asked takes the answer to actAsk. An error leaves the question open, but not for a node that has
// registered: that one goes out.
func (m *membership) asked(admitted bool, err error) {
	switch {
	case err != nil && !m.registered:
		m.todo = actAsk
	case (err != nil || !admitted) && m.registered:
		m.todo = actUnregister
	case !admitted:
		m.end(actRefused)
	case m.registered:
		m.end(actIn)
	default:
		m.todo = actRegister
	}
}

// look takes what actRead showed.
func (m *membership) look(s seen) {
	switch {
	case !s.keys.Has(m.own) && m.confirmed:
		m.end(actLost)
	case !s.keys.Has(m.own):
		m.todo = actUnregister // registered and removed at once, or not registered at all: it is not known
	case s.held.Type != kind:
		m.confirmed, m.todo = true, actReserve
	default:
		m.confirmed, m.todo = true, actAsk
	}
}

// done takes the result of any other act.
func (m *membership) done(err error) {
	switch m.todo {
	case actRegister:
		if m.registered = true; err != nil {
			m.todo = actUnregister
			return
		}
		m.todo = actRead
	case actReserve:
		m.todo = actRead
	case actUnregister:
		m.end(actRefused)
	}
}

func (m *membership) end(how act) { m.todo, m.final = how, true }
