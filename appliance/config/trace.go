package config

// Trace says how much of the I/O is timed.
type Trace struct {
	Commands bool   `toml:"commands"` // each SCSI command, stage by stage
	BPF      string `toml:"bpf"`      // BPFAuto or BPFOff: devices and connections, by the kernel
}
