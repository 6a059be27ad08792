package scsi

import "slices"

// Nexus is an I_T nexus: one initiator port logged in to one port of the target. It lives on the
// lane of its connection.
type Nexus struct {
	target    *Target
	initiator string // TransportID name: iSCSI name,i,0xISID
	port      uint16 // relative target port

	itls   []*itl // by LUN; made at the first command; lane only
	old    []*itl // of mappings that are gone, with tasks still under way; lane only
	closed bool
	lost   bool // an older nexus of this initiator port was lost
}

// NewNexus starts an I_T nexus: initiatorPort is the initiator port's name as in a TransportID
// (iSCSI name,i,0xISID), port the relative target port identifier. Every logical unit greets it
// with the unit attention POWER ON.
func (t *Target) NewNexus(initiatorPort string, port uint16) *Nexus {
	n := &Nexus{target: t, initiator: initiatorPort, port: port}
	t.mu.Lock()
	t.nexuses[n] = struct{}{}
	t.mu.Unlock()
	return n
}

// Target is the target that the nexus belongs to.
func (n *Nexus) Target() *Target { return n.target }

// Reinstated says, before the first command, that this nexus replaces one of the same initiator
// port that was lost: the units greet it with I_T NEXUS LOSS OCCURRED.
func (n *Nexus) Reinstated() { n.lost = true }

// Close ends the nexus, on its lane, after the last of its commands is done (AbortNexus helps).
func (n *Nexus) Close() {
	if n.closed {
		return
	}
	n.closed = true
	n.target.mu.Lock()
	delete(n.target.nexuses, n)
	n.target.mu.Unlock()
	for _, it := range n.itls {
		if it != nil {
			it.close()
		}
	}
	n.itls = nil
}

// lunsChanged may run on any goroutine, with Target.mu held.
func (n *Nexus) lunsChanged() {
	for _, m := range n.target.luns.Load().mappings() {
		m.lu.attention(attnLUNsChanged, func(it *itl) bool { return it.nexus == n })
	}
}

// retire closes an I_T_L nexus in whose place another comes; its tasks stay within reach.
func (n *Nexus) retire(it *itl) {
	n.old = slices.DeleteFunc(n.old, func(o *itl) bool { return o.count == 0 })
	if it.count > 0 {
		n.old = append(n.old, it)
	}
	it.close()
}

// itl is an I_T_L nexus: the state of one nexus with one logical unit.
type itl struct {
	nexus   *Nexus
	mapping *mapping
	lu      *LogicalUnit
	lane    int

	attentions attentionSet

	// The tasks, oldest first; lane only.
	head, tail  *Command
	count       int
	ordered     int // ORDERED tasks among them
	dispatching bool
	closed      bool // the unit forgets it with its last task; lane only

	copies copyResults // see xcopy_command.go; lane only
}

// reach finds the I_T_L nexus of a mapping, making it at the first command.
func (n *Nexus) reach(m *mapping, lane int) *itl {
	lun := int(m.lun)
	if lun < len(n.itls) {
		if it := n.itls[lun]; it != nil && it.mapping == m {
			return it
		}
	}
	return n.attach(m, lane)
}

func (n *Nexus) attach(m *mapping, lane int) *itl {
	lun := int(m.lun)
	if lun >= len(n.itls) {
		n.itls = append(n.itls, make([]*itl, lun+1-len(n.itls))...)
	}
	if old := n.itls[lun]; old != nil {
		n.retire(old)
	}
	it := &itl{nexus: n, mapping: m, lu: m.lu, lane: lane}
	it.attentions.raise(attnPowerOn)
	if n.lost {
		it.attentions.raise(attnNexusLoss)
		it.attentions.clear(attnPowerOn)
	}
	n.itls[lun] = it
	m.lu.attachNexus(it)
	return it
}

func (it *itl) close() {
	it.closed = true
	it.lu.nexusLost(it)
	it.leave()
}

// leave takes a closed I_T_L nexus out of the unit once it has no task.
func (it *itl) leave() {
	if it.closed && it.count == 0 {
		it.lu.detachNexus(it)
	}
}

// insert adds c to the task set as the youngest task.
func (it *itl) insert(c *Command) {
	c.prev, c.next = it.tail, nil
	if it.tail != nil {
		it.tail.next = c
	} else {
		it.head = c
	}
	it.tail = c
	it.count++
	if c.Attr == Ordered {
		it.ordered++
	}
}

func (it *itl) remove(c *Command) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		it.head = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		it.tail = c.prev
	}
	c.prev, c.next = nil, nil
	c.state = taskIdle
	it.count--
	if c.Attr == Ordered {
		it.ordered--
	}
	it.leave()
}
