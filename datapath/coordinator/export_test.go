package coordinator

// OnStep has fn called at every step of a change at which the power may fail.
func (c *Coordinator) OnStep(fn func(step string)) { c.hook = fn }
