package scsi

// cacheCommands are SYNCHRONIZE CACHE (SBC-3 §5.26, §5.27). The whole unit is flushed whatever the
// range; with IMMED the answer still comes after the flush, so GOOD always means durable.
var cacheCommands = []row{
	{
		opcode: 0x35, action: noServiceAction, name: "SYNCHRONIZE CACHE(10)",
		usage: []byte{0x35, 0x06, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0x00},
		class: classWrite, run: synchronizeCache,
	},
	{
		opcode: 0x91, action: noServiceAction, name: "SYNCHRONIZE CACHE(16)",
		usage: []byte{
			0x91, 0x06, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		class: classWrite, run: synchronizeCache,
	},
}

func synchronizeCache(c *Command) {
	if !c.inside(c.cdbRange()) {
		return
	}
	c.then = flushed
	c.lu.backend.Flush(c.Lane, c.ioDone)
}

// flushed reports a failed flush as a write error: acknowledged data may be lost.
func flushed(c *Command, err error) {
	if err == nil {
		c.complete()
		return
	}
	status, s := backendFailure(err, true)
	if status != CheckCondition {
		c.rejectStatus(status)
		return
	}
	c.reject(s)
}
