package coordinator

// OnStep has fn called at every step of a change at which the power may fail.
func (c *Coordinator) OnStep(fn func(step string)) { c.hook = fn }

// SuspendedChanges is how many changes wait for the end of a suspension.
func (c *Coordinator) SuspendedChanges() int {
	c.suspension.mu.Lock()
	defer c.suspension.mu.Unlock()
	return c.suspension.waiting
}
