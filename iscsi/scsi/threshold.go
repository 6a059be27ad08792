package scsi

// unitThresholds is the state of the thin-provisioning thresholds of a logical unit.
type unitThresholds struct{}
